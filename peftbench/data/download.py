"""Getting a data set's files: downloads that go on where they stopped, held to size and checksum, then unpacked.

Where no file may be had without asking, it says what to do by hand. pooch knows checksums, but no resuming.
"""

from __future__ import annotations

import fcntl
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

from peftbench.core.catalogue import DatasetEntry, OwnEntry, dataset_entry
from peftbench.core.syntax import Spec, parse
from peftbench.errors import DataError, RequestError
from peftbench.storage import archives

ATTEMPTS = 6  # in a row without one new byte
PAUSE = 2.0  # seconds before the next attempt, longer each time
TIMEOUT = 60.0  # seconds without a byte
BLOCK = 1 << 20  # bytes
GONE = 416  # the server has nothing behind the bytes that are here
PARTIAL = 206

Watch = Callable[[str, int, int], None]  # file, bytes here, bytes in all (0 = unknown)


@dataclass(frozen=True)
class Wanted:
    """One file to download."""

    url: str
    target: Path
    checksum: str = ""  # "sha256:..." or "md5:..."; "" = none is published
    size: int = 0  # bytes; 0 = not published


# --- what is asked for -----------------------------------------------------------------------------------------------


def wanted(name: str, root: Path) -> list[Wanted]:
    """The files of a data set, or of one set of a collection (`medmnist:NAME[size=64]`); empty: by hand only.

    Raises UnknownNameError and RequestError.
    """
    spec = parse(name)
    entry = dataset_entry(spec.name)
    files = {**dict.fromkeys(entry.checksums if entry.download.base else (), ""), **entry.download.urls}
    chosen = _of_member(spec, entry, list(files)) if entry.members else list(files)
    return [
        Wanted(
            files[file] or entry.download.base.format(file=file),
            root / spec.name / file,
            entry.checksums.get(file, ""),
            entry.download.sizes.get(file, 0),
        )
        for file in chosen
    ]


def _of_member(spec: Spec, entry: DatasetEntry, files: list[str]) -> list[str]:
    """NAME.npz without a size or at its smallest, else NAME_SIZE.npz."""
    stems = {file.partition(".")[0]: file for file in files}
    size = str(spec.fields.get("size", ""))
    for stem in (f"{spec.argument}_{size}", *([str(spec.argument)] if size in {"", "28"} else [])):
        if stem in stems:
            return [stems[stem]]
    raise RequestError(
        f"{entry.title} has no file for {str(spec)!r}: write {spec.name}:NAME or {spec.name}:NAME[size=64] with one of "
        f"{', '.join(entry.members)}."
    )


def terms(name: str) -> str:
    """What must be accepted before a download; "" where the licence asks nothing of who only downloads."""
    spec = parse(name)
    entry = dataset_entry(spec.name)
    member = entry.members.get(spec.argument or "")
    own = f"{member.title}: {member.licence}." if member and member.licence else ""
    return entry.download.accept or own


def by_hand(name: str, root: Path) -> list[str]:
    """What to do where nothing can be downloaded, line by line."""
    entry = dataset_entry(parse(name).name)
    if isinstance(entry, OwnEntry):
        return [f"{entry.title} is a description of your own, datasets/{name}.toml: its images belong at {entry.path}."]
    return [
        f"{entry.title} cannot be downloaded for you.",
        f"Licence: {entry.licence}",
        *(f"Source: {source}" for source in entry.sources),
        entry.how_to_get,
        f"Put the files into {root / parse(name).name}:",
        *entry.layout.strip().splitlines(),
    ]


# --- downloading -----------------------------------------------------------------------------------------------------


def fetch(file: Wanted, watch: Watch | None = None, *, keep: bool = False) -> Path:
    """Download and check one file, unpack it if it is an archive, and remove the archive unless `keep`.

    What is here already is not downloaded again. Returns the folder or file that is there afterwards. Raises DataError:
    no answer, another size or checksum, an archive that is not safe, no room on the disk.
    """
    folder = archives.place(file.target)
    packed = archives.is_packed(file.target)
    if packed and folder.is_dir():
        return folder
    if not file.target.is_file():
        file.target.parent.mkdir(parents=True, exist_ok=True)
        _download(file, watch or (lambda _what, _done, _total: None))
    _refuse_other(file, file.target)
    if not packed:
        return file.target
    folder = archives.unpack(file.target)
    if not keep:
        file.target.unlink()
    return folder


def _download(file: Wanted, watch: Watch) -> None:
    part = file.target.with_name(f".{file.target.name}.part")
    with _alone(part):
        resumed = part.stat().st_size > 0
        _read_on(file, part, watch)
        try:
            _refuse_other(file, part)
        except DataError:
            if not resumed:
                raise
            _read_on(file, part, watch)  # what was here before may have been of another file
            _refuse_other(file, part)
        part.replace(file.target)


@contextmanager
def _alone(part: Path) -> Iterator[None]:
    """The partial file, made if there is none, against other processes."""
    with part.open("ab") as held:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DataError(f"Another process is downloading {part}; wait for it.") from None
        try:
            yield
        finally:
            if not os.fstat(held.fileno()).st_size:
                part.unlink(missing_ok=True)  # nothing to go on from


def _read_on(file: Wanted, part: Path, watch: Watch) -> None:
    """Append to `part` until all is there; every stop is followed by another attempt."""
    failures, why = 0, ""
    while failures < ATTEMPTS:
        before = part.stat().st_size
        try:
            if _request(file, part, watch):
                return
            why = "the answer ended early"
        except HTTPError as error:
            if error.code < 500 and error.code not in {408, 429}:  # noqa: PLR2004 - asking again changes nothing
                raise DataError(f"{file.url} answers {error.code} {error.reason}; get {file.target} by hand.") from None
            why = f"the server answers {error.code}"
        except (URLError, OSError, http.client.HTTPException) as error:
            why = str(getattr(error, "reason", error)) or type(error).__name__
        failures = 0 if part.stat().st_size > before else failures + 1
        time.sleep(PAUSE * failures)
    here = part.stat().st_size
    raise DataError(f"{file.url} cannot be read on: {why}. The same command goes on from {here:,} bytes.")


def _request(file: Wanted, part: Path, watch: Watch) -> bool:
    """One request for what is missing; whether the file is whole afterwards."""
    here = part.stat().st_size
    headers = {"User-Agent": f"peftbench/{version('peftbench')}", "Accept-Encoding": "identity"}
    asked = Request(file.url, headers=headers | ({"Range": f"bytes={here}-"} if here else {}))  # noqa: S310 - see below
    if asked.type not in {"http", "https"}:
        raise DataError(f"{file.url} is no web address; mend the catalogue.")
    try:
        with urlopen(asked, timeout=TIMEOUT) as answer:  # noqa: S310 - web addresses only
            here = _continues(answer, here)
            total = here + int(answer.headers.get("Content-Length") or 0)
            _refuse_size(file, total, part)
            return _append(answer, part, here, total, lambda done: watch(file.target.name, done, total or file.size))
    except HTTPError as error:
        if error.code == GONE and here:
            return True  # all of it, or of something else: the checksum tells
        raise


def _continues(answer: http.client.HTTPResponse, here: int) -> int:
    """From which byte the answer begins: behind those that are here, or anew where the server knows no ranges."""
    says = answer.headers.get("Content-Range", "")
    return here if answer.status == PARTIAL and says.startswith(f"bytes {here}-") else 0


def _append(answer: http.client.HTTPResponse, part: Path, here: int, total: int, tick: Callable[[int], None]) -> bool:
    """Write the answer behind byte `here`; whether it came to its announced end."""
    limit = total or shutil.disk_usage(part.parent).free
    with part.open("r+b") as out:
        out.truncate(here)
        out.seek(here)
        while block := answer.read1(BLOCK):  # what has come: of a slow line, too, nothing is lost
            here += len(block)
            if here > limit:
                raise DataError(f"{part} grew beyond {limit:,} bytes; the answer is not what was announced.")
            out.write(block)
            tick(here)
        os.fsync(out.fileno())
    return here == total or not total


def _refuse_size(file: Wanted, total: int, part: Path) -> None:
    if file.size and total and total != file.size:
        raise DataError(f"{file.url} has {total:,} bytes where {file.size:,} are published: it is another file.")
    room = shutil.disk_usage(part.parent).free + part.stat().st_size
    if total > room:
        raise DataError(f"{file.target} needs {total / 1e9:.1f} GB, {room / 1e9:.1f} GB are free; make room.")


def _refuse_other(file: Wanted, there: Path) -> None:
    """Raise DataError for a file that is not the published one; a partial one begins anew."""
    size, (kind, _, digest) = there.stat().st_size, (file.checksum or "sha256:").partition(":")
    if file.size and size != file.size:
        why = f"has {size:,} bytes, not {file.size:,}"
    elif digest and (found := checksum(there, kind)) != digest.lower():
        why = f"has the {kind} {found}, not the published {digest}"
    else:
        return
    if there == file.target:
        raise DataError(f"{there} {why}: it is not the published file. Move it away to fetch that.")
    os.truncate(there, 0)
    raise DataError(f"What {file.url} sends {why}: it is not the published file. Fetch it again, or get it elsewhere.")


def checksum(file: Path, kind: str = "sha256") -> str:
    """Of a file's bytes, in hexadecimal digits."""
    from pooch import file_hash  # noqa: PLC0415 - brings requests

    return str(file_hash(str(file), alg=kind))
