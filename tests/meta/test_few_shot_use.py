from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from arelu_meta.errors import InputError
from arelu_meta.prediction import predict

COLOURS = {"blue": (30, 30, 220), "green": (30, 200, 30), "red": (220, 30, 30)}


def _photographs(folder: Path, count: int, seed: int) -> Path:
    random = np.random.default_rng(seed)
    for name, colour in COLOURS.items():
        (folder / name).mkdir(parents=True)
        for number in range(count):
            noise = random.normal(0, 25, (64, 64, 3))
            Image.fromarray((np.array(colour) + noise).clip(0, 255).astype(np.uint8)).save(
                folder / name / f"{number}.png"
            )
    return folder


def test_a_pretrained_backbone_sorts_images_by_a_support_folder_with_no_training(tmp_path: Path) -> None:
    support, queries = _photographs(tmp_path / "support", 5, 0), _photographs(tmp_path / "queries", 3, 1)
    found = predict("tf_efficientnet_lite0", [queries], support)
    assert len(found) == 9
    assert [one.name for one in found] == [one.path.parent.name for one in found]
    assert all(1 / 3 < one.probability <= 1 for one in found)


def test_a_backbone_by_name_needs_a_support(tmp_path: Path) -> None:
    queries = _photographs(tmp_path / "queries", 1, 1)
    with pytest.raises(InputError, match=r"support: missing; the backbone 'tf_efficientnet_lite0' needs --support"):
        predict("tf_efficientnet_lite0", [queries])


def test_a_mistyped_backbone_is_answered_with_the_nearest_names(tmp_path: Path) -> None:
    folder = _photographs(tmp_path / "photographs", 1, 1)
    says = r"^checkpoint: 'tf_efficientnet_lite00' is no run folder, .* or timm model; nearest: 'tf_efficientnet_lite0'"
    with pytest.raises(InputError, match=says):
        predict("tf_efficientnet_lite00", [folder], folder)
