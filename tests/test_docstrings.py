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


@pytest.mark.parametrize("name", arelu_meta.__all__)
def test_a_public_name_has_an_example(name: str) -> None:
    assert ">>> " in (getattr(arelu_meta, name).__doc__ or "")
