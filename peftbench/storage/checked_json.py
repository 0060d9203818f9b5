"""JSON files with an embedded SHA-256: a file that was modified, cut off or copied to another place is rejected.

    {"digest": SHA-256 of [place, value], "value": value}

`checked_tensors` does the same for tensors.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from peftbench.storage import files


def write(file: Path, value: Any, place: str = "") -> None:  # noqa: ANN401 - any JSON value
    """Write a JSON value atomically, readable by the owner only: such files may name images. Raises OSError.

    `place` names what the value belongs to; it is part of the digest and is not stored.
    """
    content = json.dumps({"digest": _digest(value, place), "value": value}, default=list)
    files.make_private_folder(file.parent)
    files.write_text(file, content, private=True)


def read(file: Path, place: str = "") -> Any:  # noqa: ANN401 - any JSON value
    """Return the value. Raises ValueError if the digest does not match, OSError if there is no such file."""
    try:
        stored = json.loads(file.read_bytes())
        if isinstance(stored, dict) and stored.get("digest") == _digest(stored["value"], place):
            return stored["value"]
    except (KeyError, RecursionError):  # RecursionError: deeply nested lists
        pass
    raise ValueError(f"{file} was modified after it was written")


def _digest(value: object, place: str) -> str:
    return files.sha256_json([place, value], spaced=True)
