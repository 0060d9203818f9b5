"""What is seen in images, whatever part they are in: digests, sizes, formats, and which are nearly the same.

Each image is read once; what was seen is kept in the cache folder, so that seeds, cuts and later runs share it. It
names files and so may name patients: it is readable by its owner only and never leaves the cache.
"""

from __future__ import annotations

import hashlib
import os
from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import TypeAdapter

from peftbench.core.contract import Splits
from peftbench.data.image_io import is_dicom, open_picture
from peftbench.data.near_duplicates import ALIKE, SIDE, SIMILAR, Thumbnails, alike, thumbnail
from peftbench.data.splits import cached_file_digest
from peftbench.storage import checked_json

VERSION = 1  # of what is kept

Pair: TypeAlias = tuple[str, str]
Seen: TypeAlias = tuple[str, tuple[int, int], str]  # digest, size, format
Watch: TypeAlias = Callable[[int, int], None]
Named: TypeAlias = tuple[str, Path | NDArray[np.uint8]]  # an image and its name within the data set


@dataclass(frozen=True)
class ImageScan:
    """What was seen in the images: one entry of each tuple an image, in the order of `names`."""

    names: tuple[str, ...]
    digests: tuple[str, ...]  # sha256 of the bytes
    sizes: tuple[tuple[int, int], ...]  # width, height; (0, 0) where it does not open
    formats: tuple[str, ...]  # Pillow's name; "" of pixels, of DICOM and of what does not open
    alike: tuple[tuple[int, int, float], ...]  # i < j and their thumbnails' correlation, above SIMILAR

    @cached_property
    def identical(self) -> tuple[tuple[str, ...], ...]:
        """The names of images of the same bytes, two or more together."""
        same: dict[str, list[str]] = defaultdict(list)
        for name, digest in zip(self.names, self.digests, strict=True):
            same[digest].append(name)
        return tuple(tuple(names) for names in same.values() if len(names) > 1)

    @cached_property
    def near(self) -> tuple[Pair, ...]:
        """The names of near duplicates, identical ones included, in pairs."""
        return tuple((self.names[i], self.names[j]) for i, j, correlation in self.alike if correlation > ALIKE)

    @cached_property
    def similar(self) -> tuple[Pair, ...]:
        """The names of images that look much the same without being near duplicates."""
        return tuple((self.names[i], self.names[j]) for i, j, correlation in self.alike if correlation <= ALIKE)

    @cached_property
    def duplicates(self) -> tuple[Pair, ...]:
        """Identical or near, in pairs: what must not lie in two parts."""
        same = (pair for names in self.identical for pair in combinations(names, 2))
        return tuple(dict.fromkeys((*same, *self.near)))

    @property
    def broken(self) -> tuple[str, ...]:
        """Names of images that do not open."""
        return tuple(name for name, size in zip(self.names, self.sizes, strict=True) if size == (0, 0))

    @property
    def misnamed(self) -> tuple[str, ...]:
        """Such as `a.png is JPEG`."""
        known = Image.registered_extensions()
        said = [known.get(Path(name).suffix.lower(), kind) for name, kind in zip(self.names, self.formats, strict=True)]
        found = zip(self.names, self.formats, said, strict=True)
        return tuple(f"{name} is {kind}" for name, kind, name_says in found if kind not in ("", name_says))


def scan(splits: Splits, cache: Path, most: int | None = None, watch: Watch | None = None) -> ImageScan | None:
    """From the cache, or by reading every image, and then kept; None for more than `most` files that are not known yet.

    Files are known again by their names, sizes and times of change, whatever part they are in. `watch` is told how many
    files of how many were read.
    """
    images = sorted(
        (pair for part in splits.parts.values() for pair in zip(part.names, part.images, strict=True)), key=_name
    )
    kept = cache / "audit" / _key(images) / "evidence.json"
    found, files = _read(kept), bool(images) and isinstance(images[0][1], Path)
    if found is None and (most is None or len(images) <= most or not files):
        found = scan_images(images, watch if files else None)
        checked_json.write(kept, TypeAdapter(ImageScan).dump_python(found, mode="json"), kept.parent.name)
    return found


def scan_images(images: Sequence[Named], watch: Watch | None = None) -> ImageScan:
    """Read every image once; what does not open is noted, not raised. Raises DataError for DICOM without pydicom."""
    thumbnails, facts = np.zeros((len(images), SIDE * SIDE), np.float32), list[Seen]()
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        for i, (fact, grey) in enumerate(pool.map(_scan_image, (image for _, image in images))):
            thumbnails[i] = grey
            facts.append(fact)
            if watch:
                watch(i + 1, len(images))
    digests, sizes, formats = zip(*facts, strict=True) if facts else ((), (), ())
    return ImageScan(tuple(map(_name, images)), digests, sizes, formats, tuple(alike(thumbnails)))


def _scan_image(image: Path | NDArray[np.uint8]) -> tuple[Seen, Thumbnails]:
    """Digest, size and format of one image, and its thumbnail."""
    if isinstance(image, np.ndarray):
        picture = Image.fromarray(image)
        return (hashlib.sha256(np.ascontiguousarray(image).data).hexdigest(), picture.size, ""), thumbnail(picture)
    digest = cached_file_digest(image)
    try:
        picture = open_picture(image)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return (digest, (0, 0), ""), np.zeros(SIDE * SIDE, np.float32)
    return (digest, picture.size, _format(image)), thumbnail(picture)


def _name(image: Named) -> str:
    return image[0]


def _format(image: Path) -> str:
    """What Pillow calls the format of a file that opens; MPO is a JPEG with a second picture behind it."""
    if is_dicom(image):
        return ""
    with Image.open(image) as picture:
        return str(picture.format).replace("MPO", "JPEG")


def _key(images: Sequence[Named]) -> str:
    """What the evidence is kept under: changes with every name and file, and with how it is gathered."""
    total = hashlib.sha256(f"{VERSION} {SIDE} {SIMILAR}".encode())
    for name, image in images:
        total.update(name.encode(errors="surrogateescape"))
        if isinstance(image, Path):
            known = image.stat()
            total.update(f"{image.absolute()} {known.st_size} {known.st_mtime_ns}".encode(errors="surrogateescape"))
        else:
            total.update(np.ascontiguousarray(image).data)
    return total.hexdigest()[:24]


def _read(file: Path) -> ImageScan | None:
    """What was kept, or None where there is nothing or it is damaged."""
    try:
        return TypeAdapter(ImageScan).validate_python(checked_json.read(file, file.parent.name))
    except (OSError, ValueError):
        return None
