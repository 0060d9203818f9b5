"""Small JSON files that vouch for themselves: what was changed, cut off or put in another's place is not read."""

from __future__ import annotations

import hashlib
import json
import uuid
from pathlib import Path
from typing import Any


def write(file: Path, value: Any, place: str = "") -> None:  # noqa: ANN401 - whatever JSON holds
    """In one piece, readable by its owner only: such files may name images. `place`: what the value is of."""
    text = json.dumps({"digest": _digest(value, place), "value": value}, default=list)
    file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    draft = file.with_name(f".{file.name}.{uuid.uuid4().hex}")
    draft.touch(mode=0o600)
    draft.write_text(text, encoding="utf-8")
    draft.replace(file)


def read(file: Path, place: str = "") -> Any:  # noqa: ANN401
    """What was written. Raises ValueError where it is not that, OSError where it is gone."""
    try:
        told = json.loads(file.read_bytes())
        if isinstance(told, dict) and told.get("digest") == _digest(told["value"], place):
            return told["value"]
    except (KeyError, RecursionError):  # of lists in lists in lists
        pass
    raise ValueError(f"{file} is not what was written there")


def _digest(value: object, place: str) -> str:
    text = json.dumps([place, value], sort_keys=True, default=list)
    return hashlib.sha256(text.encode()).hexdigest()
