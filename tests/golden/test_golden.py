"""What version 0.1 gave, still given: see README.md beside this file for how the golden files were made."""

import importlib.util
import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

HERE = Path(__file__).parent
_spec = importlib.util.spec_from_file_location("make_golden", HERE / "make.py")
assert _spec is not None
assert _spec.loader is not None
make = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(make)


def _golden(part: str) -> tuple[dict[str, Any], bool]:
    """Read a golden file; whether it was made on such a machine, with this torch."""
    content = json.loads((HERE / f"{part}.json").read_text())
    return content["found"], (content["cpu"], content["torch"]) == (make.cpu(), torch.__version__)


def _is_close(golden: float, found: float) -> bool:
    return math.isclose(golden, found, rel_tol=1e-6, abs_tol=1e-6) or (math.isnan(golden) and math.isnan(found))


def _cells(lines: list[str]) -> list[list[Any]]:
    def cell(text: str) -> float | str:
        try:
            return float(text)
        except ValueError:
            return text

    return [list(map(cell, line.split(","))) for line in lines]


def _differences(golden: Any, found: Any, where: str = "") -> Iterator[str]:
    """List what differs; what is new is no difference."""
    if isinstance(golden, dict) and isinstance(found, dict):
        for key, value in golden.items():
            if key not in found:
                yield f"{where}/{key} is gone"
            elif re.fullmatch(r"\w+\.csv", key):
                yield from _differences(_cells(value), _cells(found[key]), f"{where}/{key}")
            elif key != "command":
                yield from _differences(value, found[key], f"{where}/{key}")
    elif isinstance(golden, list) and isinstance(found, list) and len(golden) == len(found):
        for number, (one, other) in enumerate(zip(golden, found, strict=True)):
            yield from _differences(one, other, f"{where}/{number}")
    elif type(golden) in (int, float) and type(found) in (int, float):
        if not _is_close(golden, found):
            yield f"{where}: {golden!r} became {found!r}"
    elif golden != found:
        yield f"{where}: {golden!r} became {found!r}"


def _shape(value: Any) -> Any:
    """Leave the names of results and how many rows there are: another machine's values may differ in every digit."""
    if isinstance(value, dict):
        return {key: value[key] if key in ("status", "task", "study") else _shape(value[key]) for key in value}
    return len(value) if isinstance(value, list) else None


@pytest.mark.slow
@pytest.mark.parametrize("part", ["pipelines", "studies"])
def test_each_pipeline_and_each_study_gives_what_it_gave(part: str) -> None:
    golden, same_machine = _golden(part)
    found = make.PARTS[part]()
    if same_machine:
        assert list(_differences(golden, found)) == []
    else:
        assert list(_differences(_shape(golden), _shape(found))) == []


def test_each_activation_has_the_bits_that_it_had() -> None:
    golden, same_machine = _golden("activations")
    found = make.activations()
    if not same_machine:
        for one in (golden, found):
            for part in (part for case in one.values() for part in case.values()):
                del part["bits"]
    assert list(_differences(golden, found)) == []


def _flags(lines: list[str]) -> dict[str, tuple[str, str]]:
    """Find each flag's choices and default in a task's help."""
    found = {}
    parts = re.split(r"\n  (?=--)|\n\n", "\n".join(lines))  # a group's last flag ends before the next heading
    for text in (part for part in parts if part.startswith("--")):
        flag, choices, default = re.match(r"(\S+) ?({.*?})?.*?(?:default:\s+([^()]*)\)\s*)?$", text, re.DOTALL).groups()  # type: ignore[union-attr]
        found[flag] = (choices or "", default or "")
    return found


def test_each_task_s_help_has_the_flags_that_it_had_with_their_defaults() -> None:
    golden, _ = _golden("help")
    found = make.help_texts()
    assert sum(len(_flags(lines)) for lines in golden.values()) > 200
    assert golden.keys() <= found.keys()
    for task, lines in golden.items():
        now = {flag: list(one) for flag, one in _flags(found[task]).items()}
        assert list(_differences({flag: list(one) for flag, one in _flags(lines).items()}, now, task)) == []


@pytest.mark.slow  # the same cases as tests/test_bad_input.py, which has what each line must say
def test_each_bad_input_has_the_status_that_it_had_and_one_line_that_names_the_same_field() -> None:
    golden, _ = _golden("bad_input")
    found = make.bad_input()
    for one in (golden, found):
        for case in one.values():
            case["line"] = " ".join(case["line"].split()[:2])  # words may change; a newline would show
    assert list(_differences(golden, found)) == []
