"""Numbers of bytes as people read and write them: decimal units, as disks are sold."""

from __future__ import annotations

import humanize
from pydantic import ByteSize, TypeAdapter, ValidationError

from peftbench.errors import RequestError

_SIZE = TypeAdapter(ByteSize)


def format_size(size: float) -> str:
    """Return a number of bytes with one decimal in the unit that fits: `431.0 MB`, `1.5 GB`."""
    return humanize.naturalsize(size)


def parse_size(text: str, flag: str) -> int:
    """Return the bytes of `50G`, `50GB`, `500M`, `20GiB` or a plain number. Raises RequestError that names the flag."""
    try:
        return int(_SIZE.validate_python(text.strip()))
    except ValidationError:
        raise RequestError(f"{flag}: cannot read the size {text!r}; write a number with a unit, such as 50G.") from None
