"""Scan images independently of their parts: digests, sizes, formats and near duplicates.

Each image is read once. The result is kept in the cache folder and shared by seeds, variants and later runs. It names
files, and so may name patients: it is readable by its owner only and never leaves the cache.
"""

from __future__ import annotations

import math
import os
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from pydantic import TypeAdapter

from peftbench.core.contract import Splits
from peftbench.data.decode import OnImages
from peftbench.data.dicom import is_dicom
from peftbench.data.image_io import open_picture, quiet_decoders
from peftbench.data.near_duplicates import ALIKE, SIDE, SIMILAR, Thumbnails, alike, thumbnail
from peftbench.data.raster import UndecodableError, pixel_limit
from peftbench.data.splits import cached_file_digest
from peftbench.storage import checked_json
from peftbench.storage.files import Content, sha256, sha256_pieces

VERSION = 2  # of the stored result

NamePair: TypeAlias = tuple[str, str]
Seen: TypeAlias = tuple[str, tuple[int, int], str, str]  # digest, size, format, why it cannot be decoded
NamedImage: TypeAlias = tuple[str, Path | NDArray[np.uint8]]  # name within the data set, file or pixels


@dataclass(frozen=True)
class ImageScan:
    """Facts about images; each tuple has one item per image, in the order of `names`."""

    names: tuple[str, ...]
    digests: tuple[str, ...]  # sha256 of the bytes
    sizes: tuple[tuple[int, int], ...]  # width, height; (0, 0) if it cannot be decoded
    formats: tuple[str, ...]  # Pillow's name; "" for pixels, DICOM and broken files
    reasons: tuple[str, ...]  # why it cannot be decoded; "" if it can
    alike: tuple[tuple[int, int, float], ...]  # i < j and the correlation of their thumbnails, above SIMILAR

    @cached_property
    def identical(self) -> tuple[tuple[str, ...], ...]:
        """Sets of two or more names whose files have the same bytes."""
        same: dict[str, list[str]] = defaultdict(list)
        for name, digest in zip(self.names, self.digests, strict=True):
            same[digest].append(name)
        return tuple(tuple(names) for names in same.values() if len(names) > 1)

    @cached_property
    def near(self) -> tuple[NamePair, ...]:
        """Pairs of names of near duplicates, identical images included."""
        return tuple((self.names[i], self.names[j]) for i, j, correlation in self.alike if correlation > ALIKE)

    @cached_property
    def similar(self) -> tuple[NamePair, ...]:
        """Pairs of names of images that are similar but below the threshold of near duplicates."""
        return tuple((self.names[i], self.names[j]) for i, j, correlation in self.alike if correlation <= ALIKE)

    @cached_property
    def duplicates(self) -> tuple[NamePair, ...]:
        """Pairs of names of identical images and near duplicates, which must be in the same part."""
        same = (pair for names in self.identical for pair in combinations(names, 2))
        return tuple(dict.fromkeys((*same, *self.near)))

    @property
    def broken(self) -> dict[str, str]:
        """Name -> reason of images that cannot be decoded."""
        return {name: reason for name, reason in zip(self.names, self.reasons, strict=True) if reason}

    @property
    def misnamed(self) -> tuple[str, ...]:
        """Files whose format differs from their suffix, such as `a.png is JPEG`."""
        known = Image.registered_extensions()
        rows = zip(self.names, self.formats, strict=True)
        return tuple(
            f"{name} is {kind}" for name, kind in rows if kind and kind != known.get(Path(name).suffix.lower(), kind)
        )


_STORED = TypeAdapter(ImageScan)


def scan(splits: Splits, cache: Path, most: int | None = None, progress: OnImages | None = None) -> ImageScan | None:
    """Return the scan of all images, from the cache or by reading them; None if more than `most` files are uncached.

    Cached files are recognized by name, size and modification time, independently of their part.
    """
    images = sorted(
        (pair for part in splits.parts.values() for pair in zip(part.names, part.images, strict=True)), key=_name
    )
    kept = cache / "audit" / _key(images) / "evidence.json"
    found, files = _read(kept, dict(images)), bool(images) and isinstance(images[0][1], Path)
    if found is None and (most is None or len(images) <= most or not files):
        found = scan_images(images, progress if files else None)
        checked_json.write(kept, _STORED.dump_python(found, mode="json"), kept.parent.name)
    return found


def scan_images(images: Sequence[NamedImage], progress: OnImages | None = None) -> ImageScan:
    """Read every image once; broken files are recorded, not raised. Raises DataError for DICOM without pydicom."""
    thumbnails, facts = np.zeros((len(images), SIDE * SIDE), np.float32), list[Seen]()
    with quiet_decoders(), ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        for i, (fact, grey) in enumerate(pool.map(_scan_image, (image for _, image in images))):
            thumbnails[i] = grey
            facts.append(fact)
            if progress:
                progress(i + 1, len(images))
    digests, sizes, formats, reasons = zip(*facts, strict=True) if facts else ((), (), (), ())
    return ImageScan(tuple(map(_name, images)), digests, sizes, formats, reasons, tuple(alike(thumbnails)))


def _scan_image(image: Path | NDArray[np.uint8]) -> tuple[Seen, Thumbnails]:
    """Return digest, size, format and fault of one image, and its thumbnail."""
    if isinstance(image, np.ndarray):
        picture = Image.fromarray(image)
        digest = sha256(np.ascontiguousarray(image).data)
        return (digest, picture.size, "", ""), thumbnail(picture)
    digest = cached_file_digest(image)
    try:
        picture = open_picture(image)
    except UndecodableError as error:
        return (digest, (0, 0), "", str(error)), np.zeros(SIDE * SIDE, np.float32)
    return (digest, picture.size, _format(image), ""), thumbnail(picture)


def _name(image: NamedImage) -> str:
    return image[0]


def _format(image: Path) -> str:
    """Return Pillow's name for the format of a readable file; MPO, a JPEG with further pictures, counts as JPEG."""
    if is_dicom(image):
        return ""
    try:
        with Image.open(image) as picture:
            return str(picture.format).replace("MPO", "JPEG")
    except UnidentifiedImageError:
        return "TIFF"  # of a kind that only tifffile reads


def _key(images: Sequence[NamedImage]) -> str:
    """Return the cache key: it changes with every name and file, and with the way of scanning."""
    return sha256_pieces(_pieces(images))[:24]


def _pieces(images: Sequence[NamedImage]) -> Iterator[Content]:
    yield f"{VERSION} {SIDE} {SIMILAR}".encode()
    for name, image in images:
        yield name.encode(errors="surrogateescape")
        if isinstance(image, Path):
            yield f"{image.absolute()} {_state(image)}".encode(errors="surrogateescape")
        else:
            yield np.ascontiguousarray(image).data


def _reason(image: Path | NDArray[np.uint8]) -> str:
    """Return why an image cannot be decoded, "" if it can."""
    with quiet_decoders():
        return _scan_image(image)[0][-1]


def _state(image: Path) -> str:
    """Return the size and the modification time of a file, "unopened" if it cannot be opened."""
    try:
        known = image.stat()
    except OSError:
        return "unopened"
    return f"{known.st_size} {known.st_mtime_ns}"


def _read(file: Path, images: Mapping[str, Path | NDArray[np.uint8]]) -> ImageScan | None:
    """Return the cached scan, or None if it is missing, damaged or would find others that cannot be decoded now.

    A decoder may have been installed since, or the limit of pixels changed.
    """
    try:
        found = _STORED.validate_python(checked_json.read(file, file.parent.name))
    except (OSError, ValueError):
        return None
    limit = pixel_limit()
    too_large = any(math.prod(size) > limit for size in found.sizes)
    changed = any(_reason(images[name]) != why for name, why in found.broken.items())
    return None if too_large or changed else found
