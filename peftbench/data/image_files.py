"""Image files in a folder and below: the same for training and for prediction.

Links are followed, each folder once; hidden files (such as macOS's ._copies) and what is named like no image are not
seen.
"""

from __future__ import annotations

import mimetypes
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from peftbench.data import image_io
from peftbench.errors import DataError

EXTENSIONS = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp"}) | image_io.DICOM
KINDS_TOLD = 3  # suffixes of files that are left out, the most frequent


def images_in(folder: Path) -> list[Path]:
    """The image files in `folder` and below, sorted; hidden ones (such as macOS's ._copies) left out."""
    found = [f"{place}{os.sep}{name}" for place, names in _walk(folder) for name in names if _is_image(name)]
    return [Path(file) for file in sorted(found, key=lambda file: file.split(os.sep))]  # noqa: PTH206 - as paths sort, but soon


def left_out(folders: Iterable[Path]) -> tuple[str, ...]:
    """A note on the visible files in these folders and below whose names are none of images, by suffix."""
    names = (name for folder in folders for _, found in _walk(folder) for name in found)
    kinds = Counter(_kind(name) for name in names if not _is_image(name))
    most = sorted(kinds.items(), key=lambda pair: (-pair[1], pair[0]))[:KINDS_TOLD]
    told = ", ".join(f"{count} {kind}" for kind, count in most)
    return (f"Files left out because of their names: {sum(kinds.values())} ({told}).",) if kinds else ()


def count(home: Path, folders: Sequence[str]) -> int:
    """The image files in these folders of `home` and below."""
    return sum(_is_image(name) for folder in folders for _, names in _walk(home / folder) for name in names)


def subfolders(folder: Path) -> list[Path]:
    """The visible folders directly in `folder`, sorted."""
    with os.scandir(folder) as children:
        return sorted(Path(child.path) for child in children if child.is_dir() and not _is_hidden(child.name))


def _walk(folder: Path) -> Iterator[tuple[str, list[str]]]:
    """Folders with the names of their visible files; of a hundred thousand files the disk is not asked about each."""
    seen = {*map(str, folder.resolve().parents)}  # a link to one of these would lead round in a circle
    waiting = [str(folder)]
    while waiting:  # links come behind the folders themselves
        for place, below, names in os.walk(waiting.pop(0), onerror=_refuse):
            real = os.path.realpath(place)
            below[:] = [] if real in seen else sorted(name for name in below if not _is_hidden(name))
            if real not in seen:
                seen.add(real)
                yield place, [name for name in names if not _is_hidden(name)]
            inside = (f"{place}{os.sep}{name}" for name in below)
            waiting += [path for path in inside if os.path.islink(path)]  # noqa: PTH114


def _refuse(error: OSError) -> None:
    """A folder that cannot be read must not pass for an empty one; where there is none, there is no image."""
    if isinstance(error, FileNotFoundError):
        return
    raise DataError(f"{error.filename} cannot be read ({error.strerror}); mend or remove it.")


def _kind(name: str) -> str:
    """A suffix that says what a file is; any other may be a piece of a patient's name."""
    suffix = _suffix(name)
    return (suffix if mimetypes.guess_type(f"a{suffix}")[0] else "other") if suffix else "no suffix"


def _suffix(name: str) -> str:
    return os.path.splitext(name)[1].lower()  # noqa: PTH122 - a hundred thousand times


def _is_image(name: str) -> bool:
    return _suffix(name) in EXTENSIONS


def _is_hidden(name: str) -> bool:
    return name.startswith((".", "__MACOSX"))
