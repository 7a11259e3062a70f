"""Archives from strangers whose members want to be written elsewhere."""

import io
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torchvision.datasets
from torchvision.datasets.utils import extract_archive

from arelu_meta.config import DataConfig
from arelu_meta.data.named_datasets import kept_inside, load_named
from arelu_meta.errors import InputError


def _file(archive: tarfile.TarFile, name: str) -> None:
    member = tarfile.TarInfo(name)
    member.size = 4
    archive.addfile(member, io.BytesIO(b"evil"))


def _link_and_file(archive: tarfile.TarFile, name: str) -> None:
    link = tarfile.TarInfo("link")
    link.type, link.linkname = tarfile.SYMTYPE, str(Path(name).parent)
    archive.addfile(link)
    _file(archive, f"link/{Path(name).name}")


CASES: dict[str, tuple[str, Callable[[tarfile.TarFile, str], None]]] = {
    "dots": ("../evil", _file),
    "dots below": ("a/../../evil", _file),
    "link": ("../evil", _link_and_file),
}


@pytest.mark.parametrize("case", list(CASES))
def test_no_member_of_a_tar_file_leaves_its_folder(tmp_path: Path, case: str) -> None:
    name, put = CASES[case]
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        put(archive, name)
    with kept_inside(), pytest.raises(tarfile.FilterError):
        extract_archive(str(tmp_path / "a.tar"), str(tmp_path / "inside" / "deep"))
    assert not list(tmp_path.rglob("evil"))
    assert "extraction_filter" not in vars(tarfile.TarFile)


def test_no_member_of_a_zip_file_leaves_its_folder(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("../evil", "evil")
        archive.writestr("/evil", "evil")
    with kept_inside():
        extract_archive(str(tmp_path / "a.zip"), str(tmp_path / "inside"))
    assert {path.parent for path in tmp_path.rglob("evil")} == {tmp_path / "inside"}


def test_a_set_whose_archive_leaves_its_folder_is_one_sentence_and_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        _file(archive, "../evil")

    def fake(root: Path, download: bool = False, **_: Any) -> None:
        if not download:
            raise RuntimeError("Dataset not found")
        extract_archive(str(tmp_path / "a.tar"), str(root))

    monkeypatch.setattr(torchvision.datasets, "CIFAR10", fake)
    config = DataConfig(name="cifar10", root=str(tmp_path / "home"), download=True)
    with pytest.raises(InputError, match=r"'cifar10' is missing or damaged .*'\.\./evil'"):
        load_named("cifar10", config, 0)
    assert not (tmp_path / "evil").exists()
