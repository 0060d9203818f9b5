"""List image files in a folder and its subfolders, in the same way for training and prediction.

Symbolic links are followed, each folder once. Hidden files (such as macOS's `._` copies), files of Windows
itself and files without an image suffix are skipped.
"""

from __future__ import annotations

import mimetypes
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from peftbench.data import dicom
from peftbench.errors import DataError

EXTENSIONS = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp"}) | dicom.SUFFIXES
SYSTEM_FILES = frozenset({"thumbs.db", "ehthumbs.db", "desktop.ini", "$recycle.bin"})  # of Windows, hidden there
SUFFIXES_SHOWN = 3  # the most frequent ones in the note about skipped files


def images_in(folder: Path) -> list[Path]:
    """Return the image files in `folder` and its subfolders, sorted by path, without hidden ones."""
    found = [f"{place}{os.sep}{name}" for place, names, _ in _walk(folder) for name in names if _is_image(name)]
    return [Path(file) for file in sorted(found, key=lambda file: file.split(os.sep))]  # noqa: PTH206 - sorts as Path does, but faster


def other_files(folders: Iterable[Path]) -> tuple[str, ...]:
    """Return a note that counts the visible files in these folders that are not image files; () if there are none."""
    kinds = Counter[str]()
    for folder in folders:
        for _, names, special in _walk(folder):
            kinds.update(_kind(name) for name in names if not _is_image(name))
            kinds.update("not a regular file" for _ in special)
    most = sorted(kinds.items(), key=lambda pair: (-pair[1], pair[0]))[:SUFFIXES_SHOWN]
    listed = ", ".join(f"{count} {kind}" for kind, count in most)
    return (f"Files left out because they are not image files: {sum(kinds.values())} ({listed}).",) if kinds else ()


def count_images(home: Path, folders: Sequence[str]) -> int:
    """Return the number of image files in these subfolders of `home`."""
    return sum(_is_image(name) for folder in folders for _, names, _ in _walk(home / folder) for name in names)


def images_directly_in(folder: Path) -> list[Path]:
    """Return the image files in `folder` itself, without its subfolders, sorted."""
    found = (one for one in _visible(str(folder)) if not one.is_dir() and not _is_special(one) and _is_image(one.name))
    return sorted(Path(one.path) for one in found)


def subfolders(folder: Path) -> list[Path]:
    """Return the visible folders directly in `folder`, sorted."""
    with os.scandir(folder) as children:
        return sorted(Path(child.path) for child in children if child.is_dir() and not _is_hidden(child.name))


def _walk(folder: Path) -> Iterator[tuple[str, list[str], list[str]]]:
    """Yield each folder with the names of its visible files and of its pipes, sockets and devices.

    The type of an entry comes with its name, so that there is no system call for each file but links.
    """
    seen = {*map(str, folder.resolve().parents)}  # a link to one of these would be a cycle
    waiting, links = [str(folder)], list[str]()
    while waiting or links:  # links come after the real folders
        place = waiting.pop() if waiting else links.pop(0)
        if (real := os.path.realpath(place)) in seen:
            continue
        seen.add(real)
        names, special = list[str](), list[str]()
        for entry in _visible(place):
            if entry.is_dir():
                (links if entry.is_symlink() else waiting).append(entry.path)
            else:
                (special if _is_special(entry) else names).append(entry.name)
        yield place, names, special


def _visible(place: str) -> list[os.DirEntry[str]]:
    """Return the visible entries of a folder, the last by name first; none if it does not exist."""
    try:
        with os.scandir(place) as entries:
            return sorted((one for one in entries if not _is_hidden(one.name)), key=lambda one: one.name, reverse=True)
    except OSError as error:
        _refuse(error)
        return []


def _is_special(entry: os.DirEntry[str]) -> bool:
    """Return whether an entry is neither a regular file nor a broken link, which is reported when it is decoded."""
    return not entry.is_file() and not (entry.is_symlink() and not os.path.exists(entry.path))  # noqa: PTH110


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
    return name.startswith((".", "__MACOSX")) or name.lower() in SYSTEM_FILES
