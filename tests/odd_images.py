"""A generator of odd images whose right pixels are known by construction, for the corpus test and the fuzz session.

Each case draws a picture, stores it in one of the formats, modes, depths, polarities and orientations that Pillow,
tifffile, pydicom and a small PNG writer can write, and holds the eight-bit RGB pixels that decoding must give.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import tifffile
from numpy.typing import NDArray
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.pixels.encoders.base import RLELosslessEncoder
from pydicom.uid import (
    UID,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    RLELossless,
    SecondaryCaptureImageStorage,
)

Array = NDArray[Any]
Rng = np.random.Generator
ORIENTATION = 0x0112


@dataclass(frozen=True)
class Case:
    """One file: its content, and the pixels (H, W, 3) that it shows, None if it must be refused."""

    what: str
    suffix: str
    content: bytes
    right: NDArray[np.uint8] | None
    tolerance: int = 0  # grey levels: rounding, or a lossy format


# --- what is drawn ---------------------------------------------------------------------------------------------------


def size(rng: Rng) -> tuple[int, int]:
    """Height and width, never equal: a picture turned by 90 degrees must not pass."""
    high, wide = rng.choice(np.arange(3, 14), 2, replace=False)
    return int(high), int(wide)


def grey(rng: Rng, low: int = 0, high: int = 256) -> Array:
    return rng.integers(low, high, size(rng))


def colors(rng: Rng, high: int = 256) -> Array:
    return rng.integers(0, high, (*size(rng), 3))


def rgb(values: Array) -> NDArray[np.uint8]:
    """Eight-bit grey values or colors as RGB."""
    return np.asarray(values if values.ndim == 3 else np.stack([values] * 3, axis=-1)).astype(np.uint8)


def stretched(values: Array) -> NDArray[np.uint8]:
    """Values of any range between their percentiles 0.5 and 99.5, by the textbook."""
    low, high = np.percentile(values.astype(np.float64), (0.5, 99.5))
    if low == high:
        low, high = values.min(), values.max()
    share = (values.astype(np.float64) - low) / ((high - low) or 1)
    return rgb(np.floor(share.clip(0, 1) * 255 + 0.5))


def stored(upright: Array, orientation: int) -> Array:
    """The array to store so that its orientation tag leads back to `upright` (TIFF 6.0, page 36)."""
    turned = upright if orientation < 5 else upright.swapaxes(0, 1)
    turned = turned[::-1] if orientation in {3, 4, 6, 7} else turned  # the first row is the bottom or the right side
    return np.ascontiguousarray(turned[:, ::-1] if orientation in {2, 3, 7, 8} else turned)


# --- Pillow ----------------------------------------------------------------------------------------------------------


def exif(orientation: int) -> Image.Exif:
    found = Image.Exif()
    found[ORIENTATION] = orientation
    return found


def saved(picture: Image.Image, kind: str, **options: Any) -> bytes:
    out = io.BytesIO()
    picture.save(out, kind, **options)
    return out.getvalue()


def pillow_plain(rng: Rng) -> Case:
    """PNG, lossless WebP and BMP of at most eight bits, with and without transparency."""
    kind = str(rng.choice(["PNG", "WEBP", "BMP"]))
    modes = {"PNG": ["1", "L", "LA", "P", "RGB", "RGBA"], "WEBP": ["RGB", "RGBA"], "BMP": ["1", "L", "RGB"]}[kind]
    mode, turn = str(rng.choice(modes)), 1 if kind == "BMP" else int(rng.integers(1, 9))
    right = rgb(grey(rng) // 128 * 255 if mode == "1" else grey(rng)) if mode in {"1", "L", "LA"} else rgb(colors(rng))
    if mode == "P":
        right = right // 128 * 255
    picture = Image.fromarray(stored(right, turn))
    if mode in {"LA", "RGBA"}:
        picture = picture.convert(mode[0] if mode == "LA" else "RGB")
        picture.putalpha(Image.fromarray(rng.integers(0, 256, picture.size[::-1], dtype=np.uint8)))
    elif mode == "P":
        picture = picture.convert("P", palette=Image.Palette.ADAPTIVE, colors=8)
    else:
        picture = picture.convert(mode)
    options: dict[str, Any] = {} if turn == 1 else {"exif": exif(turn)}
    options |= {"lossless": True, "exact": True} if kind == "WEBP" else {}
    options |= {"transparency": int(rng.integers(0, 4))} if mode == "P" and rng.random() < 0.5 else {}
    return Case(f"{kind} {mode} turned {turn}", f".{kind.lower()}", saved(picture, kind, **options), right)


def jpeg(rng: Rng) -> Case:
    """Blocks of one color, which even JPEG keeps; grey, colors and CMYK."""
    mode, turn = str(rng.choice(["L", "RGB", "CMYK"])), int(rng.integers(1, 9))
    blocks = np.repeat(np.repeat(grey(rng) if mode == "L" else colors(rng), 16, axis=0), 16, axis=1)
    right = rgb(blocks)
    picture = Image.fromarray(stored(right, turn)).convert(mode)
    if mode == "CMYK":
        right = rgb(np.asarray(Image.fromarray(right).convert("CMYK").convert("RGB")))
    content = saved(picture, "JPEG", quality=100, subsampling=0, exif=exif(turn))
    return Case(f"JPEG {mode} turned {turn}", str(rng.choice([".jpg", ".jpeg", ".png"])), content, right, 4)


def pillow_tiff(rng: Rng) -> Case:
    mode = str(rng.choice(["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16", "I", "F", "LAB"]))
    packing = str(rng.choice(["raw", "tiff_lzw", "tiff_adobe_deflate", "packbits"]))
    turn = int(rng.integers(1, 9))
    right: NDArray[np.uint8] | None
    if mode in {"I;16", "I", "F"}:
        values = grey(rng, 0, int(rng.choice([256, 4096, 65536])))
        values = values.astype({"I;16": np.uint16, "I": np.int32, "F": np.float32}[mode])
        right, picture = stretched(values), Image.fromarray(stored(values, turn))
    else:
        right = rgb(grey(rng)) if mode in {"1", "L", "LA"} else rgb(colors(rng))
        right = right // 128 * 255 if mode in {"1", "P"} else right
        picture = Image.fromarray(stored(right, turn))
        if mode == "LAB":
            picture, right = Image.new("LAB", picture.size), None
        else:
            picture = picture.convert(mode, palette=Image.Palette.ADAPTIVE)
    if mode == "CMYK" and right is not None:
        right = rgb(np.asarray(Image.fromarray(right).convert("CMYK").convert("RGB")))
    content, deep = (
        saved(picture, "TIFF", compression=packing, tiffinfo={ORIENTATION: turn}),
        mode in {"I;16", "I", "F"},
    )
    return Case(f"Pillow's TIFF {mode} {packing} turned {turn}", ".tif", content, right, int(deep))


# --- PNG of sixteen bits ---------------------------------------------------------------------------------------------


def png16(rng: Rng) -> Case:
    """Grey, grey and alpha, RGB and RGBA of sixteen bits; often only twelve of them are used."""
    channels, turn = int(rng.integers(1, 5)), int(rng.integers(1, 9))
    most = int(rng.choice([256, 4096, 65536]))
    values = grey(rng, 0, most) if channels < 3 else colors(rng, most)
    pixels = stored(values, turn).reshape(*stored(values, turn).shape[:2], -1)
    if channels in {2, 4}:
        pixels = np.concatenate([pixels, rng.integers(0, 65536, (*pixels.shape[:2], 1))], axis=-1)
    late = bool(rng.random() < 0.5)
    content = write_png16(pixels, {1: 0, 2: 4, 3: 2, 4: 6}[channels], turn, late=late)
    return Case(f"PNG of 16 bits, {channels} channels turned {turn} late {late}", ".png", content, stretched(values), 1)


def write_png16(pixels: Array, color: int, orientation: int, *, late: bool) -> bytes:
    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    high, wide = pixels.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    about = chunk(b"eXIf", exif(orientation).tobytes().removeprefix(b"Exif\0\0"))
    body = chunk(b"IDAT", zlib.compress(rows))
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", wide, high, 16, color, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + (body + about if late else about + body) + chunk(b"IEND", b"")


# --- tifffile --------------------------------------------------------------------------------------------------------


def tiff(rng: Rng) -> Case:
    """Grey of every type and polarity, and colors of eight and sixteen bits, in either byte order and layout."""
    dtype = np.dtype(rng.choice(["u1", "i1", "u2", "i2", "u4", "i4", "f4", "f8", "rgb1", "rgb2"]).replace("rgb", "u"))
    colored = bool(dtype.kind == "u" and dtype.itemsize < 3 and rng.random() < 0.5)
    turn, white = int(rng.integers(1, 9)), bool(not colored and rng.random() < 0.5)
    values = colors(rng, 256**dtype.itemsize if dtype.itemsize < 2 else 4096) if colored else typed(rng, dtype)
    values = values.astype(dtype)
    deep = dtype.itemsize > 1 or dtype.kind == "i"
    right = stretched(values) if deep else rgb(values)
    content = negative(values) if white else values
    options: dict[str, Any] = {"photometric": "rgb" if colored else "miniswhite" if white else "minisblack"}
    options |= {"compression": "zlib"} if rng.random() < 0.3 else {}
    pixels = stored(content, turn)
    if colored and rng.random() < 0.3:
        pixels, options["planarconfig"] = np.moveaxis(pixels, -1, 0), "separate"
    out = io.BytesIO()
    tags = [(ORIENTATION, "H", 1, turn, True)]
    order: Literal["<", ">"] = "<" if rng.random() < 0.5 else ">"
    with tifffile.TiffWriter(out, byteorder=order) as writer:
        writer.write(np.ascontiguousarray(pixels), extratags=tags, metadata=None, **options)
    what = f"TIFF {'RGB' if colored else 'grey'} {dtype} {order} {options} turned {turn}"
    return Case(what, ".tiff", out.getvalue(), right, int(deep))


def typed(rng: Rng, dtype: np.dtype[Any]) -> Array:
    """Grey values over much of the range of a type; for wide types somewhere in it."""
    if dtype.kind == "f":
        return rng.normal(rng.uniform(-5, 5), rng.uniform(0.1, 1000), size(rng))
    info = np.iinfo(dtype)
    low = int(rng.integers(info.min, info.max - 200))
    return rng.integers(low, min(info.max, low + int(rng.choice([200, 4000, 100_000]))), size(rng), endpoint=True)


def negative(values: Array) -> Array:
    """Return the values for a polarity in which low values are white."""
    if values.dtype.kind == "f":
        return -values
    info = np.iinfo(values.dtype)
    return (int(info.max) + int(info.min) - values.astype(np.int64)).astype(values.dtype)


# --- DICOM -----------------------------------------------------------------------------------------------------------


def dicom(rng: Rng) -> Case:
    """Grey of 8 to 16 bits, signed or not, rescaled, windowed in each way or through a LUT, in either polarity."""
    bits, signed = int(rng.choice([8, 10, 12, 16])), bool(rng.random() < 0.4)
    low = -(1 << (bits - 1)) if signed else 0
    pixels = grey(rng, low, low + (1 << bits)).astype(f"{'i' if signed else 'u'}{1 if bits == 8 else 2}")
    slope, intercept = float(rng.choice([0.5, 1, 2])), float(rng.choice([0, -1024, 37]))
    values = pixels * slope + intercept
    tags: dict[str, Any] = {"BitsStored": bits, "HighBit": bits - 1}
    tags |= {"RescaleSlope": slope, "RescaleIntercept": intercept} if (slope, intercept) != (1.0, 0.0) else {}
    way = str(rng.choice(["none", "LINEAR", "LINEAR_EXACT", "SIGMOID", "LUT"]))
    shown, more = displayed(rng, values, way)
    inverted = bool(rng.random() < 0.5)
    tags |= {"PhotometricInterpretation": "MONOCHROME1" if inverted else "MONOCHROME2"}
    shown = 1 - shown if inverted else shown
    right = rgb(np.floor(shown * 255 + 0.5))
    content = write_dicom(pixels, rng, **(tags | more))
    what = f"DICOM {bits} bits signed {signed} {way} inverted {inverted} {slope} {intercept}"
    return Case(what, ".dcm", content, right, 1)


def displayed(rng: Rng, values: Array, way: str) -> tuple[Array, dict[str, Any]]:
    """Values in 0..1 by the formulas of PS3.3 C.11.2, and the tags that ask for them."""
    if way == "none":
        low, high = np.percentile(values, (0.5, 99.5))
        return ((values - low) / ((high - low) or 1)).clip(0, 1), {}
    center, width = float(rng.choice(values.ravel())), float(rng.integers(2, 3000))
    tags: dict[str, Any] = {"WindowCenter": [center, 1], "WindowWidth": [width, 2]}
    if way == "LUT":
        first, entries = max(0, int(values.min())), 256
        table = np.sort(rng.integers(0, 4096, entries))
        item = Dataset()
        item.LUTDescriptor, item.LUTData = [entries, first, 12], table.astype("<u2").tobytes()
        place = np.floor(values - first).clip(0, entries - 1).astype(int)
        return table[place] / 4095, tags | {"VOILUTSequence": [item]}
    tags |= {} if way == "LINEAR" else {"VOILUTFunction": way}
    if way == "SIGMOID":
        return 1 / (1 + np.exp(-4 * (values - center) / width)), tags
    if way == "LINEAR":
        return ((values - (center - 0.5)) / (width - 1) + 0.5).clip(0, 1), tags
    return ((values - center) / width + 0.5).clip(0, 1), tags


def colored_dicom(rng: Rng) -> Case:
    right = rgb(colors(rng))
    if rng.random() < 0.5:
        return Case("DICOM RGB", ".dcm", write_dicom(right, rng, PhotometricInterpretation="RGB"), right)
    wide = bool(rng.random() < 0.5)
    tables = rng.integers(0, 256, (3, 256))
    index = grey(rng).astype(np.uint8)
    tags: dict[str, Any] = {"PhotometricInterpretation": "PALETTE COLOR"}
    for name, table in zip(("Red", "Green", "Blue"), tables, strict=True):
        tags[f"{name}PaletteColorLookupTableDescriptor"] = [256, 0, 16 if wide else 8]
        entries = (table * 257).astype("<u2") if wide else table.astype(np.uint8)
        tags[f"{name}PaletteColorLookupTableData"] = entries.tobytes()
    right = np.moveaxis(tables[:, index], 0, -1).astype(np.uint8)
    return Case(f"DICOM palette, wide {wide}", ".dcm", write_dicom(index, rng, **tags), right)


def write_dicom(pixels: Array, rng: Rng, **tags: Any) -> bytes:
    scan = Dataset()
    scan.file_meta = FileMetaDataset()
    syntax = (ExplicitVRLittleEndian, ImplicitVRLittleEndian, RLELossless)[int(rng.integers(3))]
    scan.file_meta.TransferSyntaxUID = syntax
    scan.file_meta.MediaStorageSOPClassUID = scan.SOPClassUID = SecondaryCaptureImageStorage
    scan.file_meta.MediaStorageSOPInstanceUID = scan.SOPInstanceUID = UID("1.2.3")
    scan.Rows, scan.Columns = pixels.shape[:2]
    scan.SamplesPerPixel = 3 if pixels.ndim == 3 else 1
    scan.BitsAllocated = scan.BitsStored = 8 * pixels.itemsize
    scan.HighBit, scan.PixelRepresentation = scan.BitsStored - 1, int(pixels.dtype.kind == "i")
    if pixels.ndim == 3:
        scan.PlanarConfiguration = 0
    for name, value in tags.items():
        setattr(scan, name, value)
    plain = np.ascontiguousarray(pixels).tobytes()
    plain += b"\0" * (len(plain) % 2)
    scan.PixelData = plain
    if syntax == RLELossless:
        options: dict[str, Any] = {name: scan[tag].value for name, tag in RLE_TAGS.items()}
        options |= {"planar_configuration": 0, "number_of_frames": 1}
        scan.PixelData = encapsulate([RLELosslessEncoder.encode(np.ascontiguousarray(pixels), **options)])
        scan["PixelData"].VR = "OB"
    else:
        scan["PixelData"].VR = "OW"
    out = io.BytesIO()
    scan.save_as(out, enforce_file_format=True)
    return out.getvalue()


RLE_TAGS = {
    "rows": "Rows",
    "columns": "Columns",
    "samples_per_pixel": "SamplesPerPixel",
    "bits_allocated": "BitsAllocated",
    "bits_stored": "BitsStored",
    "pixel_representation": "PixelRepresentation",
    "photometric_interpretation": "PhotometricInterpretation",
}
KINDS: tuple[Callable[[Rng], Case], ...] = (pillow_plain, jpeg, pillow_tiff, png16, tiff, dicom, colored_dicom)


def draw(seed: int) -> Case:
    """The case of a seed."""
    rng = np.random.default_rng([seed, 19])
    return KINDS[int(rng.integers(len(KINDS)))](rng)
