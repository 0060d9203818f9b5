"""Files of weights on the Hugging Face hub: find them in its cache, look them up, download and check them.

huggingface_hub does the work, so HF_ENDPOINT, HF_HOME, HF_HUB_OFFLINE, HF_TOKEN and the usual variables of proxies
hold. Nothing is downloaded unless `fetch` is called.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import constants, errors, get_hf_file_metadata, hf_hub_download, hf_hub_url, try_to_load_from_cache

from peftbench.core import presets
from peftbench.core.catalogue_files import folder_of
from peftbench.core.contract import HubFile
from peftbench.errors import WeightsError
from peftbench.storage.files import is_disk_full, sha256_file
from peftbench.storage.folders import weights_file
from peftbench.storage.sizes import format_size

SHA256 = re.compile(r"[0-9a-f]{64}")  # the hub's ETag of a large file is its SHA-256
LONGEST = 200  # characters of a library's own message
ELSEWHERE = "or download the file on another machine and pass --weights FILE"


@dataclass(frozen=True)
class Found:
    """A file as the hub describes it."""

    revision: str  # commit
    sha256: str  # "" for a small file
    size: int | None  # bytes


@dataclass(frozen=True)
class Fetched:
    """A downloaded and checked file."""

    path: Path
    revision: str
    sha256: str


def describe(file: HubFile) -> str:
    """Return where a file is, as a phrase."""
    return f"{file.repository} on the Hugging Face hub, file {file.file}"


def describe_size(file: HubFile) -> str:
    """Return the approximate size of a file, as a phrase."""
    return f"about {format_size(file.size)}" if file.size else "size unknown"


def cached(file: HubFile) -> Path | None:
    """Return the file in the hub's cache on this machine, or None.

    Raises WeightsError if its SHA-256 is not the stated one.
    """
    found = try_to_load_from_cache(file.repository, file.file, revision=file.revision or None)
    if not isinstance(found, str) or not Path(found).is_file():
        return None
    if file.sha256:
        _refuse_other(Path(found), file.sha256)
    return Path(found)


def find_weights(given: Path | None, name: str, default: Path, file: HubFile | None) -> Path:
    """Return `given`, or else the file `default`, or else the one of the hub that is on this machine.

    Raises WeightsError if there is none, with the way to get it.
    """
    if given is not None:
        if not given.is_file():
            raise WeightsError(f"--weights: {given} does not exist.")
        return given
    if found := default if default.is_file() else cached(file) if file else None:
        return found
    if file is None:
        raise WeightsError(f"No weights of {name} at {default}. Put the file there or pass --weights FILE.")
    raise WeightsError(
        f"No weights of {name} on this machine. Run `peftbench weights fetch {shlex.quote(name)}` "
        f"({describe(file)}, {describe_size(file)}), put the file at {default}, or pass --weights FILE."
    )


def find_preset_weights(name: str, given: Path | None) -> Path:
    """Return `given`, or a preset's file: of the package, of this machine or of the hub's cache.

    Raises WeightsError.
    """
    known = presets.preset(name)
    if given is None and known.weights.shipped:
        return folder_of("backbones") / known.weights.shipped
    if given is None and known.weights.path:
        given = Path(known.weights.path).expanduser()
        if not given.is_file():
            raise WeightsError(f"backbones/{name}.toml: weights.path: {given} does not exist. Correct it.")
    return find_weights(given, name, weights_file(name), known.hub_file)


def has_preset_weights(name: str) -> bool:
    """Return whether a preset's file of weights is on this machine."""
    try:
        find_preset_weights(name, None)
    except WeightsError:
        return False
    return True


def fetched(path: Path) -> Fetched:
    """Return a file of the hub's cache with its commit, which the cache names the file's folder after."""
    return Fetched(path, path.parent.name, sha256_file(path))


def look_up(file: HubFile) -> Found:
    """Ask the hub for commit, digest and size without downloading. Raises WeightsError with what to do."""
    with _explained(file):
        facts = get_hf_file_metadata(hf_hub_url(file.repository, file.file, revision=file.revision or None))
    digest = facts.etag if facts.etag and SHA256.fullmatch(facts.etag) else ""
    return Found(facts.commit_hash or "", digest, facts.size)


def fetch(file: HubFile) -> Fetched:
    """Download a file into the hub's cache, or find it there, and check its SHA-256.

    A transfer that is cut resumes. Raises WeightsError; a file that fails the check is removed.
    """
    found = look_up(file)
    if file.sha256 and found.sha256 and file.sha256 != found.sha256:
        raise WeightsError(
            f"{describe(file)} is another file: its SHA-256 is {found.sha256} instead of {file.sha256}. "
            "Give the revision that the SHA-256 belongs to."
        )
    with _explained(file):
        path = Path(hf_hub_download(file.repository, file.file, revision=file.revision or None))
    expected = file.sha256 or found.sha256
    return Fetched(path, found.revision, _refuse_other(path, expected) if expected else sha256_file(path))


def _refuse_other(path: Path, expected: str) -> str:
    """Return the SHA-256 of a file; if it is not `expected`, remove the file and raise WeightsError."""
    digest = sha256_file(path)
    if digest == expected:
        return digest
    path.resolve().unlink(missing_ok=True)  # the cache links to it
    path.unlink(missing_ok=True)
    raise WeightsError(
        f"The download {path} was changed on its way: SHA-256 {digest} instead of {expected}. It was removed; "
        "run the command again."
    )


@contextmanager
def _explained(file: HubFile) -> Iterator[None]:
    """Turn what huggingface_hub raises into a WeightsError of one or two sentences."""
    try:
        yield
    except (WeightsError, MemoryError):
        raise
    except Exception as error:
        if is_disk_full(error):
            raise
        raise WeightsError(_reason(file, error)) from error


def _reason(file: HubFile, error: Exception) -> str:
    where = describe(file)
    if isinstance(error, errors.GatedRepoError):
        page = file.gated or f"{constants.ENDPOINT}/{file.repository}"
        return (
            f"{file.repository} is gated: ask for access at {page}, then set HF_TOKEN or run `hf auth login` and run "
            f"the command again; {ELSEWHERE}."
        )
    if isinstance(error, errors.RepositoryNotFoundError):
        return f"There is no {where}, or a token is needed: set HF_TOKEN or run `hf auth login`; {ELSEWHERE}."
    if isinstance(error, errors.RevisionNotFoundError | errors.EntryNotFoundError) and not isinstance(
        error, errors.LocalEntryNotFoundError
    ):
        return f"There is no {where}, at revision {file.revision or 'main'}. Correct the preset; {ELSEWHERE}."
    if constants.HF_HUB_OFFLINE:
        return f"{where} is not on this machine, and HF_HUB_OFFLINE is set. Unset it, {ELSEWHERE}."
    why = " ".join(f"{type(error).__name__}: {error}".split())[:LONGEST].rstrip(".")
    return (
        f"Cannot download {where}, from {constants.ENDPOINT} ({why}). Check the network, HF_ENDPOINT and the proxy and "
        f"run the command again; {ELSEWHERE}."
    )
