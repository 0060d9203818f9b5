"""Download a data set's files: resumable, checked against published sizes and checksums, then unpacked.

`manual_steps` explains how to get data sets that cannot be downloaded. pooch is not used because it cannot resume.
"""

from __future__ import annotations

import http.client
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

from filelock import FileLock, Timeout

from peftbench.core.catalogue import DatasetEntry, OwnEntry, dataset_entry
from peftbench.core.syntax import Spec, parse
from peftbench.errors import DataError, RequestError
from peftbench.storage import archives
from peftbench.storage.files import checksum
from peftbench.storage.sizes import format_size

ATTEMPTS = 6  # consecutive ones without a new byte
PAUSE = 2.0  # seconds before the next attempt, times the failures in a row
TIMEOUT = 60.0  # seconds without a byte
BLOCK = 1 << 20  # bytes read at a time
RANGE_NOT_SATISFIABLE = 416  # the server has no byte after those already downloaded
PARTIAL_CONTENT = 206

DownloadProgress = Callable[[str, int, int], None]  # file, bytes downloaded, bytes in all (0 = unknown)


@dataclass(frozen=True)
class RemoteFile:
    """A file to download."""

    url: str
    target: Path
    checksum: str = ""  # "sha256:..." or "md5:..."; "" = none is published
    size: int = 0  # bytes; 0 = not published


# --- what to download ------------------------------------------------------------------------------------------------


def remote_files(name: str, root: Path) -> list[RemoteFile]:
    """Return the files of a data set, or of one set of a collection (`medmnist:NAME[size=64]`); [] = manual only.

    Raises UnknownNameError and RequestError.
    """
    spec = parse(name)
    entry = dataset_entry(spec.name)
    files = {**dict.fromkeys(entry.checksums if entry.download.base else (), ""), **entry.download.urls}
    chosen = _member_files(spec, entry, list(files)) if entry.members else list(files)
    return [
        RemoteFile(
            files[file] or entry.download.base.format(file=file),
            root / spec.name / file,
            entry.checksums.get(file, ""),
            entry.download.sizes.get(file, 0),
        )
        for file in chosen
    ]


def _member_files(spec: Spec, entry: DatasetEntry, files: list[str]) -> list[str]:
    """Return the file of one set: NAME.npz at the smallest size, else NAME_SIZE.npz."""
    stems = {file.partition(".")[0]: file for file in files}
    size = str(spec.fields.get("size", ""))
    for stem in (f"{spec.argument}_{size}", *([str(spec.argument)] if size in {"", "28"} else [])):
        if stem in stems:
            return [stems[stem]]
    raise RequestError(
        f"{entry.title} has no file for {str(spec)!r}. Write {spec.name}:NAME or {spec.name}:NAME[size=64] with one of "
        f"{', '.join(entry.members)}."
    )


def terms(name: str) -> str:
    """Return the terms to accept before a download; "" if the licence allows anyone to download."""
    spec = parse(name)
    entry = dataset_entry(spec.name)
    member = entry.members.get(spec.argument or "")
    member_terms = f"{member.title}: {member.licence}." if member and member.licence else ""
    return entry.download.accept or member_terms


def manual_steps(name: str, root: Path) -> list[str]:
    """Return the lines that explain how to get a data set that cannot be downloaded."""
    entry = dataset_entry(parse(name).name)
    if isinstance(entry, OwnEntry):
        return [f"{entry.title} is described in datasets/{name}.toml: put its images at {entry.path}."]
    return [
        f"{entry.title} cannot be downloaded automatically.",
        f"Licence: {entry.licence}",
        *(f"Source: {source}" for source in entry.sources),
        entry.how_to_get,
        f"Put the files into {root / parse(name).name}:",
        *entry.layout.strip().splitlines(),
    ]


# --- downloading -----------------------------------------------------------------------------------------------------


def fetch(file: RemoteFile, progress: DownloadProgress | None = None, *, keep: bool = False) -> Path:
    """Download and check one file, unpack it if it is an archive, and remove the archive unless `keep`.

    Files that are here are not downloaded again. Returns the resulting folder or file. Raises DataError if the server
    does not answer, if size or checksum differ, if the archive is unsafe and if the disk is full.
    """
    folder = archives.place(file.target)
    packed = archives.is_packed(file.target)
    if packed and folder.is_dir():
        return folder
    if not file.target.is_file():
        file.target.parent.mkdir(parents=True, exist_ok=True)
        _download(file, progress or (lambda _file, _done, _total: None))
    _check(file, file.target)
    if not packed:
        return file.target
    folder = archives.unpack(file.target)
    if not keep:
        file.target.unlink()
    return folder


def _download(file: RemoteFile, progress: DownloadProgress) -> None:
    part = file.target.with_name(f".{file.target.name}.part")
    with _locked(part):
        resumed = part.stat().st_size > 0
        _resume(file, part, progress)
        try:
            _check(file, part)
        except DataError:
            if not resumed:
                raise
            _resume(file, part, progress)  # the bytes of the earlier download may belong to another version
            _check(file, part)
        part.replace(file.target)


@contextmanager
def _locked(part: Path) -> Iterator[None]:
    """Create the partial file if needed and lock it against other processes."""
    lock = part.with_name(f"{part.name}.lock")
    try:
        with FileLock(lock, blocking=False):
            part.touch()
            try:
                yield
            finally:
                if part.is_file() and not part.stat().st_size:
                    part.unlink()  # nothing to resume from
                lock.unlink(missing_ok=True)
    except Timeout:
        raise DataError(
            f"Another process is downloading {part.parent / part.stem[1:]}. Wait until it has finished."
        ) from None


def _resume(file: RemoteFile, part: Path, progress: DownloadProgress) -> None:
    """Append to `part` until it is complete; retry after every interruption."""
    failures, why = 0, ""
    while failures < ATTEMPTS:
        before = part.stat().st_size
        try:
            if _request(file, part, progress):
                return
            why = "the response ended early"
        except HTTPError as error:
            if error.code < 500 and error.code not in {408, 429}:  # noqa: PLR2004 - a retry would fail too
                raise DataError(
                    f"Download failed: {file.url} answers {error.code} {error.reason}. Download {file.target} manually."
                ) from None
            why = f"the server answered {error.code}"
        except (URLError, OSError, http.client.HTTPException) as error:
            why = str(getattr(error, "reason", error)) or type(error).__name__
        failures = 0 if part.stat().st_size > before else failures + 1
        time.sleep(PAUSE * failures)
    here = part.stat().st_size
    raise DataError(f"Download of {file.url} failed: {why}. Run the command again to resume at byte {here:,}.")


def _request(file: RemoteFile, part: Path, progress: DownloadProgress) -> bool:
    """Request the missing bytes and append them; return whether the file is complete."""
    here = part.stat().st_size
    headers = {"User-Agent": f"peftbench/{version('peftbench')}", "Accept-Encoding": "identity"}
    request = Request(file.url, headers=headers | ({"Range": f"bytes={here}-"} if here else {}))  # noqa: S310 - see below
    if request.type not in {"http", "https"}:
        raise DataError(f"{file.url} is not an http or https address. Correct it in the data set's TOML file.")
    try:
        with urlopen(request, timeout=TIMEOUT) as answer:  # noqa: S310 - web addresses only
            here = _continues(answer, here)
            total = here + int(answer.headers.get("Content-Length") or 0)
            _refuse_size(file, total, part)
            return _append(answer, part, here, total, lambda done: progress(file.target.name, done, total or file.size))
    except HTTPError as error:
        if error.code == RANGE_NOT_SATISFIABLE and here:
            return True  # complete, or another file: the checksum decides
        raise


def _continues(answer: http.client.HTTPResponse, here: int) -> int:
    """Return the byte at which the answer starts: `here`, or 0 from a server that does not support ranges."""
    content_range = answer.headers.get("Content-Range", "")
    return here if answer.status == PARTIAL_CONTENT and content_range.startswith(f"bytes {here}-") else 0


def _append(answer: http.client.HTTPResponse, part: Path, here: int, total: int, tick: Callable[[int], None]) -> bool:
    """Write the answer to `part` from byte `here` on; return whether it reached its announced length."""
    limit = total or shutil.disk_usage(part.parent).free
    with part.open("r+b") as out:
        out.truncate(here)
        out.seek(here)
        while block := answer.read1(BLOCK):  # returns what has arrived, so a slow connection loses nothing
            here += len(block)
            if here > limit:
                raise DataError(
                    f"Download stopped: {part} exceeds the announced {limit:,} bytes. Run the command again."
                )
            out.write(block)
            tick(here)
        os.fsync(out.fileno())
    return here == total or not total


def _refuse_size(file: RemoteFile, total: int, part: Path) -> None:
    if file.size and total and total != file.size:
        raise DataError(
            f"{file.url} has {total:,} bytes instead of the published {file.size:,}: it is a different file."
        )
    room = shutil.disk_usage(part.parent).free + part.stat().st_size
    if total > room:
        raise DataError(f"{file.target} needs {format_size(total)}, but {format_size(room)} are free. Free disk space.")


def _check(file: RemoteFile, there: Path) -> None:
    """Raise DataError for a file that differs from the published one; a partial file is emptied first."""
    size, (kind, _, digest) = there.stat().st_size, (file.checksum or "sha256:").partition(":")
    if file.size and size != file.size:
        why = f"has {size:,} bytes instead of {file.size:,}"
    elif digest and (found := checksum(there, kind)) != digest.lower():
        why = f"has {kind} {found} instead of the published {digest}"
    else:
        return
    if there == file.target:
        raise DataError(f"{there} {why}. Move it away to download the published file.")
    os.truncate(there, 0)
    raise DataError(f"The file from {file.url} {why}. Run the command again, or download it from another source.")
