"""What a report may print of reasons and notes: no names of images, folders or patients."""

from __future__ import annotations

import re

_QUOTED = re.compile(r"""(?<!\w)(['"])[^'"]+\1""")
_FILE = re.compile(r"\S*[^\s.:]\.(?:png|jpe?g|bmp|tiff?|gif|webp|dcm|nii(?:\.gz)?)\b", re.IGNORECASE)
_PATH = re.compile(r"(?<![\w.])(?:[A-Za-z]:)?[/\\][^\s,;:'\"()]+")


def redact(text: str) -> str:
    """Replace quoted names, image files and absolute paths, any of which may identify a patient."""
    return _PATH.sub("[path]", _FILE.sub("[image]", _QUOTED.sub("[name]", text)))
