"""YAML files that a person wrote: read into plain values, or refused in a sentence."""

import os
from pathlib import Path
from typing import Any

from arelu_meta.errors import InputError

_MOST_VALUES = 10_000
_MOST_BYTES = 1_000_000


def read_yaml(file: str, where: str) -> Any:
    """Read a YAML file that a person wrote.

    Args:
        file: its path.
        where: the flag that named it, for errors.

    Returns:
        Plain values, as `yaml.safe_load` makes them; a key that stands twice is an error.

    Raises:
        InputError: if it cannot be read, is no YAML, or stands for too many values.
    """
    import yaml

    if not os.path.isfile(file):  # noqa: PTH113 (pathlib's raises where the name is too long)
        raise InputError(f"{where}: {file!r} does not exist or is not a file; give a YAML file")
    if os.path.getsize(file) > _MOST_BYTES:  # noqa: PTH202
        raise InputError(f"{where}: {file!r} has more than {_MOST_BYTES} bytes; give a YAML file that a person wrote")
    try:
        content = _load_yaml(Path(file).read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{where}: {file!r} cannot be read ({error.strerror}); give a YAML file") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{where}: {file!r} is not YAML: {error}") from error
    except (ValueError, RecursionError) as error:  # such as a date with a 13th month
        raise InputError(f"{where}: {file!r} has a value that YAML cannot read ({error})") from error
    if _expanded_size(content, {}) > _MOST_VALUES:
        raise InputError(
            f"{where}: {file!r} holds more than {_MOST_VALUES} values, its aliases written out; give fewer"
        )
    return content


def _load_yaml(text: str) -> Any:
    """Read YAML, but refuse a key that stands twice: YAML's own reader keeps the last without a word."""
    import yaml

    class Loader(yaml.SafeLoader):
        def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
            seen: set[str] = set()
            for key in [key for key, _ in node.value if isinstance(key, yaml.ScalarNode)]:
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(
                        problem=f"{key.value!r} is given twice", problem_mark=key.start_mark
                    )
                seen.add(key.value)
            return super().construct_mapping(node, deep)

    return yaml.load(text, Loader)


def _expanded_size(content: Any, known: dict[int, int]) -> int:
    """Count the values that a config holds once its aliases are written out, which a few lines can make billions."""
    if not isinstance(content, dict | list):
        return 1
    if id(content) not in known:
        known[id(content)] = 1  # what contains itself is met again here
        parts = list(content.values()) if isinstance(content, dict) else content
        known[id(content)] = 1 + sum(_expanded_size(part, known) for part in parts)
    return known[id(content)]
