"""One image file as eight-bit RGB, whatever is in it: DICOM, greys of sixteen bits, palettes, transparency.

What is shown of a range wider than eight bits, its window, is chosen image by image: DICOM's own first window (PS3.3
C.11.2, its linear form) where the file states one, else from the 0.5th to the 99.5th percentile of the grey values.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from peftbench.errors import DataError

DICOM = frozenset({".dcm", ".dicom"})
DEEP = frozenset({".png", ".tif", ".tiff"})  # the usual files that may hold more than eight bits a channel
PERCENTILES = (0.5, 99.5)
LOOKED_AT = 200  # DICOM files, to learn whether patients are stated at all

Grey: TypeAlias = NDArray[np.float64]
Window: TypeAlias = tuple[float, float]  # the lowest and the highest value that are shown


def open_picture(file: Path) -> Image.Image:
    """Read a file as RGB, eight bits a channel, its transparency left away.

    Raises OSError or ValueError for a file that does not open, DataError for DICOM without pydicom.
    """
    with _reading(file):
        if is_dicom(file):
            return _dicom(file)
        with Image.open(file) as picture:
            if _is_stack(picture):
                raise ValueError(f"{file} holds several pages; export the one to classify.")
            return to_rgb(picture)


def _is_stack(picture: Image.Image) -> bool:
    """Whether a TIFF holds a second page of the same size; a smaller one is a preview of the first."""
    if picture.format != "TIFF" or getattr(picture, "n_frames", 1) == 1:
        return False
    first = picture.size
    picture.seek(1)
    second = picture.size
    picture.seek(0)
    return first == second


@contextmanager
def _reading(file: Path) -> Iterator[None]:
    """Whatever decoders raise at arbitrary bytes, refusals of what unpacks to too much among it, is a ValueError."""
    try:
        yield
    except (DataError, OSError, MemoryError):
        raise
    except Exception as error:  # noqa: BLE001 - nobody lists what they raise
        raise ValueError(f"{file} does not open ({type(error).__name__}: {error})") from None


def to_rgb(picture: Image.Image) -> Image.Image:
    """Any opened picture as RGB; greys of more than eight bits are windowed by percentile."""
    if picture.mode.startswith(("I", "F")):
        return _shown(_windowed(np.asarray(picture, np.float64)))
    return (picture.convert("RGBA") if picture.mode == "P" else picture).convert("RGB")


def is_dicom(file: Path) -> bool:
    """By its suffix, or by the letters that stand behind the preamble of a file without a known one."""
    if file.suffix.lower() in DICOM:
        return True
    if file.suffix.lower() in Image.registered_extensions():
        return False
    try:
        with file.open("rb") as stream:
            return stream.read(132)[128:] == b"DICM"
    except (OSError, ValueError):  # no such file, or no name of one: told when the images are decoded
        return False


def notes(files: Sequence[Path]) -> tuple[str, ...]:
    """What a reader must know about how these files are shown. Reads headers only.

    Raises DataError for DICOM files where pydicom is not installed.
    """
    medical = [file for file in files if is_dicom(file)]
    if medical:
        _require_pydicom(medical[0])
    deep = sum(_is_deep(file) for file in files if file.suffix.lower() in DEEP)
    by = f"from percentile {PERCENTILES[0]} to {PERCENTILES[1]} of each image"
    found = {
        f"{len(medical)} DICOM images are shown in their own first window, without one {by}.": medical,
        f"{deep} grey images of more than 8 bits are shown {by}.": deep,
    }
    return tuple(sentence for sentence, there in found.items() if there)


def states_patients(files: Sequence[Path]) -> bool:
    """Whether DICOM files among these tell patients apart: two of LOOKED_AT of them, evenly spread, have other IDs."""
    medical = [file for file in files if is_dicom(file)]
    if not medical or find_spec("pydicom") is None:
        return False
    found: set[str] = set()
    for file in medical[:: max(1, len(medical) // LOOKED_AT)]:
        found.add(patient(file))
        if len(found - {""}) > 1:
            return True
    return False


def patient(file: Path) -> str:
    """The PatientID of a DICOM file, "" where none is stated."""
    import pydicom  # noqa: PLC0415 - an extra

    try:
        with _reading(file):
            header = pydicom.dcmread(file, stop_before_pixels=True, specific_tags=["PatientID"])
            return str(header.get("PatientID") or "").strip()
    except (OSError, ValueError):
        return ""  # told when the images are decoded


def _is_deep(file: Path) -> bool:
    try:
        with _reading(file), Image.open(file) as picture:
            return picture.mode.startswith(("I", "F"))
    except (OSError, ValueError):  # told when the images are decoded
        return False


def _windowed(values: Grey, window: Window | None = None) -> Grey:
    """Values (H, W) in 0..1, cut off below and above the window, or at the percentiles."""
    low, high = window or _percentiles(values[np.isfinite(values)])
    if window and low == high:  # of width 1: a step
        return np.asarray(values > low, np.float64)
    span = high - low if high > low else 1.0
    return np.nan_to_num((values.clip(low, high) - low) / span)


def _percentiles(known: Grey) -> Window:
    """Those of these values; where they fall together, as for a small spot on an even ground, the extremes."""
    if not known.size:
        return 0.0, 1.0
    low, high = np.percentile(known, PERCENTILES).tolist()
    return (low, high) if low < high else (float(known.min()), float(known.max()))


def _shown(values: Grey) -> Image.Image:
    return Image.fromarray((values * 255).round().astype(np.uint8)).convert("RGB")


def _require_pydicom(file: Path) -> None:
    if find_spec("pydicom") is None:
        raise DataError(f"{file} is DICOM, which needs pydicom: pip install 'peftbench[dicom]'.")


def _dicom(file: Path) -> Image.Image:
    _require_pydicom(file)
    import pydicom  # noqa: PLC0415 - an extra
    from pydicom.pixels.utils import pixel_array  # noqa: PLC0415

    header = pydicom.dcmread(file)
    pixels = pixel_array(header)
    if int(header.get("NumberOfFrames") or 1) > 1:
        raise ValueError(f"{file} holds several frames; export the one to classify.")
    return _coloured(header, pixels) if pixels.ndim == 3 else _grey(header, pixels)  # noqa: PLR2004


def _coloured(header: Any, pixels: NDArray[Any]) -> Image.Image:  # noqa: ANN401 - pydicom's
    """Colours (H, W, 3) of up to sixteen bits."""
    shift = max(0, int(header.BitsStored) - 8)
    return Image.fromarray((pixels >> shift).astype(np.uint8))


def _grey(header: Any, pixels: NDArray[Any]) -> Image.Image:  # noqa: ANN401
    from pydicom.pixels.processing import apply_color_lut, apply_modality_lut  # noqa: PLC0415

    if header.PhotometricInterpretation == "PALETTE COLOR":
        return Image.fromarray((apply_color_lut(pixels, header) >> 8).astype(np.uint8))
    values = apply_modality_lut(pixels, header).astype(np.float64)
    window = _window(header)
    shown = _windowed(values if window else _padded(header, pixels, values), window)
    return _shown(1 - shown if header.PhotometricInterpretation == "MONOCHROME1" else shown)


def _window(header: Any) -> Window | None:  # noqa: ANN401
    """Lowest and highest value of the first window, if the file states one of a width."""
    centre, width = (_first(header.get(key)) for key in ("WindowCenter", "WindowWidth"))
    if centre is None or width is None or width < 1:
        return None
    return (centre - 0.5 - (width - 1) / 2, centre - 0.5 + (width - 1) / 2)


def _first(value: Any) -> float | None:  # noqa: ANN401 - a number, several, or none
    if value is None or value == "":
        return None
    return float(value if isinstance(value, (int, float, str)) else next(iter(value)))


def _padded(header: Any, pixels: NDArray[Any], values: Grey) -> Grey:  # noqa: ANN401
    """Values with what lies outside of the scan at the lowest of those within, so that it does not set the window."""
    padding = header.get("PixelPaddingValue")
    inside = values[pixels != padding] if padding is not None else values
    return values.clip(min=inside.min()) if inside.size else values
