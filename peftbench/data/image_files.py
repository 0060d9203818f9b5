"""List image files in a folder and its subfolders, in the same way for training and prediction.

Symbolic links are followed, each folder once. Hidden files (such as macOS's `._` copies) and files without an image
suffix are skipped.
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
SUFFIXES_SHOWN = 3  # the most frequent ones in the note about skipped files


def images_in(folder: Path) -> list[Path]:
    """Return the image files in `folder` and its subfolders, sorted by path, without hidden ones."""
    found = [f"{place}{os.sep}{name}" for place, names in _walk(folder) for name in names if _is_image(name)]
    return [Path(file) for file in sorted(found, key=lambda file: file.split(os.sep))]  # noqa: PTH206 - sorts as Path does, but faster


def other_files(folders: Iterable[Path]) -> tuple[str, ...]:
    """Return a note that counts the visible files in these folders without an image suffix; () if there are none."""
    names = (name for folder in folders for _, found in _walk(folder) for name in found)
    kinds = Counter(_kind(name) for name in names if not _is_image(name))
    most = sorted(kinds.items(), key=lambda pair: (-pair[1], pair[0]))[:SUFFIXES_SHOWN]
    listed = ", ".join(f"{count} {kind}" for kind, count in most)
    return (f"Files left out because of their names: {sum(kinds.values())} ({listed}).",) if kinds else ()


def count_images(home: Path, folders: Sequence[str]) -> int:
    """Return the number of image files in these subfolders of `home`."""
    return sum(_is_image(name) for folder in folders for _, names in _walk(home / folder) for name in names)


def subfolders(folder: Path) -> list[Path]:
    """Return the visible folders directly in `folder`, sorted."""
    with os.scandir(folder) as children:
        return sorted(Path(child.path) for child in children if child.is_dir() and not _is_hidden(child.name))


def _walk(folder: Path) -> Iterator[tuple[str, list[str]]]:
    """Yield each folder with the names of its visible files, without a system call for each file."""
    seen = {*map(str, folder.resolve().parents)}  # a link to one of these would be a cycle
    waiting = [str(folder)]
    while waiting:  # links come after the real folders
        for place, below, names in os.walk(waiting.pop(0), onerror=_refuse):
            real = os.path.realpath(place)
            below[:] = [] if real in seen else sorted(name for name in below if not _is_hidden(name))
            if real not in seen:
                seen.add(real)
                yield place, [name for name in names if not _is_hidden(name)]
            inside = (f"{place}{os.sep}{name}" for name in below)
            waiting += [path for path in inside if os.path.islink(path)]  # noqa: PTH114


def _refuse(error: OSError) -> None:
    """Raise DataError for a folder that cannot be read, which must not count as empty; ignore a missing one."""
    if isinstance(error, FileNotFoundError):
        return
    raise DataError(f"Cannot read {error.filename}: {error.strerror}. Change its permissions or remove it.")


def _kind(name: str) -> str:
    """Return a file's suffix if it is a known one; an unknown suffix may be part of a patient's name."""
    suffix = _suffix(name)
    return (suffix if mimetypes.guess_type(f"a{suffix}")[0] else "other") if suffix else "no suffix"


def _suffix(name: str) -> str:
    return os.path.splitext(name)[1].lower()  # noqa: PTH122 - called for every file


def _is_image(name: str) -> bool:
    return _suffix(name) in EXTENSIONS


def _is_hidden(name: str) -> bool:
    return name.startswith((".", "__MACOSX"))
