"""Shared code of data sets made of image files: find the folder, list images, assemble parts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from peftbench.core.catalogue import dataset_entry
from peftbench.core.contract import INCOMPLETE, PARTS, DatasetCard, Part, Presence, Splits
from peftbench.data import image_files, image_io
from peftbench.data.splits import cached_file_digest, crossings, missing_class_notes
from peftbench.errors import MissingDataError
from peftbench.storage import archives

DEPTH = 3  # levels below root/<name> searched for an unpacked download


def find_home(root: Path, name: str, needed: Sequence[str]) -> Path:
    """Return the folder below `root/name` that holds every path of `needed`; the shallowest, then the first by name.

    Packed downloads are unpacked one by one until it is found. Raises MissingDataError, which names what is missing,
    where it was searched and how to get it, and DataError for a bad archive.
    """
    home, lack = _search(root / name, needed)
    while not home and (packed := _packed(root / name, needed)):
        archives.unpack(packed[0])
        home, lack = _search(root / name, needed)
    if home:
        return home
    raise MissingDataError(_missing(name, lack))


def presence(root: Path, name: str, needed: Sequence[str], images: Callable[[Path], int]) -> Presence:
    """Return how many of the set's images are here; `images` counts them in the folder that `find_home` returns."""
    home, _ = _search(root / name, needed)
    found, total = images(home) if home else 0, published_count(name)
    return Presence(found, total, packed=found < total and bool(_packed(root / name, needed)))


def published_count(name: str) -> int:
    """Return the number of images of a complete copy."""
    entry = dataset_entry(name)
    return entry.complete or entry.sizes["total"]


def _search(top: Path, needed: Sequence[str]) -> tuple[Path | None, str]:
    """Return the folder that holds all `needed` paths, or None and what is missing."""
    most, lack = 0, f"{top} does not exist" if not top.is_dir() else f"{top} holds no {needed[0]}"
    for folder in folders(top):
        missing = [path for path in needed if not below(folder, path).exists()]
        if not missing:
            return folder, ""
        if len(needed) - len(missing) > most:
            most, lack = len(needed) - len(missing), f"{folder} lacks {', '.join(missing)}"
    return None, lack


def _packed(top: Path, needed: Sequence[str]) -> list[Path]:
    """Return archives that are not unpacked yet; first those whose name occurs in a `needed` path."""
    steps = {step for path in needed for step in Path(path).parts}
    found = [file for folder in folders(top) for file in folder.iterdir() if archives.is_archive(file)]
    pending = [file for file in sorted(found) if not archives.place(file).is_dir()]
    return sorted(pending, key=lambda file: archives.place(file).name not in steps)


def are_present(name: str, files: Sequence[Path]) -> list[bool]:
    """Return which files of an official list exist. Raises MissingDataError if none does."""
    exists = [file.is_file() for file in files]
    if not any(exists):
        first = f", e.g. {files[0]}" if files else ""
        raise MissingDataError(_missing(name, f"none of {len(files)} listed files exists{first}"))
    return exists


def below(home: Path, path: str) -> Path:
    """Return `home / path`, skipping folders repeated inside themselves (`train/train`) by some unpackers."""
    for step in Path(path).parts:
        home /= step
        home = home / step if (home / step).is_dir() else home
    return home


def part_of_files(
    home: Path, files: Sequence[Path], labels: Sequence[int], groups: Sequence[str] | None = None
) -> Part:
    """Return a part of files named by their paths relative to `home`; without `groups` each image is its own group."""
    names = tuple(file.relative_to(home).as_posix() for file in files)
    return Part(list(files), np.asarray(labels, np.int64), names, names if groups is None else tuple(groups))


def digests(files: Sequence[Path]) -> tuple[str, ...]:
    """Return a key per file, equal if and only if the bytes are: its size if unique, else size and SHA-256."""
    sizes = [_size(file) for file in files]
    same_size = Counter(sizes)
    return tuple(
        f"{size} {cached_file_digest(file)}" if same_size[size] > 1 else size
        for file, size in zip(files, sizes, strict=True)
    )


def _size(file: Path) -> str:
    """Return the size of a file in digits, its path if it cannot be opened: decoding reports the reason."""
    try:
        return str(file.stat().st_size)
    except OSError:
        return str(file)


def contradicting(labels: Sequence[Hashable], keys: Sequence[str]) -> list[str]:
    """Return the sorted keys that occur with more than one label."""
    pairs = set(zip(keys, labels, strict=True))
    return sorted(key for key, classes in Counter(key for key, _ in pairs).items() if classes > 1)


def assemble(
    parts: Mapping[str, Part],
    card: DatasetCard,
    rule: str,
    notes: Sequence[str] = (),
    *,
    carved: bool = False,
    left_out: Sequence[str] = (),
) -> Splits:
    """Return splits with notes on how files are shown, groups that cross parts and classes that a part lacks.

    `carved`: val was split off a published train part. `left_out`: images found that belong to no class.
    """
    key = card.group_key or "byte-identical picture"
    parts = {name: parts[name] for name in PARTS}
    files = [file for part in parts.values() if not isinstance(part.images, np.ndarray) for file in part.images]
    all_notes = (*notes, *image_io.notes(files), *crossings(parts, key), *missing_class_notes(parts, card))
    return Splits(parts["train"], parts["val"], parts["test"], rule, all_notes, carved, tuple(left_out))


def size_notes(name: str, parts: Mapping[str, Part]) -> tuple[str, ...]:
    """Return notes if the number of images differs from the published one or from the SH-PEFT paper's."""
    entry = dataset_entry(name)
    found, published = sum(map(len, parts.values())), entry.sizes["total"]
    if found < published_count(name):
        return (f"{INCOMPLETE}: {found} of {published_count(name)} images are here.",)
    counts = {part: len(images) for part, images in parts.items()}
    if "val" not in entry.paper:  # the paper trained on what is split off train here
        counts["train"] += counts.pop("val")
    notes = [] if found == published else [f"This copy has {found} images; {published} were published."]
    if entry.paper and dict(entry.paper) != counts:
        stated = ", ".join(f"{part} {count}" for part, count in entry.paper.items())
        notes.append(f"The SH-PEFT paper states {stated} images; this copy has {'/'.join(map(str, counts.values()))}.")
    return tuple(notes)


def _missing(name: str, lack: str) -> str:
    entry = dataset_entry(name)
    return f"{entry.title} is not complete on this machine: {lack}. {entry.how_to_get}"


def folders(top: Path) -> Iterator[Path]:
    """Yield `top` and the folders below it, level by level, down to DEPTH."""
    level = [top] if top.is_dir() else []
    for _ in range(DEPTH + 1):
        yield from level
        level = [child for folder in level for child in image_files.subfolders(folder)]
