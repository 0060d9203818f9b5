"""What is made once and kept on disk: images, estimates, features, costs. Bounded: the least recently used go first.

CACHE/pixels/KEY/      an entry; CACHE/pixels/.KEY.lock stands beside it, its time that of the last use
CACHE/pixels/.KEY.draft/   being made, by whoever holds .KEY.build; left by a crash if nobody does
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import shutil
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self

from peftbench.errors import DataError, RequestError

Kind = Literal["pixels", "probes", "features", "audit", "measured"]
KINDS: tuple[Kind, ...] = ("pixels", "probes", "features", "audit", "measured")
LIMIT = 50 * 10**9  # bytes
UNITS = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}


@dataclass(frozen=True)
class Entry:
    """One thing that is kept."""

    kind: Kind
    folder: Path
    bytes: int
    used: float  # seconds since the epoch


class Hold:
    """A lock on an entry: shared by those who use it, or `alone` for who drops it. Let go when closed or forgotten.

    Raises BlockingIOError where `alone` cannot be had at once.
    """

    def __init__(self, folder: Path, *, alone: bool = False) -> None:
        how = fcntl.LOCK_EX | fcntl.LOCK_NB if alone else fcntl.LOCK_SH
        self._file: int | None = _locked(_beside(folder, "lock"), how)
        if not alone:
            os.utime(self._file)

    def close(self) -> None:
        """Let go."""
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        if hasattr(self, "_file"):
            self.close()


def _beside(folder: Path, what: str) -> Path:
    return folder.with_name(f".{folder.name}.{what}")


def _locked(file: Path, how: int) -> int:
    """An open file under a lock that is still the one at this path: who drops an entry unlinks its lock."""
    while True:
        opened = _opened(file)
        try:
            fcntl.flock(opened, how)
            if file.exists() and os.path.samestat(os.fstat(opened), file.stat()):
                return opened
        except BlockingIOError:
            os.close(opened)
            raise
        except FileNotFoundError:
            pass  # unlinked between the two looks: once more
        except OSError as error:
            os.close(opened)
            raise _unusable(file, error) from None
        os.close(opened)


def _opened(file: Path) -> int:
    try:
        file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        return os.open(file, os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise _unusable(file, error) from None


def _unusable(file: Path, error: OSError) -> DataError:
    where = f"Cannot use the cache at {file.parent.parent} ({error.strerror})"
    return DataError(f"{where}; choose another folder with --cache.")


@contextmanager
def making(folder: Path) -> Iterator[Path]:
    """A draft of the entry, empty and this process's alone; others wait. Put in its place with `publish`."""
    draft = _beside(folder, "draft")
    with building(folder):
        try:
            shutil.rmtree(draft, ignore_errors=True)  # of a process that died
            draft.mkdir(mode=0o700)
            yield draft
        finally:
            shutil.rmtree(draft, ignore_errors=True)


@contextmanager
def building(path: Path) -> Iterator[None]:
    """What lies at `path`, or will, is this process's alone to make; others wait."""
    build = _beside(path, "build")
    opened = _locked(build, fcntl.LOCK_EX)
    try:
        yield
    finally:
        build.unlink(missing_ok=True)
        os.close(opened)


def publish(draft: Path, folder: Path) -> None:
    """The finished draft becomes the entry; whoever has the files of a former one open keeps them."""
    former = _beside(folder, "former")
    shutil.rmtree(former, ignore_errors=True)
    with suppress(FileNotFoundError):
        folder.rename(former)
    draft.rename(folder)
    shutil.rmtree(former, ignore_errors=True)


# --- bounds ----------------------------------------------------------------------------------------------------------


def entries(root: Path, kinds: Iterable[Kind] = KINDS) -> list[Entry]:
    """Everything that is kept, the most recently used first."""
    found = (_entry(kind, folder) for kind in kinds for folder in _folders(root / kind))
    return sorted((entry for entry in found if entry), key=lambda entry: -entry.used)


def _folders(place: Path) -> list[Path]:
    return [f for f in place.iterdir() if f.is_dir() and not f.name.startswith(".")] if place.is_dir() else []


def _entry(kind: Kind, folder: Path) -> Entry | None:
    """None for one that another process drops at this moment."""
    lock = _beside(folder, "lock")
    try:
        used = (lock if lock.exists() else folder).stat().st_mtime
    except FileNotFoundError:
        return None
    return Entry(kind, folder, _size(folder), used)


def _size(folder: Path) -> int:
    total = 0
    for file in folder.rglob("*"):
        with suppress(FileNotFoundError):  # another process may be at work here
            total += file.stat().st_size
    return total


def shrink(root: Path, limit: int) -> list[Entry]:
    """Drop the least recently used entries until the rest fits, never one in use, and what crashes left.

    Returns those that were dropped.
    """
    _sweep(root)
    found, dropped = entries(root), list[Entry]()
    excess = sum(entry.bytes for entry in found) - limit
    for entry in reversed(found):
        if excess > 0 and drop(entry):
            dropped.append(entry)
            excess -= entry.bytes
    return dropped


def drop(entry: Entry) -> bool:
    """Remove an entry, unless somebody uses it."""
    try:
        with Hold(entry.folder, alone=True):
            shutil.rmtree(entry.folder, ignore_errors=True)
            _beside(entry.folder, "lock").unlink(missing_ok=True)
    except BlockingIOError:
        return False
    return True


def _sweep(root: Path) -> None:
    for left in [path for kind in KINDS for path in (root / kind).glob(".*.draft")]:
        build = left.with_suffix(".build")
        with suppress(BlockingIOError):
            opened = _locked(build, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(left, ignore_errors=True)
            build.unlink(missing_ok=True)
            os.close(opened)


def refuse_full(folder: Path, needed: int) -> None:
    """Raise DataError where the disk has no room for what is about to be made."""
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise _no_room(folder, needed, free)


def reserve(file: Path) -> None:
    """Have all of a sparse file's bytes set aside: who writes into a mapped file on a full disk is killed.

    Raises DataError. Where the system cannot do it, nothing happens.
    """
    if not hasattr(os, "posix_fallocate"):
        return
    size = file.stat().st_size
    with file.open("r+b") as opened:
        try:
            os.posix_fallocate(opened.fileno(), 0, size)
        except OSError as error:
            if error.errno == errno.ENOSPC:
                raise _no_room(file.parent, size, shutil.disk_usage(file.parent).free) from None


def _no_room(folder: Path, needed: int, free: int) -> DataError:
    return DataError(
        f"Decoded images need {needed / 1e9:.1f} GB in {folder}, where {free / 1e9:.1f} GB are free; make room "
        "(`peftbench cache clear`), or choose another disk with --cache."
    )


def parse_size(text: str) -> int:
    """`50GB`, `500M` or a number of bytes. Raises RequestError."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kMGT]?)i?B?", text.strip())
    if not found:
        raise RequestError(f"Cannot read the size {text!r}: write a number with k, M, G or T, such as 50G.")
    return round(float(found[1]) * UNITS[found[2]])


def since(used: float) -> str:
    """How long ago, in one unit."""
    seconds = max(0.0, time.time() - used)
    for unit, length in (("day", 86400), ("hour", 3600), ("minute", 60)):
        if seconds >= length:
            count = int(seconds // length)
            return f"{count} {unit}{'s' if count > 1 else ''} ago"
    return "now"
