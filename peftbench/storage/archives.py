"""Unpack downloaded archives beside themselves, once, and never outside their own folder."""

from __future__ import annotations

import lzma
import shutil
import struct
import tarfile
import uuid
import zipfile
import zlib
from pathlib import Path, PurePosixPath, PureWindowsPath

from peftbench.errors import DataError
from peftbench.storage.sizes import format_size

SUFFIXES = (".zip", ".npz", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
BOMB = 200  # largest ratio of unpacked to packed size; images do not reach it
SLACK = 100_000_000  # bytes that any archive may unpack to
MEMBER = 512  # bytes that each member counts at least
DAMAGE = (
    zipfile.BadZipFile,
    tarfile.TarError,
    zlib.error,
    lzma.LZMAError,
    EOFError,
    struct.error,
    ValueError,
    LookupError,
    OverflowError,  # an impossible time stamp
)


def is_packed(file: Path) -> bool:
    """Return whether the file's name ends like that of an archive."""
    return file.name.lower().endswith(SUFFIXES) and not file.name.startswith(".")


def is_archive(file: Path) -> bool:
    """Return whether it is an existing file with the name of an archive."""
    return is_packed(file) and file.is_file()


def place(archive: Path) -> Path:
    """Return the folder that `unpack` fills: beside the archive, its name without the suffix."""
    suffix = max((s for s in SUFFIXES if archive.name.lower().endswith(s)), key=len, default="")
    return archive.with_name(archive.name[: len(archive.name) - len(suffix)])


def unpack(archive: Path) -> Path:
    """Unpack an archive into the folder of its name beside it, unless that exists; return the folder.

    A single top folder of the same name is not repeated, and files that macOS adds are left out. The folder appears
    complete or not at all. Raises DataError for an archive that is damaged, does not fit on the disk, or holds links or
    paths that leave the folder.
    """
    target = place(archive)
    if target.is_dir():
        return target
    draft = archive.with_name(f".{target.name}.{uuid.uuid4().hex}")
    try:
        draft.mkdir()
        _extract(archive, draft)
        lone = draft / target.name
        (lone if list(draft.iterdir()) == [lone] and lone.is_dir() else draft).rename(target)
    except DAMAGE as error:
        raise DataError(f"{archive} is damaged ({_first_line(error)}); download it again.") from None
    except (NotImplementedError, RuntimeError) as error:  # a password, an unknown compression
        raise DataError(f"{archive} cannot be unpacked by peftbench ({error}); unpack it into {target}.") from None
    except OSError as error:
        if not error.errno:  # raised by a decoder, not by the system
            raise DataError(f"{archive} is damaged ({_first_line(error)}); download it again.") from None
        if not target.is_dir():  # otherwise another process unpacked it
            raise DataError(f"{archive} cannot be unpacked ({error.strerror}); unpack it into {target}.") from None
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return target


def _first_line(error: Exception) -> str:
    """Return the first line of a message: tarfile lists every way in which it failed."""
    return str(error).partition("\n")[0].rstrip(":") or type(error).__name__


def _extract(archive: Path, into: Path) -> None:
    if archive.suffix.lower() in {".zip", ".npz"}:
        with zipfile.ZipFile(archive) as packed:
            total = sum(member.file_size for member in packed.infolist())
            _refuse_bomb(archive, total)
            _refuse_room(archive, total)
            for member in packed.infolist():
                _refuse_path(archive, member.filename)
            wanted = [member for member in packed.infolist() if not _is_litter(member.filename)]
            packed.extractall(into, wanted)  # noqa: S202 - every path was checked
        return
    total = 0
    with tarfile.open(archive) as packed_tar:
        for entry in packed_tar:
            _refuse_path(archive, entry.name)
            if not (entry.isfile() or entry.isdir()):
                raise DataError(f"{archive} holds {entry.name!r}, which is a link or a device; get the data elsewhere.")
            total += max(0, entry.size) + MEMBER
            _refuse_bomb(archive, total)
            _refuse_room(archive, entry.size)
            if not _is_litter(entry.name):
                packed_tar.extract(entry, into, filter="data")


def _is_litter(name: str) -> bool:
    """Return whether macOS added this member."""
    steps = PurePosixPath(name).parts
    return "__MACOSX" in steps or any(step == ".DS_Store" or step.startswith("._") for step in steps)


def _refuse_path(archive: Path, name: str) -> None:
    path = PureWindowsPath(name)  # splits at both kinds of slashes
    if path.drive or path.root or ".." in path.parts:
        raise DataError(
            f"{archive} holds {name!r}, which leaves its folder, so it is not unpacked; get the data elsewhere."
        )


def _refuse_bomb(archive: Path, size: int) -> None:
    if size > BOMB * archive.stat().st_size + SLACK:
        raise DataError(
            f"{archive} would unpack to more than {BOMB} times its size, so it is not unpacked; get the data elsewhere."
        )


def _refuse_room(archive: Path, size: int) -> None:
    free = shutil.disk_usage(archive.parent).free
    if size > free:
        raise DataError(f"{archive} needs {format_size(size)} unpacked, but {format_size(free)} are free; make room.")
