import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from arelu_meta.claims import transfer
from arelu_meta.claims.study import check_inputs, claims_task, digests_of, inputs_of, resolve
from arelu_meta.cli import parse
from arelu_meta.errors import InputError

_SMALL = ["small-lr", "--model.name", "mnist_linear", "--model.pretrained", "false", "--data.image_size", "28"]
_SMALL += ["--model.activation", "original,arelu", "--optim.lr", "0.1", "--processes", "1", "--train.epochs", "1"]
_SMALL += ["--train.repeats", "2"]


def _images(root: Path, each: int = 10) -> Path:
    random = np.random.default_rng(0)
    for name in ("yes", "no"):
        (root / name).mkdir(parents=True)
        for place in range(each):
            Image.fromarray(random.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(root / name / f"{place}.png")
    return root


def test_a_study_is_not_gone_on_with_on_other_images(tmp_path: Path) -> None:
    root = _images(tmp_path / "images")
    words = [*_SMALL, "--data.root", str(root), "--run.folder", str(tmp_path / "study")]
    claims_task(parse("claims", words))
    more = [*words, "--run.resume", "auto", "--train.repeats", "3"]
    (root / "yes/0.png").unlink()
    with pytest.raises(InputError, match=r"^data\.root: '.*images' does not hold what it held when the runs in"):
        claims_task(parse("claims", more))


def test_a_study_s_folder_among_its_images_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    root = _images(tmp_path / "images")
    words = [*_SMALL, "--data.root", str(root), "--run.folder", str(root / "study")]
    with pytest.raises(InputError, match=r"^run\.folder: '.*study' lies among the images in '.*images'"):
        claims_task(parse("claims", words))
    assert not (root / "study").exists()


def test_runs_that_are_looked_at_need_none_of_the_recipe_s_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ARELU_META_DATA", str(tmp_path))
    config = resolve(
        parse("claims", ["focus", "--focus.runs", "a,b", "--focus.images", str(_images(tmp_path / "own"))])
    )
    assert config.data.root is None
    assert list(inputs_of(config)) == [f"focus.images: {str(tmp_path / 'own')!r}"]


def test_other_boxes_behind_the_same_path_are_noticed_and_another_path_is_not_held_against_anyone(
    tmp_path: Path,
) -> None:
    root, boxes = _images(tmp_path / "images"), tmp_path / "boxes.csv"

    def found(*words: str) -> dict[str, str]:
        return digests_of(inputs_of(resolve(parse("claims", ["focus", "--data.root", str(root), *words]))))

    boxes.write_text("image,x0,y0,x1,y1\nyes/0.png,0,0,4,4\n")
    before = found("--focus.boxes", str(boxes))
    (tmp_path / "inputs.json").write_text(json.dumps(before))
    assert check_inputs(before, tmp_path) == before
    assert set(check_inputs(found("--focus.masks", str(root)), tmp_path)) > set(before)
    boxes.write_text("image,x0,y0,x1,y1\nyes/0.png,0,0,5,5\n")
    with pytest.raises(InputError, match=r"^focus\.boxes: "):
        check_inputs(found("--focus.boxes", str(boxes)), tmp_path)


def test_a_folder_that_a_pair_of_transfer_names_is_remembered(tmp_path: Path) -> None:
    root = _images(tmp_path / "photographs")
    config = resolve(parse("claims", ["transfer", "--pairs", f"mnist-to-mnist-m,imagenet-to-{root}"]))
    before = digests_of(transfer.inputs_of(config))
    assert list(before) == [f"pairs: 'imagenet-to-{root}'"]
    (root / "yes/0.png").unlink()
    assert digests_of(transfer.inputs_of(config)) != before


@pytest.mark.parametrize("text", ["", "[]", "{}"])
def test_a_study_begun_before_this_was_noted_is_gone_on_with(text: str, tmp_path: Path) -> None:
    (tmp_path / "inputs.json").write_text(text)
    assert check_inputs({"data.root: 'a'": "b"}, tmp_path) == {"data.root: 'a'": "b"}
