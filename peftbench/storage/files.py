"""Atomic writes, private folders and SHA-256 digests: the only module that makes them."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeAlias

Content: TypeAlias = bytes | memoryview
PRIVATE_FOLDER = 0o700
PRIVATE_FILE = 0o600
SHARED_FILE = 0o666  # less the umask
TEMPORARIES = (".*.draft", ".tmp*")  # names of files that are not complete yet, safetensors' own included
DISK_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS})


# --- writes ----------------------------------------------------------------------------------------------------------


def write_bytes(file: Path, content: Content, *, private: bool = False) -> None:
    """Write all of `content` or leave `file` as it was: reserve, write beside it, flush to the disk, rename.

    `private`: readable by the owner only, whatever the umask. Raises OSError that names `file`.
    """
    with replacing(file, private=private) as draft, draft.open("r+b", buffering=0) as out:
        view = memoryview(content).cast("B")
        reserve(out.fileno(), len(view))
        while view:
            view = view[out.write(view) :]


@contextmanager
def replacing(file: Path, *, private: bool = False) -> Iterator[Path]:
    """Yield an empty temporary file beside `file`; flush it to the disk and rename it if the block succeeds.

    For writers that need a path. Raises OSError that names `file`, not the temporary.
    """
    draft = file.with_name(f".{uuid.uuid4().hex}.draft")
    try:
        os.close(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, PRIVATE_FILE if private else SHARED_FILE))
        yield draft
        flush(draft)
        draft.replace(file)
    except OSError as error:
        if error.errno is None or error.filename not in {None, str(draft)}:
            raise
        raise OSError(error.errno, error.strerror, str(file)) from None
    finally:
        with suppress(OSError):
            draft.unlink(missing_ok=True)


def write_text(file: Path, text: str, *, private: bool = False) -> None:
    """Write UTF-8 atomically; names of files that are not UTF-8 keep their bytes. Raises OSError."""
    write_bytes(file, text.encode(errors="surrogateescape"), private=private)


def write_json(file: Path, value: Any, *, private: bool = False) -> None:  # noqa: ANN401 - any JSON value
    """Write indented JSON with sorted keys atomically; what JSON does not know is written as a list. Raises OSError."""
    write_bytes(file, json.dumps(value, indent=1, sort_keys=True, default=list).encode(), private=private)


def remove_temporaries(folder: Path) -> None:
    """Remove the incomplete files that a killed process left anywhere in `folder`; the caller holds its lock."""
    for pattern in TEMPORARIES:
        for draft in folder.rglob(pattern):
            draft.unlink(missing_ok=True)


def flush(file: Path) -> None:
    """Wait until the content of a file is on the disk."""
    number = os.open(file, os.O_RDWR)
    try:
        os.fsync(number)
    finally:
        os.close(number)


def reserve(number: int, size: int) -> None:
    """Set aside `size` bytes of disk for the open file `number`, where the file system can.

    A full disk is then an OSError here, not a signal that kills the process while it writes into a mapped file.
    """
    if not size or not hasattr(os, "posix_fallocate"):
        return
    try:
        os.posix_fallocate(number, 0, size)
    except OSError as error:
        if is_disk_full(error):
            raise


def make_private_folder(path: Path) -> Path:
    """Make a folder and its missing parents for the owner only (0700), whatever the umask; return it.

    Folders that exist keep their permissions. Raises OSError.
    """
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    for folder in reversed(missing):
        with suppress(FileExistsError):  # another process made it; a file in its place is refused below
            folder.mkdir(mode=PRIVATE_FOLDER)
            folder.chmod(PRIVATE_FOLDER)
    if not path.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(path))
    return path


def is_disk_full(error: BaseException) -> bool:
    """Return whether the system refused to store more: no space, over quota, file too large or read-only.

    Also of safetensors, which gives the error number in its message only.
    """
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno in DISK_FULL
    return any(f"(os error {number})" in str(error) for number in DISK_FULL)


# --- digests ---------------------------------------------------------------------------------------------------------


def sha256(content: Content) -> str:
    """Return the SHA-256 of bytes, in hexadecimal digits."""
    return sha256_pieces([content])


def sha256_pieces(pieces: Iterable[Content]) -> str:
    """Return the SHA-256 of the pieces put together; each may be an array's memory, in C order."""
    total = hashlib.sha256()
    for piece in pieces:
        total.update(piece)
    return total.hexdigest()


def sha256_file(file: Path) -> str:
    """Return the SHA-256 of a file's bytes, read in pieces. Raises OSError."""
    return checksum(file, "sha256")


def checksum(file: Path, kind: str) -> str:
    """Return the digest of a file by `sha256`, or by the `md5` that some publishers state. Raises OSError."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, lambda: hashlib.new(kind, usedforsecurity=False)).hexdigest()


def sha256_json(value: object, *, spaced: bool = False) -> str:
    """Return the SHA-256 of canonical JSON: sorted keys, ASCII, no spaces.

    `spaced`: with a space after comma and colon, as the seals that files have held since version 0.1.0.
    """
    separators = (", ", ": ") if spaced else (",", ":")
    return sha256(json.dumps(value, sort_keys=True, separators=separators, default=list).encode())
