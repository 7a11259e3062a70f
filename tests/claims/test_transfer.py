from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.io import savemat

from arelu_meta.claims.in_memory_training import Tensors, accuracy
from arelu_meta.claims.study import claims_task, resolve
from arelu_meta.claims.transfer import PairData, Trial, build, conclude, list_trials, load_pair, read_pairs, transfer
from arelu_meta.cli import main, parse

_ONE = Trial("digits-to-digits", "mnist_conv", "original", "sgd", 1e-2, 0, 2, 3, None, 16)


def _tensors(seed: int, images: int = 96) -> Tensors:
    """Make images that a ramp in one of two directions tells apart."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(2, (images,), generator=generator)
    ramp = torch.linspace(0, 200, 28).expand(28, 28)
    pixels = torch.stack([ramp if label else ramp.T for label in labels])[:, None]
    noisy = (pixels + 40 * torch.rand(pixels.shape, generator=generator)).to(torch.uint8)
    return Tensors(noisy, labels, noisy[:32], labels[:32], 2)


def _data() -> PairData:
    return PairData(_tensors(0), _tensors(1), _tensors(2))


def test_a_run_begins_with_what_the_source_taught_and_ends_on_the_target() -> None:
    rows = transfer([_ONE], _data())[0]
    assert [row["step"] for row in rows] == [0, 6, 12, 18]
    assert rows[-1]["accuracy"] == rows[-1]["validation_accuracy"]
    assert all(row["rate"] == 1e-2 for row in rows)
    taught = PairData(_tensors(0, 512), _tensors(1), _tensors(2))
    learned = transfer([replace(_ONE, contender="arelu:paper", source_epochs=30, length=1)], taught)[0]
    assert learned[0]["source_accuracy"] > 0.9
    assert learned[0]["accuracy"] > accuracy(build(_ONE, _tensors(0)), _tensors(1))


def test_runs_of_one_network_are_the_runs_alone() -> None:
    slow = replace(_ONE, lr=1e-4)
    together = transfer([_ONE, slow], _data())
    assert together == [transfer([_ONE], _data())[0], transfer([slow], _data())[0]]


def test_contenders_of_a_seed_have_the_same_weights() -> None:
    states = {}
    for contender in ("original", "arelu:paper", "arelu:preserve", "arelu:fit", "selu"):
        model = build(replace(_ONE, contender=contender), _tensors(0))
        states[contender] = {name: value for name, value in model.state_dict().items() if value.ndim > 1}
    for state in states.values():
        assert state.keys() == states["original"].keys()
        assert all(torch.equal(value, states["original"][name]) for name, value in state.items())


def test_a_run_that_becomes_nan_counts_as_zero() -> None:
    rows = transfer([replace(_ONE, lr=1e12)], _data())[0]
    assert len(rows) == 1
    assert (rows[0]["test_accuracy"], rows[0]["diverged"][:8]) == (0.0, "the loss")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--pairs", "mnist"], "pairs: 'mnist' is not allowed; give SOURCE-to-TARGET"),
        (["--pairs", "minst-to-digits"], "pairs: the source 'minst'"),
        (["--pairs", "mnist-to-photos"], "pairs: the target 'photos'"),
        (["--pairs", "imagenet-to-nowhere"], "data.root: 'nowhere' does not exist"),
        (["--pairs", "digits-to-digits", "--model.name", "resnet18"], "give one small network, as mnist_conv"),
        (["--pairs", "imagenet-to-flowers17", "--model.name", "mnist_conv"], "give one pretrained backbone"),
        (["--pairs", "digits-to-digits", "--optim.name", "lamb"], "optim.name: 'lamb' is not known to small networks"),
        (["--model.activation", "arelu"], "give two or more"),
        (["--data.name", "mnist"], "data.name: 'mnist' is not read by claims transfer"),
    ],
)
def test_bad_input_is_one_line_before_the_first_run(
    words: list[str], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["claims", "transfer", *words, "--run.folder", str(tmp_path / "study")]) == 2
    (line,) = capsys.readouterr().err.strip().split("\n")
    assert says in line
    assert not (tmp_path / "study").exists()


def test_both_kinds_of_pair_take_the_same_contenders_rates_and_seeds() -> None:
    config = resolve(parse("claims", ["transfer"]))
    small, large = list_trials(config, read_pairs(config.pairs))
    assert set(large) == {"imagenet-to-flowers17"}
    assert {trial.pair for trial in small} == {"mnist-to-mnist-m", "mnist-to-digits"}
    for some in (small, large["imagenet-to-flowers17"]):
        found = {(one.contender, one.lr, one.seed) for one in some if one.contender != "probe"}
        assert len(found) == 3 * 2 * 3


def _rows(contender: str, tests: list[float]) -> list[dict[str, Any]]:
    return [
        {"contender": contender, "lr": 1e-3, "seed": seed, "step": step, "pipeline": "transfer", "rate": 1e-3}
        | {"accuracy": test, "validation_accuracy": test, "test_accuracy": test}
        for seed, test in enumerate(tests)
        for step in (0, 1)
    ]


def test_the_pair_that_is_named_first_is_judged_and_the_others_are_described() -> None:
    ahead = [*_rows("original", [0.50, 0.52, 0.51]), *_rows("arelu", [0.60, 0.63, 0.61])]
    behind = [*_rows("original", [0.60, 0.63, 0.61]), *_rows("arelu", [0.50, 0.52, 0.51])]
    outcome = conclude({"a-to-b": ahead, "a-to-c": behind}, 1e-3, 1.0)
    assert [(one.claim, one.verdict) for one in outcome.claims] == [
        ("a-to-b: arelu against original at 0.001", "ahead")
    ]
    assert [one.claim for one in outcome.comparisons if not one.primary] == ["a-to-c: arelu against original at 0.001"]
    assert any("the pair that is named first" in note for note in outcome.notes)
    assert all(table.title.startswith(("a-to-b: ", "a-to-c: ")) for table in outcome.tables)


def test_a_note_on_one_pair_names_it_and_one_on_all_stands_once() -> None:
    def pair(arelu_at_larger: float) -> list[dict[str, Any]]:
        slow = [*_rows("original", [0.5, 0.51]), *_rows("arelu", [0.6, 0.61])]
        fast = [*_rows("original", [0.7, 0.71]), *_rows("arelu", [arelu_at_larger, arelu_at_larger])]
        middle = [*_rows("original", [0.6, 0.61]), *_rows("arelu", [0.5, 0.51])]
        return [*slow, *({**row, "lr": 3e-3} for row in middle), *({**row, "lr": 1e-2} for row in fast)]

    notes = conclude({"a-to-b": pair(0.8), "a-to-c": pair(0.2)}, 1e-3, 1.0).notes
    assert sum("not be the best choice" in note for note in notes) == 1
    assert "a-to-c: The best rate of arelu is the smallest that was tried; a better one may lie beyond it." in notes
    assert not any(note.startswith("The best rate") for note in notes)


def test_a_small_study_runs_to_its_page_and_goes_on_where_it_stopped(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["transfer", "--pairs", "digits-to-digits", "--data.per_class", "4", "--train.epochs", "1"]
    words += ["--train.repeats", "2", "--processes", "1", "--run.folder", str(tmp_path / "study")]
    results = claims_task(parse("claims", words))
    assert {one["n"] for one in results["verdicts"]} == {2}
    assert (tmp_path / "study" / "report.html").stat().st_size > 0
    capsys.readouterr()
    again = claims_task(parse("claims", [*words, "--run.resume", "auto", "--train.repeats", "3"]))
    assert "6 of 18 runs to do" in capsys.readouterr().out
    assert again["seeds"] == [0, 1, 2]


def _write_svhn(root: Path) -> None:
    """Write files as SVHN's are: images last, and 10 for the digit 0. A digit is as bright as it is large."""
    root.mkdir()
    generator = np.random.default_rng(0)
    for part, images in (("train", 200), ("test", 50)):
        digits = np.arange(images) % 10
        pixels = generator.integers(0, 20, (32, 32, 3, images)) + 20 * digits
        labels = np.where(digits == 0, 10, digits)[:, None]
        savemat(root / f"{part}_32x32.mat", {"X": pixels.astype(np.uint8), "y": labels.astype(np.uint8)})


def test_street_numbers_are_learned_from_digits_and_the_other_way_round(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _write_svhn(tmp_path / "svhn")
    monkeypatch.setattr("torchvision.datasets.SVHN._check_integrity", lambda _: True)  # of the real files' checksums
    config = resolve(parse("claims", ["transfer", "--data.root", str(tmp_path / "svhn")]))
    data = load_pair(config, "digits", "svhn")
    assert data.target.train_images.shape[1:] == data.source.train_images.shape[1:] == (3, 28, 28)
    assert data.test.test_labels[:11].tolist() == [*range(10), 0]
    means = data.test.test_images.float().mean((1, 2, 3))
    assert means[:10].tolist() == sorted(means[:10].tolist())
    words = ["transfer", "--pairs", "digits-to-svhn,svhn-to-digits", "--data.root", str(tmp_path / "svhn")]
    words += ["--optim.lr", "1e-2", "--train.epochs", "1", "--train.repeats", "2", "--processes", "1"]
    results = claims_task(parse("claims", [*words, "--run.folder", str(tmp_path / "study")]))
    assert [one["claim"].split(":")[0] for one in results["verdicts"]] == ["digits-to-svhn"]  # the first that is named
