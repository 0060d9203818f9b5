from __future__ import annotations

import io
import os
import shutil
import tarfile
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest

from peftbench.errors import DataError
from peftbench.storage.archives import is_archive, place, unpack

FILES = {"benign/1.png": "one", "malignant/a name %.png": "two"}


def pack(file: Path, files: dict[str, str]) -> Path:
    """A zip or tar of texts by name."""
    file.parent.mkdir(parents=True, exist_ok=True)
    if file.suffix == ".zip":
        with zipfile.ZipFile(file, "w") as packed:
            for name, text in files.items():
                packed.writestr(name, text)
        return file
    with tarfile.open(file, "w:gz" if file.name.endswith("gz") else "w") as packed_tar:
        for name, text in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(text)
            packed_tar.addfile(entry, io.BytesIO(text.encode()))
    return file


def contents(folder: Path) -> dict[str, str]:
    return {p.relative_to(folder).as_posix(): p.read_text() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize("name", ["set.zip", "set.tar", "set.tar.gz", "set.tgz"])
def test_an_archive_becomes_the_folder_of_its_name(name: str, tmp_path: Path) -> None:
    folder = unpack(pack(tmp_path / name, FILES))
    assert folder == tmp_path / "set"
    assert contents(folder) == FILES


def test_a_lone_top_folder_of_the_same_name_is_not_repeated(tmp_path: Path) -> None:
    folder = unpack(pack(tmp_path / "set.zip", {f"set/{name}": text for name, text in FILES.items()}))
    assert contents(folder) == FILES
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == ["set"]


@pytest.mark.parametrize("name", ["set.zip", "set.tar"])
def test_what_macos_adds_is_left_out(name: str, tmp_path: Path) -> None:
    """CT_COVID.zip as published: its images, and a folder __MACOSX beside them."""
    packed = {f"set/{name}": text for name, text in FILES.items()}
    folder = unpack(pack(tmp_path / name, packed | {"__MACOSX/set/._1.png": "", "set/.DS_Store": "", "._set": ""}))
    assert contents(folder) == FILES


def test_a_folder_that_is_there_is_left_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    assert contents(unpack(pack(tmp_path / "set.zip", FILES))) == {}


@pytest.mark.parametrize("name", ["../out.txt", "/out.txt", "a/../../out.txt", "..\\out.txt", "C:/out.txt"])
@pytest.mark.parametrize("kind", ["bad.zip", "bad.tar"])
def test_a_path_that_leaves_the_folder_is_refused(name: str, kind: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"which leaves its folder, so it is not unpacked"):
        unpack(pack(tmp_path / "below" / kind, {"a.txt": "x", name: "evil"}))
    assert [path.name for path in (tmp_path / "below").iterdir()] == [kind]
    assert [path.name for path in tmp_path.iterdir()] == ["below"]


def test_a_link_in_a_tar_is_refused(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "bad.tar", "w") as packed:
        entry = tarfile.TarInfo("link")
        entry.type, entry.linkname = tarfile.SYMTYPE, "/etc"
        packed.addfile(entry)
    with pytest.raises(DataError, match="a link or a device"):
        unpack(tmp_path / "bad.tar")


@pytest.mark.parametrize("name", ["set.zip", "set.tar.gz"])
def test_a_truncated_download_is_refused_and_leaves_nothing(name: str, tmp_path: Path) -> None:
    file = pack(tmp_path / name, {"a.txt": os.urandom(5000).hex()})
    file.write_bytes(file.read_bytes()[:2000])
    with pytest.raises(DataError, match=r"set\..* is damaged .*; download it again"):
        unpack(file)
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_what_does_not_fit_on_the_disk_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1))
    with pytest.raises(DataError, match="make room"):
        unpack(pack(tmp_path / "set.zip", FILES))


def test_an_error_about_writing_states_the_fix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    file = pack(tmp_path / "set.zip", FILES)
    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(DataError, match=r"cannot be unpacked \(Permission denied\)"):
        unpack(file)


def test_only_whole_visible_files_are_archives(tmp_path: Path) -> None:
    for name in ("a.ZIP", ".b.zip", "c.txt", "d.tar.gz"):
        (tmp_path / name).write_text("x")
    assert [p.name for p in sorted(tmp_path.iterdir()) if is_archive(p)] == ["a.ZIP", "d.tar.gz"]
    assert place(tmp_path / "d.tar.gz").name == "d"
