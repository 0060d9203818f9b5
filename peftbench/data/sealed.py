"""The files of an entry of decoded images, and whether they still are what was written.

pixels.npy, and parts.json, which vouches for itself, with what is known of each image and the size, time and sha256 of
pixels.npy; what does not agree with them is decoded anew. Of a data set with images that do not open there is
broken.json instead: which these are.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from peftbench.data.splits import file_digest
from peftbench.storage import checked_json


def is_whole(folder: Path, *, thorough: bool = False) -> bool:
    """Whether an entry is as it was made. The pixels are read where their time differs, or if `thorough`."""
    file = folder / "pixels.npy"
    try:
        known, now = read(folder), file.stat()
    except (OSError, ValueError, KeyError, TypeError):
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
    _write_facts(folder, facts, pixels)


def mend(folder: Path, facts: Mapping[str, Any]) -> None:
    """Other facts of the same pixels, which are not read again."""
    _write_facts(folder, facts, read(folder)["pixels"])


def _write_facts(folder: Path, facts: Mapping[str, Any], pixels: Mapping[str, Any]) -> None:
    checked_json.write(folder / "parts.json", {"facts": facts, "pixels": pixels})


def read(folder: Path) -> dict[str, Any]:
    """What is known of an entry. Raises ValueError where it is not what was written, OSError where it is gone."""
    known: dict[str, Any] = checked_json.read(folder / "parts.json")
    return known
