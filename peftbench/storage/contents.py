"""What a file holds that is not what its name promises: a Git LFS pointer, a web page, text, an archive."""

from __future__ import annotations

from pathlib import Path

HEAD = 512  # bytes that are looked at
TEXT = bytes((*range(9, 14), *range(32, 127)))
KNOWN = (  # first bytes -> what the file holds
    (b"version https://git-lfs", "a Git LFS pointer; run `git lfs pull`"),
    (b"<!doctype html", "an HTML page"),
    (b"<html", "an HTML page"),
    (b"%pdf", "a PDF document"),
    (b"pk\x03\x04", "a ZIP archive"),
    (b"\x1f\x8b", "a gzip archive"),
)
PHONE_PHOTOS = (b"ftypheic", b"ftypheix", b"ftypmif1", b"ftyphevc", b"ftypheim")


def describe_content(file: Path) -> str:
    """Return what a file seems to hold by its first bytes, for an error; "" if that is unknown. Raises OSError."""
    with file.open("rb") as stream:
        head = stream.read(HEAD)
    if not head:
        return "nothing"
    if head[4:12] in PHONE_PHOTOS:
        return "a HEIC photo; export it as PNG"
    known = next((what for start, what in KNOWN if head.lstrip().lower().startswith(start)), "")
    return known or ("" if head.translate(None, TEXT) else "text")
