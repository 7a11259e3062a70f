import copy
import json
import os
import subprocess
import zipfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from arelu_meta.config import FinetuneConfig, MetatrainConfig, RunConfig
from arelu_meta.errors import InputError
from arelu_meta.runs.checkpoints import (
    DECIDES_NOTHING,
    check_same_config,
    checksum_file,
    digest_of,
    list_checkpoints,
    load_checkpoint,
    load_last,
    write_checkpoint,
)
from arelu_meta.runs.run_folder import RunFolder, open_run
from arelu_meta.validation import flatten


def _state(value: float) -> dict[str, object]:
    return {"metrics": [{"epoch": 1}], "weights": torch.full((3,), value)}


def _two(folder: Path) -> tuple[Path, Path]:
    paths = folder / "epoch-0001.pt", folder / "epoch-0001-step-000003.pt"
    for number, path in enumerate(paths):
        write_checkpoint(path, _state(float(number)))
    return paths


def test_the_checksum_beside_a_checkpoint_is_one_that_sha256sum_confirms(tmp_path: Path) -> None:
    for path in _two(tmp_path):
        done = subprocess.run(["sha256sum", "--check", checksum_file(path).name], cwd=tmp_path, capture_output=True)
        assert done.returncode == 0


def test_the_last_two_are_kept_by_the_numbers_in_their_names(tmp_path: Path) -> None:
    for name in ("epoch-9999", "epoch-10000", "epoch-9999-step-000001"):
        write_checkpoint(tmp_path / f"{name}.pt", _state(0))
    assert [path.stem for path in list_checkpoints(tmp_path)] == ["epoch-9999-step-000001", "epoch-10000"]
    assert len(list(tmp_path.glob("*.sha256"))) == 2


def test_what_a_person_keeps_beside_the_checkpoints_is_neither_removed_nor_gone_on_from(tmp_path: Path) -> None:
    (tmp_path / "9999.pt.d").mkdir()
    (tmp_path / "epoch-9999.pt").mkdir()
    kept = [tmp_path / name for name in ("best.pt", "epoch-0001-copy.pt", "zz-9999.pt")]
    for path in kept:
        path.write_bytes(b"mine")
    _, last = _two(tmp_path)
    write_checkpoint(last.with_name("epoch-0002.pt"), _state(2))
    assert [path.read_bytes() for path in kept] == [b"mine"] * 3
    assert load_last(tmp_path)[1:] == (tmp_path / "epoch-0002.pt", [])


@pytest.mark.parametrize("cell", [10**5000, 2**64, [[]], {"a": 1}], ids=["endless", "large", "list", "dict"])
def test_a_stranger_s_table_that_could_not_be_written_out_is_no_checkpoint(tmp_path: Path, cell: object) -> None:
    for name in ("metrics", "times"):
        torch.save({"metrics": [], name: [{"epoch": 1, "more": cell}]}, tmp_path / "epoch-0001.pt")
        with pytest.raises(InputError, match="is not a checkpoint of this toolkit"):
            load_checkpoint(tmp_path / "epoch-0001.pt")


@pytest.mark.parametrize("damage", ["flipped", "cut", "emptied", "checksum"])
def test_a_damaged_last_checkpoint_is_named_and_the_one_before_it_used(tmp_path: Path, damage: str) -> None:
    first, last = _two(tmp_path)
    content = bytearray(last.read_bytes())
    if damage == "flipped":
        content[len(content) // 2] ^= 1
    elif damage == "checksum":
        checksum_file(last).write_text("nonsense")
    last.write_bytes(content[: {"cut": 100, "emptied": 0}.get(damage, len(content))])
    state, path, damaged = load_last(tmp_path)
    assert path == first
    assert state is not None
    assert state["weights"].tolist() == [0.0] * 3
    assert len(damaged) == 1
    assert last.name in damaged[0]


def test_where_all_checkpoints_are_damaged_nothing_is_started_over(tmp_path: Path) -> None:
    for path in _two(tmp_path):
        path.write_bytes(b"PK")
    with pytest.raises(InputError, match=r"no checkpoint in .* is whole"):
        load_last(tmp_path)


def test_going_on_sets_the_damaged_checkpoint_aside_and_sweeps_up(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = RunConfig(folder=str(tmp_path / "run"), resume="auto")
    with open_run(config, "finetune") as folder:
        folder.start(FinetuneConfig(), {})
        for number in (1, 2):
            folder.append_metrics({"epoch": number})
            folder.save_checkpoint(f"epoch-{number:04d}", {})
    last = list_checkpoints(folder.checkpoints)[-1]
    last.write_bytes(last.read_bytes()[:-10])
    (folder.path / ".metrics.csv.abc.arelu-unfinished").write_text("killed while writing")
    with open_run(config, "finetune") as again:
        again.start(FinetuneConfig(), {})
        assert [row["epoch"] for row in again.rows] == [1]
    assert "damaged checkpoint" in capsys.readouterr().out
    assert [path.name for path in list_checkpoints(folder.checkpoints)] == ["epoch-0001.pt"]
    assert (folder.checkpoints / "epoch-0002.pt.aside").exists()
    assert not list(folder.path.glob(".*"))


class _Evil:
    def __init__(self, function: object, *arguments: object) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return self.call


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize("name", ["system", "exec", "import"])
def test_pickles_that_would_run_code_are_refused_in_a_sentence_and_run_nothing(
    tmp_path: Path, name: str, legacy: bool
) -> None:
    trace = tmp_path / "ran"
    evil = {
        "system": _Evil(os.system, f"touch {trace}"),
        "exec": _Evil(exec, f"open({str(trace)!r}, 'w')"),
        "import": _Evil(__import__, "antigravity"),
    }[name]
    file = tmp_path / "evil.pt"
    torch.save({"metrics": [], "model": evil}, file, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(InputError, match=r"run\.resume: '.*evil\.pt' is not a checkpoint"):
        load_checkpoint(file)
    assert not trace.exists()


@pytest.mark.parametrize("checksum", [False, True], ids=["alone", "beside its checksum"])
def test_an_archive_that_would_unpack_to_more_than_it_holds_is_refused_before_it_is_unpacked(
    tmp_path: Path, checksum: bool
) -> None:
    file = tmp_path / "bomb.pt"
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("bomb/data.pkl", bytes(50_000_000))
    if checksum:
        checksum_file(file).write_text(f"{digest_of(file)}  {file.name}\n")
    with pytest.raises(InputError, match="compressed"):
        load_checkpoint(file)


def test_a_disk_that_vanishes_is_one_sentence(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    with folder:
        folder.start(FinetuneConfig(), {})
        folder.path.rename(tmp_path / "away")
        for write in (lambda: folder.append_metrics({"epoch": 1}), lambda: folder.save_checkpoint("epoch-0001", {})):
            with pytest.raises(RuntimeError, match="is gone"):
                write()


# What may be another one while a run goes on: it is said, and trained with from there on.
_MAY_CHANGE = ("optim.lr", "optim.head_lr", "optim.act_lr", "train.epochs", "meta.steps")


def _another(value: Any) -> Any:
    """Give a value that a field does not have."""
    if isinstance(value, bool) or value is None:
        return not value
    return value + 1 if isinstance(value, int | float) else f"{value}-other"


@pytest.mark.parametrize("ended", [True, False])
@pytest.mark.parametrize(
    ("kind", "name"), [(kind, name) for kind in (FinetuneConfig, MetatrainConfig) for name in flatten(kind())]
)
def test_every_field_of_a_config_is_free_on_resume_or_refused_by_its_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: type, name: str, ended: bool
) -> None:
    then = kind()
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(asdict(then)))
    (tmp_path / "split.json").write_text(json.dumps({"train": ["a.png"]}))
    if ended:
        (tmp_path / "results.json").write_text("{}")
    now = copy.deepcopy(then)
    group, _, field = name.rpartition(".")
    holder = getattr(now, group) if group else now
    setattr(holder, field, _another(getattr(holder, field)))
    if name in DECIDES_NOTHING or (name in _MAY_CHANGE and not ended):
        check_same_config(tmp_path, lambda _: now)
        assert (name in capsys.readouterr().out) == (name in _MAY_CHANGE)
        return
    with pytest.raises(InputError, match=f"^{name}: .* and the run in "):
        check_same_config(tmp_path, lambda _: now)


def test_what_is_free_on_resume_are_fields() -> None:
    fields = flatten(FinetuneConfig()) | flatten(MetatrainConfig())
    assert set(DECIDES_NOTHING) <= fields.keys()
