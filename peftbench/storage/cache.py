"""The cache: decoded images, gradient estimates, features, audits and measured costs, kept on disk between jobs.

CACHE/pixels/KEY/          an entry; the time of CACHE/pixels/.KEY.lock beside it is that of its last use
CACHE/pixels/.ID.lease     locked by a process; .ID.names beside it lists the entries that it uses
CACHE/pixels/.KEY.draft/   an entry in the making, by the holder of the lock .KEY.build; else left by a crash

Folders are readable by their owner only. The size is bounded: the least recently used entries are removed first.
"""

from __future__ import annotations

import atexit
import errno
import fcntl
import os
import shutil
import uuid
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from threading import RLock
from typing import Literal, Self

from filelock import Timeout, UnixFileLock

from peftbench.errors import DataError
from peftbench.storage import files
from peftbench.storage.sizes import format_size

CacheKind = Literal["pixels", "probes", "features", "audit", "measured"]
KINDS: tuple[CacheKind, ...] = ("pixels", "probes", "features", "audit", "measured")
LIMIT = 50 * 10**9  # bytes


@dataclass(frozen=True)
class CacheEntry:
    """A folder of the cache."""

    kind: CacheKind
    folder: Path
    bytes: int
    used: float  # time of the last use, in seconds since the epoch


# --- locks -----------------------------------------------------------------------------------------------------------


class Hold:
    """A lock on an entry: shared while the entry is used, exclusive (`alone`) to remove it.

    It ends when it is closed or garbage-collected, and with its process. Shared ones need no open file each: they are
    names in a list that the process keeps locked, so that a study may use thousands of entries. Raises BlockingIOError
    if the exclusive lock is not free, DataError if the cache cannot be written or locked.
    """

    def __init__(self, folder: Path, *, alone: bool = False) -> None:
        self._folder, self._number, self._lease = folder, None, None
        number: int | None = _flocked(
            _beside(folder, "lock"), fcntl.LOCK_EX | fcntl.LOCK_NB if alone else fcntl.LOCK_SH
        )
        try:
            if alone and _is_leased(folder):
                raise BlockingIOError(errno.EWOULDBLOCK, os.strerror(errno.EWOULDBLOCK), str(folder))
            if alone:
                self._number, number = number, None
            else:
                os.utime(number or 0)
                self._lease = _add_to_lease(folder)
        finally:
            if number is not None:
                os.close(number)

    def close(self) -> None:
        """End the lock."""
        if self._number is not None:
            os.close(self._number)
        if self._lease is not None:
            _remove_from_lease(self._lease, self._folder.name)
        self._number = self._lease = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        if hasattr(self, "_lease"):
            self.close()


class _Lease:
    """The names of the entries in a folder that this process uses, valid while the lease's file is locked."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / f".{uuid.uuid4().hex}.lease"
        self.number, self.process, self.names = _flocked(self.file, fcntl.LOCK_EX), os.getpid(), Counter[str]()

    def write(self) -> None:
        """Write the list atomically, or end the lease if it is empty."""
        if not +self.names:
            self.end()
            return
        draft = self.file.with_suffix(".new")
        with suppress(FileNotFoundError):  # the whole cache was removed
            draft.write_text("".join(f"{name}\n" for name in +self.names), encoding="utf-8")
            draft.replace(_names_of(self.file))

    def end(self) -> None:
        """Remove the files and unlock."""
        _remove_lease(self.file)
        os.close(self.number)
        _LEASES.pop(self.file.parent, None)


_LEASES: dict[Path, _Lease] = {}  # of this process, by folder
_GUARD = RLock()


def _add_to_lease(folder: Path) -> _Lease:
    """List an entry as used by this process; in a new lease after a fork or if the cache was removed."""
    with _GUARD:
        lease = _LEASES.get(folder.parent)
        if lease is None or lease.process != os.getpid() or not lease.file.exists():
            lease = _LEASES[folder.parent] = _Lease(folder.parent)
        lease.names[folder.name] += 1
        lease.write()
        return lease


def _remove_from_lease(lease: _Lease, name: str) -> None:
    """Take an entry off the list once; a forked process leaves its parent's list as it is."""
    with _GUARD:
        if lease.process == os.getpid():
            lease.names[name] -= 1
            if _LEASES.get(lease.file.parent) is lease:
                lease.write()


@atexit.register
def _end_leases() -> None:
    for lease in list(_LEASES.values()):
        if lease.process == os.getpid():
            lease.end()


def _names_of(lease: Path) -> Path:
    return lease.with_suffix(".names")


def _remove_lease(lease: Path) -> None:
    for file in (lease, _names_of(lease), lease.with_suffix(".new")):
        file.unlink(missing_ok=True)


def _is_leased(folder: Path) -> bool:
    """Return whether a process that lives uses an entry; the lists of others are removed."""
    return any(folder.name in names for names in _leased(folder.parent))


def _leased(folder: Path) -> Iterator[list[str]]:
    """Yield the names on each list in a folder whose process lives; remove the other lists."""
    for file in folder.glob(".*.lease"):
        with suppress(FileNotFoundError):
            number = os.open(file, os.O_RDWR)
            try:
                fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
                _remove_lease(file)
            except BlockingIOError:
                yield _names_of(file).read_text(encoding="utf-8").splitlines()
            finally:
                os.close(number)


def _beside(folder: Path, what: str) -> Path:
    return folder.with_name(f".{folder.name}.{what}")


def _flocked(file: Path, operation: int) -> int:
    """Return the number of an open, locked file that is still at its path: removing an entry unlinks its lock."""
    while True:
        number = _opened(file)
        try:
            fcntl.flock(number, operation)
            if file.exists() and os.path.samestat(os.fstat(number), file.stat()):
                return number
        except BlockingIOError:
            os.close(number)
            raise
        except FileNotFoundError:
            pass  # unlinked between `exists` and `stat`: try again
        except OSError as error:
            os.close(number)
            raise _unusable(file, error) from None
        os.close(number)


def _opened(file: Path) -> int:
    try:
        files.make_private_folder(file.parent)
        return os.open(file, os.O_RDWR | os.O_CREAT, files.PRIVATE_FILE)
    except OSError as error:
        raise _unusable(file, error) from None


def _unusable(file: Path, error: OSError) -> DataError:
    problem = f"Cannot use the cache at {file.parent.parent} ({error.strerror})"
    return DataError(f"{problem}; choose another folder with --cache.")


@contextmanager
def building(path: Path, *, wait: bool = True) -> Iterator[None]:
    """Lock the making of what will be at `path`, a folder or a file; other processes wait.

    Raises filelock.Timeout without `wait` if another process makes it, DataError if the cache cannot be locked.
    """
    file = _beside(path, "build")
    lock = UnixFileLock(file, mode=files.PRIVATE_FILE, fallback_to_soft=False)
    try:
        files.make_private_folder(file.parent)
        lock.acquire(blocking=wait)
    except Timeout:
        raise
    except OSError as error:
        raise _unusable(file, error) from None
    try:
        yield
    finally:
        file.unlink(missing_ok=True)
        lock.release()


@contextmanager
def making(folder: Path) -> Iterator[Path]:
    """Yield an empty folder in which this process makes an entry while others wait; `publish` puts it in place."""
    draft = _beside(folder, "draft")
    with building(folder):
        try:
            shutil.rmtree(draft, ignore_errors=True)  # of a process that died
            draft.mkdir(mode=files.PRIVATE_FOLDER)
            yield draft
        finally:
            shutil.rmtree(draft, ignore_errors=True)


def publish(draft: Path, folder: Path) -> None:
    """Rename a complete draft to the entry's folder; processes that have the old entry's files open keep them."""
    former = _beside(folder, "former")
    shutil.rmtree(former, ignore_errors=True)
    with suppress(FileNotFoundError):
        folder.rename(former)
    draft.rename(folder)
    shutil.rmtree(former, ignore_errors=True)


# --- size ------------------------------------------------------------------------------------------------------------


def entries(root: Path, kinds: Iterable[CacheKind] = KINDS) -> list[CacheEntry]:
    """Return the entries of these kinds, the most recently used first."""
    found = (_entry(kind, folder) for kind in kinds for folder in _folders(root / kind))
    return sorted((entry for entry in found if entry), key=lambda entry: -entry.used)


def _folders(place: Path) -> list[Path]:
    return [f for f in place.iterdir() if f.is_dir() and not f.name.startswith(".")] if place.is_dir() else []


def _entry(kind: CacheKind, folder: Path) -> CacheEntry | None:
    """Return None if another process removes the entry at this moment."""
    lock = _beside(folder, "lock")
    try:
        used = (lock if lock.exists() else folder).stat().st_mtime
    except FileNotFoundError:
        return None
    return CacheEntry(kind, folder, _size(folder), used)


def _size(folder: Path) -> int:
    total = 0
    for file in folder.rglob("*"):
        with suppress(FileNotFoundError):  # another process may be writing here
            total += file.stat().st_size
    return total


def shrink(root: Path, limit: int) -> list[CacheEntry]:
    """Remove what crashes left and the least recently used entries, except those in use, until `limit` bytes remain.

    Return the removed entries.
    """
    _sweep(root)
    found, dropped = entries(root), list[CacheEntry]()
    excess = sum(entry.bytes for entry in found) - limit
    for entry in reversed(found):
        if excess > 0 and drop(entry):
            dropped.append(entry)
            excess -= entry.bytes
    return dropped


def drop(entry: CacheEntry) -> bool:
    """Remove an entry unless it is in use; return whether it was removed."""
    try:
        with Hold(entry.folder, alone=True):
            shutil.rmtree(entry.folder, ignore_errors=True)
            _beside(entry.folder, "lock").unlink(missing_ok=True)
    except BlockingIOError:
        return False
    return True


def _sweep(root: Path) -> None:
    """Remove the drafts and leases of processes that died."""
    for kind in KINDS:
        list(_leased(root / kind))
    for draft in [path for kind in KINDS for path in (root / kind).glob(".*.draft")]:
        with suppress(Timeout), building(draft.with_name(draft.stem.removeprefix(".")), wait=False):
            shutil.rmtree(draft, ignore_errors=True)


# --- full disks ------------------------------------------------------------------------------------------------------


@contextmanager
def reserved(file: Path, needed: int) -> Iterator[None]:
    """Make a sparse file of about `needed` bytes in this block, whose bytes are then set aside on the disk.

    Writing into a mapped file on a full disk would kill the process. Raises DataError if the disk lacks room. Where
    the file system cannot set bytes aside, it does not.
    """
    if needed > shutil.disk_usage(file.parent).free:
        raise _no_room(file.parent, needed, "No space left on device")
    try:
        yield
        with file.open("r+b") as opened:
            files.reserve(opened.fileno(), file.stat().st_size)
    except OSError as error:
        if not files.is_disk_full(error):
            raise
        raise _no_room(file.parent, needed, str(error.strerror)) from None


def _no_room(folder: Path, needed: int, problem: str) -> DataError:
    free = format_size(shutil.disk_usage(folder).free)
    return DataError(
        f"Cannot write {format_size(needed)} of decoded images into {folder} ({problem}; {free} free); make room "
        "(`peftbench cache clear`) or choose another disk with --cache."
    )
