"""Downloads that are still packed: unpacked once, beside themselves, and never outside of their own folder."""

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

SUFFIXES = (".zip", ".npz", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
BOMB = 200  # times its own size: more than pictures can be packed
SLACK = 100_000_000  # bytes that any archive may hold
MEMBER = 512  # bytes that one counts for, however small
DAMAGE = (
    zipfile.BadZipFile,
    tarfile.TarError,
    zlib.error,
    lzma.LZMAError,
    EOFError,
    struct.error,
    ValueError,
    LookupError,
    OverflowError,  # a time that no clock shows
)


def is_packed(file: Path) -> bool:
    """Whether its name says that it can be unpacked here."""
    return file.name.lower().endswith(SUFFIXES) and not file.name.startswith(".")


def is_archive(file: Path) -> bool:
    """Whether it is a file of such a name."""
    return is_packed(file) and file.is_file()


def place(archive: Path) -> Path:
    """The folder that `unpack` fills: the archive's name without its suffix, beside it."""
    suffix = max((s for s in SUFFIXES if archive.name.lower().endswith(s)), key=len, default="")
    return archive.with_name(archive.name[: len(archive.name) - len(suffix)])


def unpack(archive: Path) -> Path:
    """Fill the folder of the archive's name beside it, if there is none yet; returns it.

    A lone top folder of that very name is not repeated, and what macOS adds is left out. The folder appears whole or
    not at all. Raises DataError for a damaged archive, one that does not fit on the disk, and one with links or paths
    that leave the folder.
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
        raise DataError(f"{archive} is damaged ({_words(error)}); get it again.") from None
    except (NotImplementedError, RuntimeError) as error:  # a password, an unknown compression
        raise DataError(f"{archive} cannot be unpacked here ({error}); unpack it beside itself.") from None
    except OSError as error:
        if not error.errno:  # a decoder's, not the system's
            raise DataError(f"{archive} is damaged ({_words(error)}); get it again.") from None
        if not target.is_dir():  # else another process was first
            raise DataError(f"{archive} cannot be unpacked beside itself ({error.strerror}); unpack it.") from None
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return target


def _words(error: Exception) -> str:
    """Its first line; tarfile lists every way in which it failed."""
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
            packed.extractall(into, wanted)  # noqa: S202 - every path was looked at
        return
    total = 0
    with tarfile.open(archive) as packed_tar:
        for entry in packed_tar:
            _refuse_path(archive, entry.name)
            if not (entry.isfile() or entry.isdir()):
                raise DataError(f"{archive} holds {entry.name!r}, which is a link or a device; get it elsewhere.")
            total += max(0, entry.size) + MEMBER
            _refuse_bomb(archive, total)
            _refuse_room(archive, entry.size)
            if not _is_litter(entry.name):
                packed_tar.extract(entry, into, filter="data")


def _is_litter(name: str) -> bool:
    """What macOS puts beside the files that somebody packed."""
    steps = PurePosixPath(name).parts
    return "__MACOSX" in steps or any(step == ".DS_Store" or step.startswith("._") for step in steps)


def _refuse_path(archive: Path, name: str) -> None:
    path = PureWindowsPath(name)  # which takes both kinds of slashes
    if path.drive or path.root or ".." in path.parts:
        raise DataError(f"{archive} holds {name!r}, which leaves its folder; it is not safe: get it elsewhere.")


def _refuse_bomb(archive: Path, size: int) -> None:
    if size > BOMB * archive.stat().st_size + SLACK:
        raise DataError(f"{archive} would unpack to more than {BOMB} times its size; it is not safe: get it elsewhere.")


def _refuse_room(archive: Path, size: int) -> None:
    free = shutil.disk_usage(archive.parent).free
    if size > free:
        raise DataError(f"{archive} needs {size / 1e9:.1f} GB unpacked, {free / 1e9:.1f} GB are free; make room.")
