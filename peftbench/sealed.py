"""The files of an entry of decoded images, and whether they still are what was written.

pixels.npy, and parts.json with what is known of each image, the size, time and sha256 of pixels.npy, and its own
digest; what does not agree with them is decoded anew. Of a data set with images that do not open there is broken.json
instead: which these are, with a digest, too.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from peftbench.spec import digest
from peftbench.splits import file_digest


def is_whole(folder: Path, *, thorough: bool = False) -> bool:
    """Whether an entry is as it was made. The pixels are read where their time differs, or if `thorough`."""
    file = folder / "pixels.npy"
    try:
        known, now = read(folder), file.stat()
    except (OSError, ValueError):
        return False
    if now.st_size != known["pixels"]["bytes"]:
        return False
    if now.st_mtime_ns == known["pixels"]["time"] and not thorough:
        return True
    return bool(file_digest(file) == known["pixels"]["sha256"])


def seal(folder: Path, facts: Mapping[str, Any]) -> None:
    """Write down what the pixels are, in one piece."""
    file = folder / "pixels.npy"
    now = file.stat()
    pixels = {"bytes": now.st_size, "time": now.st_mtime_ns, "sha256": file_digest(file)}
    note(folder / "parts.json", {"facts": facts, "pixels": pixels})


def mend(folder: Path, facts: Mapping[str, Any]) -> None:
    """Other facts of the same pixels, which are not read again."""
    note(folder / "parts.json", {"facts": facts, "pixels": read(folder)["pixels"]})


def read(folder: Path, name: str = "parts.json") -> dict[str, Any]:
    """What is known of an entry. Raises ValueError where it is not what was written, OSError where it is gone."""
    try:
        known: Any = json.loads((folder / name).read_text())
        if isinstance(known, dict) and known.pop("digest", "") == digest(known):
            return known
    except RecursionError:  # lists in lists, which nobody here wrote
        pass
    raise ValueError(f"{folder / name} was changed")


def note(file: Path, known: Mapping[str, Any]) -> None:
    """Write it down with its digest, in one piece, readable by its owner only: it names images and their groups."""
    draft = file.with_name(f".{file.name}.{uuid.uuid4().hex}")
    draft.touch(mode=0o600)
    draft.write_text(json.dumps({**known, "digest": digest(known)}))
    draft.replace(file)
