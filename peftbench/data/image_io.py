"""Decode one image file of any kind as eight-bit RGB, or report why it cannot be decoded.

The readers are `raster.py` (PNG, JPEG, TIFF, BMP, WebP) and `dicom.py`. Together they know the bit depth, the polarity,
the range and the orientation of every format; everything above works with upright RGB pictures.
"""

from __future__ import annotations

import re
import stat
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from peftbench.data import dicom, raster
from peftbench.data.intensity import PERCENTILES
from peftbench.data.raster import ImageFacts, UndecodableError
from peftbench.errors import PeftbenchError
from peftbench.storage.contents import describe_content

SHOWN = 5  # names in an error about broken images, of each reason
TRUNCATED = re.compile(r"truncated|end of (file|data)|EOF|requires a buffer|not enough", re.IGNORECASE)
DAMAGED = re.compile(r"broken|corrupt|decoder error|bad |invalid", re.IGNORECASE)
LONGEST = 160  # characters of a decoder's own message


def open_picture(file: Path) -> Image.Image:
    """Return a file as an upright eight-bit RGB picture without transparency.

    Raises UndecodableError with the reason, and DataError for DICOM without pydicom.
    """
    with _explained(file):
        _require_regular(file)
        return dicom.read(file) if dicom.is_dicom(file) else raster.read(file)


def facts(file: Path) -> ImageFacts:
    """Return how a file is decoded according to its header; the defaults for a file that cannot be decoded."""
    try:
        now = file.stat()
        return _facts(str(file), now.st_size, now.st_mtime_ns, now.st_ctime_ns, now.st_ino)
    except (OSError, ValueError):
        return ImageFacts()


@lru_cache(maxsize=1 << 20)
def _facts(name: str, *_: int) -> ImageFacts:
    file = Path(name)
    with _explained(file), quiet_decoders():
        _require_regular(file)
        return dicom.facts(file) if dicom.is_dicom(file) else raster.facts(file)


def notes(files: Sequence[Path]) -> tuple[str, ...]:
    """Return sentences on how these files are shown, from their headers.

    Raises DataError for DICOM files if pydicom is not installed.
    """
    if first := next((file for file in files if dicom.is_dicom(file)), None):
        dicom.require_pydicom(first)
    found = [facts(file) for file in files]
    by = f"from percentile {PERCENTILES[0]} to {PERCENTILES[1]} of each image"
    sentences = {
        f"DICOM images, shown through their first VOI LUT or window, else {by}": [one.dicom for one in found],
        f"Images of more than 8 bits per channel, shown {by}": [one.deep for one in found],
        "Images turned upright as their metadata state": [one.turned for one in found],
        "Images of several frames, of which the first is used": [one.animated for one in found],
        "Images of more than 8 bits whose lowest value is white, inverted": [one.inverted for one in found],
    }
    return tuple(f"{what}: {sum(which)}." for what, which in sentences.items() if any(which))


@contextmanager
def quiet_decoders() -> Iterator[None]:
    """Silence the warnings of decoders about odd metadata, in this thread and those it starts."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


# --- reasons ---------------------------------------------------------------------------------------------------------


@contextmanager
def _explained(file: Path) -> Iterator[None]:
    """Turn whatever decoders raise for arbitrary bytes into an UndecodableError that gives the reason."""
    try:
        yield
    except (UndecodableError, PeftbenchError, MemoryError):
        raise
    except Exception as error:  # noqa: BLE001 - decoders document no list of what they raise
        raise UndecodableError(_reason(file, error)) from None


def _require_regular(file: Path) -> None:
    """Raise for pipes and devices, which would block or never end."""
    if not stat.S_ISREG(file.stat().st_mode):
        raise UndecodableError("not a regular file")


def _reason(file: Path, error: Exception) -> str:
    message = " ".join(str(error).replace(str(file), file.name).split())[:LONGEST]
    if isinstance(error, OSError) and error.errno is not None and error.strerror:
        return error.strerror
    size = file.stat().st_size
    if not size:
        return "empty file"
    if isinstance(error, UnidentifiedImageError) or type(error).__name__ == "InvalidDicomError":
        return f"not an image: {describe_content(file) or 'unknown content'}"
    if isinstance(error, EOFError) or TRUNCATED.search(message) or _ends_early(file, size):
        return f"truncated at byte {size:,}"
    return f"damaged: {message}" if DAMAGED.search(message) else f"{type(error).__name__}: {message}"


def _ends_early(file: Path, size: int) -> bool:
    """Return whether a WebP file is shorter than it states; its decoder names no reason."""
    with file.open("rb") as stream:
        head = stream.read(8)
    return head.startswith(b"RIFF") and int.from_bytes(head[4:], "little") + 8 > size


def describe_broken(reasons: Mapping[str, str]) -> str:
    """Return image names with their reasons, grouped by reason if there are several images.

    `a.png (not an image)`; `10 not an image (a.png, b.png, ...), 1 truncated at byte 12 (c.png)`.
    """
    if len(reasons) == 1:
        ((name, reason),) = reasons.items()
        return f"{name} ({reason})"
    groups: dict[str, list[str]] = {}
    for name, reason in reasons.items():
        groups.setdefault(re.sub(r"\d[\d,.]*", "N", reason), []).append(name)
    ordered = sorted(groups.values(), key=len, reverse=True)
    return "; ".join(_group(names, reasons) for names in ordered)


def _group(names: Sequence[str], reasons: Mapping[str, str]) -> str:
    listed = ", ".join(names[:SHOWN]) + (", ..." if len(names) > SHOWN else "")
    return f"{listed} ({reasons[names[0]]}{', for the first' if len({reasons[n] for n in names}) > 1 else ''})"


def broken_sentence(reasons: Mapping[str, str], fix: str = "") -> str:
    """Return the error about images that cannot be decoded: how many, which, why, and the `fix` that a caller adds."""
    one = len(reasons) == 1
    what = "1 image" if one else f"{len(reasons)} images"
    return f"Cannot decode {what}: {describe_broken(reasons)}. Fix or remove {'it' if one else 'them'}{fix}."
