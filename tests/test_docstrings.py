"""The examples in docstrings are what they say."""

import doctest
import importlib
from pathlib import Path

import pytest

import arelu_meta

_ROOT = Path(arelu_meta.__file__).parent
_WITH_EXAMPLES = sorted(
    path.relative_to(_ROOT.parent).with_suffix("").as_posix().replace("/", ".")
    for path in _ROOT.rglob("*.py")
    if ">>> " in path.read_text(encoding="utf-8")
)


@pytest.mark.parametrize("name", _WITH_EXAMPLES)
def test_an_example_prints_what_stands_below_it(name: str) -> None:
    found = doctest.testmod(importlib.import_module(name), optionflags=doctest.ELLIPSIS)
    assert found.attempted > 0
    assert found.failed == 0
