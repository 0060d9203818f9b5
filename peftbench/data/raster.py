"""Decode PNG, JPEG, TIFF, BMP and WebP files: the depth, polarity, transparency and orientation of each.

Pillow decodes all images of up to eight bits per channel and grey ones of more. Where it would drop bits or misread a
sign, torchvision (PNG) and tifffile (TIFF) read the values instead. Files that no reader decodes correctly are rejected
with a reason.
"""

from __future__ import annotations

import logging
import math
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, TiffImagePlugin, UnidentifiedImageError
from PIL.ImageFile import ImageFile

from peftbench.data.intensity import Intensities, stretch, to_picture
from peftbench.errors import RequestError

PIXEL_LIMIT = "PEFTBENCH_MAX_MEGAPIXELS"  # environment variable
LARGE = 10**7  # pixels from which megapixels are stated as whole numbers
ORIENTATION = 0x0112  # EXIF and TIFF tag
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
WHITE_IS_ZERO, BLACK_IS_ZERO, RGB = 0, 1, 2  # TIFF PhotometricInterpretation
UNSIGNED, SIGNED = 1, 2  # TIFF SampleFormat
UNCOMPRESSED = 1  # TIFF Compression
MAPPED = frozenset({"L", "P", "RGBX", "RGBA", "CMYK", "I;16", "I;16L", "I;16B"})  # modes that Pillow maps
PREMULTIPLIED = 1  # TIFF ExtraSamples
ANIMATED = frozenset({"GIF", "PNG", "WEBP"})  # formats whose further frames continue the first
GREY_MODES = ("I", "F")  # Pillow's modes of more than eight bits begin so


class UndecodableError(ValueError):
    """An image cannot be decoded; the message is the reason, without the file's name."""


@dataclass(frozen=True)
class ImageFacts:
    """How a file is decoded, from its header."""

    dicom: bool = False
    deep: bool = False  # more than eight bits per channel, shown through a window
    turned: bool = False  # brought upright
    inverted: bool = False  # of more than eight bits, the lowest value being white
    animated: bool = False  # the first of several frames
    changed: bool = False  # decoded to other pixels than by version 0.1.0


def read(file: Path) -> Image.Image:
    """Return a file as an upright eight-bit RGB picture, transparency dropped."""
    with _opened(file) as picture:
        if picture is None:
            return _read_tiff(file)
        _refuse(picture)
        if _is_deep_png(picture):
            return _upright(_read_png(file), _orientation(picture))
        if _needs_tifffile(picture):
            return _read_tiff(file)
        inverted = _is_inverted(picture)
        picture.load()  # Pillow turns most TIFF files itself and then forgets their orientation
        return _upright(_to_rgb(picture, inverted=inverted), _orientation(picture))


def facts(file: Path) -> ImageFacts:
    """Return how a file would be decoded, from its header alone."""
    with _opened(file) as picture:
        if picture is None:
            return _tiff_facts(file)
        orientation = _header_orientation(picture, file)
        turned = orientation in TURNS
        color = _is_deep_png(picture) or _needs_tifffile(picture)
        deep = color or picture.mode.startswith(GREY_MODES)
        inverted = deep and _is_white_zero(picture)
        changed = color or inverted or (turned and (picture.format != "TIFF" or _was_mapped(picture, orientation)))
        animated = picture.format in ANIMATED and bool(getattr(picture, "is_animated", False))
        return ImageFacts(deep=deep, turned=turned, inverted=inverted, animated=animated, changed=changed)


# --- opening ---------------------------------------------------------------------------------------------------------


@contextmanager
def _opened(file: Path) -> Iterator[ImageFile | None]:
    """Open a file with Pillow; None for a TIFF file that only tifffile can read."""
    with file.open("rb") as stream:  # Pillow maps TIFF files that it opens by name, and then turns some wrong
        picture = _identified(file, stream)
        if picture is None:
            yield None
            return
        with picture:
            refuse_size(*picture.size)
            yield picture


def _identified(file: Path, stream: BinaryIO) -> ImageFile | None:
    limit = pixel_limit()
    try:
        return Image.open(stream)
    except UnidentifiedImageError:
        if not _is_tiff(file):
            raise
        return None
    except Image.DecompressionBombError as error:
        pixels = int(str(error).partition("(")[2].partition(" ")[0])
        raise _too_large(pixels, limit) from None


def pixel_limit() -> int:
    """Return the largest number of pixels that is decoded: PEFTBENCH_MAX_MEGAPIXELS, else Pillow's limit.

    Raises RequestError for a setting that is not a number above 0.
    """
    text = os.environ.get(PIXEL_LIMIT, "")
    if not text:
        return 2 * (Image.MAX_IMAGE_PIXELS or 0) or 1 << 62
    try:
        limit = int(float(text) * 1e6)
    except (ValueError, OverflowError):
        limit = 0
    if limit <= 0:
        raise RequestError(f"{PIXEL_LIMIT} must be a number above 0, got {text!r}.")
    Image.MAX_IMAGE_PIXELS = max(Image.MAX_IMAGE_PIXELS or 0, limit)
    return limit


def refuse_size(width: int, height: int) -> None:
    """Raise UndecodableError for more pixels than the limit."""
    if width * height > (limit := pixel_limit()):
        raise _too_large(width * height, limit)


def _too_large(pixels: int, limit: int) -> UndecodableError:
    found, most = (f"{count / 1e6:{'.0f' if count > LARGE else '.2g'}}" for count in (pixels, limit))
    return UndecodableError(f"{found} megapixels exceed the limit of {most}, see {PIXEL_LIMIT}")


def _is_tiff(file: Path) -> bool:
    with file.open("rb") as stream:
        return stream.read(4) in {b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"}


def _refuse(picture: Image.Image) -> None:
    """Raise UndecodableError for what has no single right picture."""
    if picture.format == "EPS":  # Pillow would run Ghostscript on it
        raise UndecodableError("a PostScript program; export it as PNG")
    if picture.format == "TIFF" and _is_stack(picture):
        raise UndecodableError("several pages; export the one to classify")
    if picture.mode == "LAB":
        raise UndecodableError("L*a*b* colors; export it as RGB")
    if picture.mode == "CMYK" and max(_tag(picture, 258), default=8) > 8:  # noqa: PLR2004
        raise UndecodableError("CMYK colors of 16 bits; export it as RGB")


def _is_stack(picture: Image.Image) -> bool:
    """Return whether a TIFF file holds a further page at least as large; smaller ones are previews of the first."""
    first, found = picture.size, False
    for number in range(1, getattr(picture, "n_frames", 1)):
        picture.seek(number)
        if found := math.prod(picture.size) >= math.prod(first):
            break
    picture.seek(0)
    return found


# --- eight bits, and grey values that Pillow reads right -------------------------------------------------------------


def _some_finite(values: Intensities) -> Intensities:
    """Return the values. Raises UndecodableError if all are infinite or not a number, as there is nothing to show."""
    if not np.isfinite(values).any():
        raise UndecodableError("no value is a finite number")
    return values


def _to_rgb(picture: Image.Image, *, inverted: bool) -> Image.Image:
    if picture.mode.startswith(GREY_MODES):
        shown = stretch(_some_finite(np.asarray(picture, np.float64)))
        return to_picture(1 - shown if inverted else shown)
    if picture.mode in {"P", "PA"}:
        picture = picture.convert("RGBA")
    if picture.mode == "La":
        picture = picture.convert("LA")
    return picture.convert("RGB")


def _upright(picture: Image.Image, orientation: int) -> Image.Image:
    return picture.transpose(TURNS[orientation]) if orientation in TURNS else picture


def _orientation(picture: Image.Image) -> int:
    """Return the EXIF or XMP orientation of 1 to 8; 1 if it is missing or damaged."""
    try:
        found = picture.getexif().get(ORIENTATION, 1)
        return int(found) if int(found) in TURNS else 1
    except Exception:  # noqa: BLE001 - damaged metadata must not hide a sound picture
        return 1


def _was_mapped(picture: ImageFile, orientation: int) -> bool:
    """Return whether Pillow scrambles a TIFF file of this orientation if it opens it by name and maps its pixels."""
    decoder, _, _, options = picture.tile[0]
    raw = options[0] if isinstance(options, tuple) else options
    mapped = len(picture.tile) == 1 and decoder == "raw" and raw == picture.mode and raw in MAPPED
    return mapped and orientation > 4  # noqa: PLR2004 - those that swap rows and columns


def _header_orientation(picture: Image.Image, file: Path) -> int:
    """Return the orientation without decoding: Pillow decodes a PNG file to find EXIF data after the pixels."""
    if picture.format == "PNG" and not _png_has_metadata(file):
        return 1
    if picture.format == "TIFF":
        return next(iter(_tag(picture, ORIENTATION)), 1)
    return _orientation(picture)


def _png_has_metadata(file: Path) -> bool:
    """Return whether a PNG file has an EXIF or XMP chunk."""
    with file.open("rb") as stream:
        stream.seek(8)
        while len(head := stream.read(8)) == 8:  # noqa: PLR2004 - length and name of a chunk
            length, name = struct.unpack(">I4s", head)
            text = stream.read(min(length, 32)) if name in {b"tEXt", b"zTXt", b"iTXt"} else b""
            if name == b"eXIf" or text.startswith((b"Raw profile type exif", b"XML:com.adobe.xmp")):
                return True
            stream.seek(length - len(text) + 4, os.SEEK_CUR)
    return False


# --- more than eight bits, by other readers --------------------------------------------------------------------------


def _is_deep_png(picture: ImageFile) -> bool:
    """Return whether Pillow would drop the low byte of a PNG file's 16 bits: of all but plain grey."""
    return (
        picture.format == "PNG"
        and any(str(tile[3]).endswith(";16B") for tile in picture.tile)
        and not (picture.mode.startswith(GREY_MODES))
    )


def _read_png(file: Path) -> Image.Image:
    """Decode a PNG file of 16 bits with several channels; the last of two or four is alpha and is dropped."""
    import torch  # noqa: PLC0415 - only such files need it
    from torchvision.io import ImageReadMode, decode_image  # noqa: PLC0415

    content = torch.frombuffer(bytearray(file.read_bytes()), dtype=torch.uint8)
    pixels = decode_image(content, mode=ImageReadMode.UNCHANGED).numpy().transpose(1, 2, 0).astype(np.float64)
    channels = pixels.shape[2]
    return to_picture(stretch(pixels[..., :3] if channels > 2 else pixels[..., 0]))  # noqa: PLR2004


def _tag(picture: Image.Image, number: int) -> tuple[int, ...]:
    """Return the values of a TIFF tag, () if it is missing."""
    tags: Any = getattr(picture, "tag_v2", {})
    found = tags.get(number, ())
    return found if isinstance(found, tuple) else (found,)


def _is_inverted(picture: Image.Image) -> bool:
    """Return whether the lowest of more than eight bits is white; of fewer bits Pillow inverts such files itself."""
    return picture.mode.startswith(GREY_MODES) and _is_white_zero(picture)


def _is_white_zero(picture: Image.Image) -> bool:
    return WHITE_IS_ZERO in _tag(picture, TiffImagePlugin.PHOTOMETRIC_INTERPRETATION)


def _needs_tifffile(picture: Image.Image) -> bool:
    """Return whether Pillow would misread a TIFF file: signed 8, unsigned 32 and colors of more than 8 bits."""
    if picture.format != "TIFF":
        return False
    bits, kind = max(_tag(picture, 258), default=1), max(_tag(picture, 339), default=UNSIGNED)
    grey = picture.mode.startswith(GREY_MODES)
    swapped = grey and picture.mode != "I;16" and _tag(picture, 259) != (UNCOMPRESSED,) and _is_big_endian(picture)
    return (bits == 8 and kind == SIGNED) or (bits == 32 and kind == UNSIGNED) or (bits > 8 and not grey) or swapped  # noqa: PLR2004


def _is_big_endian(picture: Image.Image) -> bool:
    """Return whether a TIFF file stores high bytes first, which Pillow swaps twice in compressed signed values."""
    tags: Any = getattr(picture, "tag_v2", None)
    return bool(tags is not None and tags.prefix == b"MM")


def _read_tiff(file: Path) -> Image.Image:
    """Decode a TIFF file with tifffile, whatever its depth and sign."""
    with _tiff_pages(file) as pages:
        page = pages.first
        refuse_size(page.imagewidth, page.imagelength)
        if any(math.prod(other.shape[:2]) >= math.prod(page.shape[:2]) for other in pages[1:]):
            raise UndecodableError("several pages; export the one to classify")
        values = _grey_or_rgb(page)
        inverted, orientation = page.photometric == WHITE_IS_ZERO, _tiff_orientation(page)
    shown = stretch(_some_finite(values))
    return _upright(to_picture(1 - shown if inverted else shown), orientation)


def _tiff_facts(file: Path) -> ImageFacts:
    """Return how a TIFF file that only tifffile reads is decoded."""
    with _tiff_pages(file) as pages:
        page = pages.first
        turned = _tiff_orientation(page) in TURNS
        return ImageFacts(deep=True, turned=turned, inverted=page.photometric == WHITE_IS_ZERO, changed=True)


@contextmanager
def _tiff_pages(file: Path) -> Iterator[Any]:
    import tifffile  # noqa: PLC0415 - only such files need it

    logging.getLogger("tifffile").addHandler(logging.NullHandler())
    with tifffile.TiffFile(file) as tiff:
        yield tiff.pages


def _tiff_orientation(page: Any) -> int:  # noqa: ANN401 - tifffile's
    tag = page.tags.get(ORIENTATION)
    return int(tag.value) if tag else 1


def _grey_or_rgb(page: Any) -> NDArray[np.float64]:  # noqa: ANN401 - tifffile's
    """Return the values of a page, (H, W) or (H, W, 3), extra channels dropped."""
    if page.photometric not in {WHITE_IS_ZERO, BLACK_IS_ZERO, RGB} or np.dtype(page.dtype).kind not in "uifb":
        raise UndecodableError(f"{page.photometric.name} of {page.dtype} is not supported; export it as grey or RGB")
    if PREMULTIPLIED in page.extrasamples:
        raise UndecodableError("colors of more than 8 bits multiplied by alpha; export it without transparency")
    try:
        values: NDArray[np.float64] = page.asarray().astype(np.float64)
    except ValueError as error:
        needs = "needs a decoder: pip install 'peftbench[tiff]'"
        if "imagecodecs" not in str(error):
            raise
        raise UndecodableError(f"{page.compression.name} compression {needs}") from None
    values = np.moveaxis(values, 0, -1) if page.axes.startswith("S") else values
    channels = values.shape[2] if values.ndim == 3 else 1  # noqa: PLR2004
    wanted = 3 if page.photometric == RGB else 1
    if channels - len(page.extrasamples) != wanted or len(page.extrasamples) > 1 or values.ndim > 3:  # noqa: PLR2004
        raise UndecodableError(f"{channels} channels; export it as grey or RGB")
    if values.ndim == 2:  # noqa: PLR2004
        return values
    return values[..., :3] if wanted > 1 else values[..., 0]
