"""What every data set made of image files needs: finding the folder, listing images, and putting parts together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from peftbench.catalogue import dataset_entry
from peftbench.contract import Card, Part, Splits
from peftbench.errors import MissingDataError, SplitError
from peftbench.splits import crossings, file_digest

EXTENSIONS = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp"})
DEPTH = 3  # how far below root/<name> a download may have been unpacked


def find(root: Path, name: str, needed: Sequence[str]) -> Path:
    """The folder at most DEPTH levels below `root/name` that holds every path of `needed`; the shallowest, then first.

    Raises MissingDataError: what is missing, where it was sought, how to get it (from the catalogue).
    """
    top, most = root / name, 0
    lack = f"{top} does not exist" if not top.is_dir() else f"nothing like {needed[0]} lies within {top}"
    for folder in _folders(top):
        missing = [path for path in needed if not (folder / path).exists()]
        if not missing:
            return folder
        if len(needed) - len(missing) > most:
            most, lack = len(needed) - len(missing), f"{folder} lacks {', '.join(missing)}"
    raise MissingDataError(_missing(name, lack))


def check_listed(name: str, listed: Sequence[Path]) -> None:
    """Raise MissingDataError if files that an official list names are not there."""
    missing = [file for file in listed if not file.is_file()]
    if missing:
        lack = f"{len(missing)} of {len(listed)} listed images are not there, the first is {missing[0]}"
        raise MissingDataError(_missing(name, lack))


def images_in(folder: Path) -> list[Path]:
    """The image files in `folder` and below, sorted; hidden ones (such as macOS's ._copies) left out."""
    files = (file for file in folder.rglob("*") if file.suffix.lower() in EXTENSIONS and file.is_file())
    return sorted(file for file in files if not _is_hidden(file.relative_to(folder)))


def subfolders(folder: Path) -> list[Path]:
    """The visible folders directly in `folder`, sorted."""
    return sorted(child for child in folder.iterdir() if child.is_dir() and not _is_hidden(Path(child.name)))


def part(home: Path, files: Sequence[Path], labels: Sequence[int], groups: Sequence[str] | None = None) -> Part:
    """A part of files, each named by its path relative to `home` and a group of its own unless `groups` are given."""
    names = tuple(file.relative_to(home).as_posix() for file in files)
    return Part(list(files), np.asarray(labels, np.int64), names, names if groups is None else tuple(groups))


def digests(files: Sequence[Path]) -> tuple[str, ...]:
    """A key a file, equal if and only if the bytes are: the size where no other file has it, else size and sha256."""
    sizes = [file.stat().st_size for file in files]
    times = Counter(sizes)
    return tuple(
        f"{size} {file_digest(file)}" if times[size] > 1 else str(size) for file, size in zip(files, sizes, strict=True)
    )


def contradicting(labels: Sequence[int], keys: Sequence[str]) -> list[str]:
    """The keys under which images of more than one class lie, sorted."""
    pairs = set(zip(keys, labels, strict=True))
    return sorted(key for key, classes in Counter(key for key, _ in pairs).items() if classes > 1)


def assemble(
    parts: Mapping[str, Part], card: Card, rule: str, notes: Sequence[str] = (), *, carved: bool = False
) -> Splits:
    """Splits of `train`, `val` and `test`, with notes on groups that cross and classes that val or test lack.

    `carved` says that val was cut off a published train part.

    Raises SplitError for a class without a training image.
    """
    key = card.group_key or "byte-identical picture"
    parts = {name: parts[name] for name in ("train", "val", "test")}
    absent = {name: _absent(found, card.classes) for name, found in parts.items()}
    if absent["train"]:
        raise SplitError(f"{card.title}: no training image of class {', '.join(map(repr, absent['train']))}; add some.")
    lacks = [f"No image of class {label!r} in {name}." for name, classes in absent.items() for label in classes]
    all_notes = (*notes, *crossings(parts, key), *lacks)
    return Splits(parts["train"], parts["val"], parts["test"], rule, all_notes, carved)


def count_note(name: str, found: int) -> tuple[str, ...]:
    """A sentence where the number of images found differs from the published one."""
    published = dataset_entry(name).sizes["total"]
    return () if found == published else (f"{found} images are here, {published} were published.",)


def _missing(name: str, lack: str) -> str:
    entry = dataset_entry(name)
    return f"{entry.title} is not wholly on this machine: {lack}. {entry.how_to_get}"


def _folders(top: Path) -> Iterator[Path]:
    """`top` and the folders below it, level by level."""
    level = [top] if top.is_dir() else []
    for _ in range(DEPTH + 1):
        yield from level
        level = [child for folder in level for child in subfolders(folder)]


def _is_hidden(path: Path) -> bool:
    return any(step.startswith((".", "__MACOSX")) for step in path.parts)


def _absent(found: Part, classes: Sequence[str]) -> list[str]:
    seen = set(found.labels.tolist())
    return [name for label, name in enumerate(classes) if label not in seen]
