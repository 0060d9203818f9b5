"""Decode DICOM files: modality LUT, VOI LUT, window, polarity, palettes and colors, according to the standard.

Grey values pass the modality LUT or rescaling, then the first VOI LUT or else the first window (PS3.3 C.11.1, C.11.2);
without either they are shown between two percentiles, padding left out. MONOCHROME1 is inverted last.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from peftbench.data.intensity import Intensities, Window, stretch, to_picture
from peftbench.data.raster import ImageFacts, UndecodableError, refuse_size
from peftbench.errors import DataError

SUFFIXES = frozenset({".dcm", ".dicom"})
LOOKED_AT = 200  # files read to find out whether patients are stated
COLORS = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_PARTIAL_422", "YBR_PARTIAL_420", "YBR_ICT", "YBR_RCT")
GREYS = ("MONOCHROME1", "MONOCHROME2")
PALETTE = "PALETTE COLOR"
BY_LIBJPEG = frozenset(f"1.2.840.10008.1.2.4.{end}" for end in (51, 57, 70, 80, 81))  # 12 bits, lossless, JPEG-LS

Header: TypeAlias = Any  # a pydicom data set: pydicom is an extra


def is_dicom(file: Path) -> bool:
    """Return whether a file is DICOM: by its suffix, or by its first bytes if the suffix is not an image's."""
    if file.suffix.lower() in SUFFIXES:
        return True
    try:
        if file.suffix.lower() in Image.registered_extensions() or not file.is_file():
            return False
        with file.open("rb") as stream:
            return stream.read(132)[128:] == b"DICM"
    except (OSError, ValueError):  # reported when the image is decoded
        return False


def require_pydicom(file: Path) -> None:
    """Raise DataError if pydicom is not installed."""
    if find_spec("pydicom") is None:
        raise DataError(f"{file} is DICOM, which needs pydicom: pip install 'peftbench[dicom]'.")


def read(file: Path) -> Image.Image:
    """Return a DICOM file as an eight-bit RGB picture. Raises UndecodableError and DataError."""
    require_pydicom(file)
    header = _read_header(file)
    _refuse(header)
    return _picture(_with_frame_attributes(header), _pixels(header))


def facts(file: Path) -> ImageFacts:
    """Return how a DICOM file is decoded, from its header."""
    if find_spec("pydicom") is None:
        return ImageFacts(dicom=True)
    return ImageFacts(dicom=True, changed=_is_changed(_read_header(file, stop_before_pixels=True)))


def patient(file: Path) -> str:
    """Return the PatientID of a DICOM file, "" if none is stated or the file cannot be read."""
    import pydicom  # noqa: PLC0415

    try:
        header = pydicom.dcmread(file, stop_before_pixels=True, specific_tags=["PatientID"])
        return str(header.get("PatientID") or "").strip()
    except Exception:  # noqa: BLE001 - whatever is wrong with the file is reported when it is decoded
        return ""


def states_patients(files: Sequence[Path]) -> bool:
    """Return whether DICOM files distinguish patients: two of LOOKED_AT files, evenly spread, have different IDs."""
    medical = [file for file in files if is_dicom(file)]
    if not medical or find_spec("pydicom") is None:
        return False
    found: set[str] = set()
    for file in medical[:: max(1, len(medical) // LOOKED_AT)]:
        found.add(patient(file))
        if len(found - {""}) > 1:
            return True
    return False


def _read_header(file: Path, *, stop_before_pixels: bool = False) -> Header:
    """Return the data set of a file, also of one that begins without the DICOM header and states no transfer syntax."""
    import pydicom  # noqa: PLC0415 - an extra
    from pydicom.errors import InvalidDicomError  # noqa: PLC0415
    from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian  # noqa: PLC0415

    try:
        return pydicom.dcmread(file, stop_before_pixels=stop_before_pixels)
    except InvalidDicomError:
        header: Header = pydicom.dcmread(file, force=True, stop_before_pixels=stop_before_pixels)
        if "Rows" not in header:
            raise
    header.ensure_file_meta()
    implicit, little = header.original_encoding
    explicit = ExplicitVRLittleEndian if little else ExplicitVRBigEndian
    header.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian if implicit else explicit
    return header


# --- pixels ----------------------------------------------------------------------------------------------------------


def _refuse(header: Header) -> None:
    """Raise UndecodableError for files without one picture."""
    pixels = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")
    if "Rows" not in header or not any(name in header for name in pixels):
        raise UndecodableError(f"holds no image (modality {header.get('Modality') or 'unknown'})")
    if int(header.get("NumberOfFrames") or 1) > 1:
        raise UndecodableError(f"{header.NumberOfFrames} frames; export the one to classify")
    refuse_size(int(header.get("Columns") or 0), int(header.get("Rows") or 0))
    if (kind := header.get("PhotometricInterpretation")) not in {*COLORS, *GREYS, PALETTE}:
        raise UndecodableError(f"photometric interpretation {kind or 'missing'}, not supported")


def _pixels(header: Header) -> NDArray[Any]:
    """Return stored values (H, W), or colors (H, W, 3) converted to RGB."""
    from pydicom.pixels.utils import pixel_array  # noqa: PLC0415 - an extra

    try:
        return np.asarray(pixel_array(header))
    except (RuntimeError, NotImplementedError, AttributeError) as error:
        syntax = header.file_meta.get("TransferSyntaxUID") if hasattr(header, "file_meta") else None
        if syntax is None:
            raise UndecodableError("states no transfer syntax") from None
        if "missing dependencies" in str(error):
            extra = "dicom-jpeg" if str(syntax) in BY_LIBJPEG else "dicom"
            raise UndecodableError(f"{syntax.name} needs a decoder: pip install 'peftbench[{extra}]'") from None
        if isinstance(error, NotImplementedError):
            raise UndecodableError(f"{syntax.name} is not supported; export it uncompressed") from None
        if "all available plugins" in str(error):
            raise UndecodableError(f"damaged: no decoder reads its {syntax.name}") from None
        raise


def _picture(header: Header, pixels: NDArray[Any]) -> Image.Image:
    if pixels.ndim == 3:  # noqa: PLR2004
        return Image.fromarray(_high_byte(pixels, int(header.BitsStored)))
    if header.PhotometricInterpretation == PALETTE:
        return _palette_picture(header, pixels)
    shown = _grey(header, pixels)
    return to_picture(1 - shown if header.PhotometricInterpretation == "MONOCHROME1" else shown)


def _high_byte(pixels: NDArray[Any], bits: int) -> NDArray[np.uint8]:
    return np.asarray(pixels >> max(0, bits - 8)).astype(np.uint8)


def _palette_picture(header: Header, pixels: NDArray[Any]) -> Image.Image:
    from pydicom.pixels.processing import apply_color_lut  # noqa: PLC0415

    colors = apply_color_lut(pixels, header)[..., :3]
    small = _palette_bits(header) == 8 and colors.max() < 1 << 8  # noqa: PLR2004 - 8 bits stored in 8 or in 16
    return Image.fromarray(_high_byte(colors, 8 if small else 8 * colors.dtype.itemsize))


def _palette_bits(header: Header) -> int:
    return int(list(header.get("RedPaletteColorLookupTableDescriptor") or [0, 0, 16])[2])


def _with_frame_attributes(header: Header) -> Header:
    """Return the header with the rescaling and window of an enhanced file's only frame at the top level."""
    for item in list(_frame_items(header)):
        header.update(item)
    return header


def _frame_items(header: Header) -> Iterator[Header]:
    """Yield the rescaling and the window in the functional groups of an enhanced file's first frame."""
    for groups in ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"):
        for group in list(header.get(groups) or [])[:1]:
            for macro in ("PixelValueTransformationSequence", "FrameVOILUTSequence"):
                yield from list(group.get(macro) or [])[:1]


# --- grey values -----------------------------------------------------------------------------------------------------


def _grey(header: Header, pixels: NDArray[Any]) -> Intensities:
    """Return grey values in 0..1, before a possible inversion."""
    from pydicom.pixels.processing import apply_modality_lut  # noqa: PLC0415

    values = apply_modality_lut(pixels, header).astype(np.float64)
    if (lut := _lut(header)) is not None:
        return _through_lut(header, lut, values)
    window = _window(header)
    return window.apply(values) if window else stretch(_without_padding(header, pixels, values))


def _lut(header: Header) -> Header | None:
    """Return the first VOI LUT, None if it is missing or incomplete."""
    found = list(header.get("VOILUTSequence") or [])[:1]
    return next((one for one in found if one.get("LUTDescriptor") and one.get("LUTData") is not None), None)


def _through_lut(header: Header, lut: Header, values: Intensities) -> Intensities:
    from pydicom.pixels.processing import apply_voi  # noqa: PLC0415

    entries, first, bits = map(int, lut.LUTDescriptor)
    index = np.floor(values).clip(first, first + (entries or 1 << 16) - 1).astype(np.int64)
    shown: Intensities = np.asarray(apply_voi(index, header), np.float64) / (2**bits - 1)
    return shown


def _window(header: Header) -> Window | None:
    """Return the first window, None if none of positive width is stated."""
    center, width = (_first(header.get(key)) for key in ("WindowCenter", "WindowWidth"))
    kind = str(header.get("VOILUTFunction") or "LINEAR").upper()
    if center is None or width is None or width < (1 if kind == "LINEAR" else 1e-9):
        return None
    if kind == "LINEAR":  # PS3.3 C.11.2.1.2.1
        return Window(center - 0.5 - (width - 1) / 2, center - 0.5 + (width - 1) / 2)
    if kind not in {"LINEAR_EXACT", "SIGMOID"}:
        raise UndecodableError(f"VOI LUT function {kind} is not supported")
    return Window(center - width / 2, center + width / 2, "sigmoid" if kind == "SIGMOID" else "linear")


def _first(value: Any) -> float | None:  # noqa: ANN401 - a number, several, or none
    if value is None or value == "":
        return None
    return float(value if isinstance(value, (int, float, str)) else next(iter(value)))


def _without_padding(header: Header, pixels: NDArray[Any], values: Intensities) -> Intensities:
    """Return values with the padding around the scan set to what is shown black, so that it sets no window."""
    padding = header.get("PixelPaddingValue")
    if padding is None:
        return values
    low, high = sorted((int(padding), int(header.get("PixelPaddingRangeLimit", padding))))
    inside = values[(pixels < low) | (pixels > high)]
    if not inside.size:
        return values
    if header.PhotometricInterpretation == "MONOCHROME1":
        return values.clip(max=inside.max())
    return values.clip(min=inside.min())


def _is_changed(header: Header) -> bool:
    """Return whether version 0.1.0 decoded such a file to other pixels: it knew linear windows and 16-bit palettes."""
    kind = header.get("PhotometricInterpretation")
    function = str(header.get("VOILUTFunction") or "LINEAR").upper()
    padded = header.get("PixelPaddingValue") is not None and (
        kind == "MONOCHROME1" or header.get("PixelPaddingRangeLimit") is not None
    )
    short = kind == PALETTE and _palette_bits(header) == 8  # noqa: PLR2004
    groups = any(_frame_items(header))
    bare = not header.get("preamble")
    return bool(_lut(header) is not None or function != "LINEAR" or padded or short or groups or bare)
