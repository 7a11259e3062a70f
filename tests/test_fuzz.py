"""A thousand of the inputs that `python tests/fuzz.py` feeds by the hundred thousand."""

import importlib.util
from pathlib import Path

import pytest

_SPEC = importlib.util.spec_from_file_location("fuzz", Path(__file__).parent / "fuzz.py")
assert _SPEC is not None
assert _SPEC.loader is not None
fuzz = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(fuzz)


@pytest.mark.parametrize(
    "target", ["image", "checkpoint", "config", "swap", pytest.param("flags", marks=pytest.mark.slow)]
)
def test_hostile_input_is_read_or_refused_in_a_sentence_and_changes_nothing(target: str) -> None:
    run, _ = fuzz.TARGETS[target]
    run()


def test_a_config_of_a_few_lines_that_stands_for_billions_of_values_is_refused_at_once(tmp_path: Path) -> None:
    from arelu_meta.cli import parse
    from arelu_meta.errors import InputError
    from arelu_meta.sweep.spec import read_spec

    lines = ["x0: &x0 [1, 1, 1, 1, 1, 1, 1, 1, 1]"]
    lines += [f"x{n}: &x{n} [{', '.join([f'*x{n - 1}'] * 9)}]" for n in range(1, 12)]
    file = tmp_path / "bomb.yaml"
    file.write_text("\n".join([*lines, "optim: {lr: *x11}"]))
    with pytest.raises(InputError, match="holds more than"):
        parse("finetune", ["--config", str(file)])
    with pytest.raises(InputError, match=r"SPEC.*holds more than"):
        read_spec(str(file))
