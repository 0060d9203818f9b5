"""Files are written whole or not at all, private where asked, and errors name the file that was to be written."""

from __future__ import annotations

import errno
import json
import os
import resource
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from peftbench.storage import files


@contextmanager
def umask(mask: int) -> Iterator[None]:
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


class Crash(BaseException):
    """The machine stops: nothing handles it."""


def test_a_crash_before_the_rename_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "record.json"
    files.write_bytes(file, b"old")

    def crash(*_: object) -> None:
        raise Crash

    monkeypatch.setattr(Path, "replace", crash)
    with pytest.raises(Crash):
        files.write_bytes(file, b"new")
    assert file.read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["record.json"]


def test_a_file_is_on_the_disk_before_it_is_renamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    sync, rename = os.fsync, Path.replace

    def watched_sync(number: int) -> None:
        done.append("sync")
        sync(number)

    def watched_rename(draft: Path, target: Path) -> Path:
        done.append("rename")
        return rename(draft, target)

    monkeypatch.setattr(os, "fsync", watched_sync)
    monkeypatch.setattr(Path, "replace", watched_rename)
    files.write_json(tmp_path / "job.json", {"b": 1, "a": 2})
    assert done == ["sync", "rename"]
    assert json.loads((tmp_path / "job.json").read_text()) == {"a": 2, "b": 1}


def test_the_error_names_the_file_that_was_to_be_written(tmp_path: Path) -> None:
    file = tmp_path / "nowhere" / "a.csv"
    with pytest.raises(FileNotFoundError) as raised:
        files.write_bytes(file, b"")
    assert str(raised.value) == f"[Errno 2] No such file or directory: '{file}'"


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS])
def test_a_disk_without_room_is_known_and_leaves_nothing(
    error: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(error, os.strerror(error))

    monkeypatch.setattr(os, "posix_fallocate", refuse)
    with pytest.raises(OSError, match=r"a\.csv") as raised:
        files.write_bytes(tmp_path / "a.csv", b"content")
    assert files.is_disk_full(raised.value)
    assert raised.value.errno == error
    assert list(tmp_path.iterdir()) == []


def test_a_file_system_that_cannot_reserve_is_written_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    monkeypatch.setattr(os, "posix_fallocate", refuse)
    files.write_text(tmp_path / "a.csv", "content")
    assert (tmp_path / "a.csv").read_text() == "content"


def test_a_limit_on_file_sizes_is_an_error_that_names_the_file(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(OSError, match=r"a\.bin'$") as raised:
            files.write_bytes(tmp_path / "a.bin", bytes(2000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert files.is_disk_full(raised.value)
    assert list(tmp_path.iterdir()) == []


def test_the_message_of_safetensors_counts_as_a_full_disk_and_other_errors_do_not() -> None:
    assert files.is_disk_full(OSError("Cannot write a: I/O error: No space left on device (os error 28)"))
    assert not files.is_disk_full(OSError(errno.EACCES, "Permission denied"))
    assert not files.is_disk_full(ValueError("28"))


@pytest.mark.parametrize("mask", [0o000, 0o022, 0o077])
def test_private_files_and_folders_are_private_whatever_the_umask(mask: int, tmp_path: Path) -> None:
    with umask(mask):
        folder = files.make_private_folder(tmp_path / "a" / "b" / "c")
        files.write_bytes(folder / "secret", b"x", private=True)
        files.write_bytes(folder / "public", b"x")
    assert [mode(one) for one in (folder, folder.parent, folder.parent.parent)] == [0o700] * 3
    assert mode(folder / "secret") == 0o600
    assert mode(folder / "public") == 0o666 & ~mask


def test_a_folder_that_exists_keeps_its_permissions(tmp_path: Path) -> None:
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared").chmod(0o750)
    files.make_private_folder(tmp_path / "shared" / "mine")
    assert [mode(tmp_path / "shared"), mode(tmp_path / "shared" / "mine")] == [0o750, 0o700]


def test_a_file_in_the_place_of_a_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(NotADirectoryError):
            files.make_private_folder(path)


def test_digests_are_those_of_sha256sum_and_of_version_0_1_0(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert files.sha256(b"abc") == files.sha256(memoryview(b"abc")) == files.sha256_file(tmp_path / "a") == abc
    assert files.sha256_pieces([b"a", memoryview(b"bc")]) == abc
    assert files.checksum(tmp_path / "a", "md5") == "900150983cd24fb0d6963f7d28e17f72"
    assert files.sha256_json({"b": [1, 2], "a": (3,)}) == files.sha256(b'{"a":[3],"b":[1,2]}')
    assert files.sha256_json({"b": [1, 2], "a": (3,)}, spaced=True) == files.sha256(b'{"a": [3], "b": [1, 2]}')
