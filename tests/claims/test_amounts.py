"""The quick size of a study on a person's own images."""

from pathlib import Path

import pytest
from PIL import Image

from arelu_meta.claims.study import resolve, thinned
from arelu_meta.cli import parse


@pytest.mark.parametrize(
    ("words", "kept"),
    [
        (["small-lr", "--data.name", "digits"], 16),
        (["focus", "--data.name", "digits"], 10),
        (["small-lr", "--data.name", "digits", "--data.per_class", "7"], 7),
        (["small-lr", "--data.name", "digits", "--size", "full"], None),
        (["small-lr", "--data.name", "digits", "--pipeline", "maml"], None),
        (["mnist", "--data.name", "digits"], None),
    ],
)
def test_the_quick_size_stays_quick_on_data_of_ones_own(words: list[str], kept: int | None) -> None:
    assert thinned(resolve(parse("claims", words))).data.per_class == kept


def test_a_small_class_bounds_the_quick_size_and_a_tiny_one_leaves_all(tmp_path: Path) -> None:
    for count in (12, 3):
        for name, images in (("a", count), ("b", 40)):
            for number in range(images):
                (tmp_path / str(count) / name).mkdir(parents=True, exist_ok=True)
                colour = (number, 0, len(name))
                Image.new("RGB", (8, 8), colour).save(tmp_path / str(count) / name / f"{number}.png")
    found = {}
    for count in (12, 3):
        config = resolve(parse("claims", ["small-lr", "--data.root", str(tmp_path / str(count))]))
        found[count] = thinned(config).data.per_class
        assert config.data.per_class is None
    assert 5 <= (found[12] or 0) < 12
    assert found[3] is None
