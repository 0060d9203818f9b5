"""Images decoded once into a memory-mapped uint8 cache, one entry for each set of splits and preprocessing.

    pixels.npy    uint8 (n, 3, S, S): train, then val, then test
    parts.json    labels, names and groups of every image, with the size, time and SHA-256 of pixels.npy
    broken.json   in place of both: which images cannot be decoded, and why

An entry whose files do not match their digests is decoded again.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from peftbench.core.contract import PARTS, DatasetCard, Part, Preprocessing, Splits
from peftbench.data.decode import OnImages, decode
from peftbench.data.image_io import broken_sentence
from peftbench.data.splits import cached_file_digest, check_parts, fingerprint, missing_class_notes, missing_classes
from peftbench.errors import BrokenImagesError, DataError
from peftbench.storage import cache as cache_folder
from peftbench.storage import checked_json
from peftbench.storage.cache import Hold
from peftbench.storage.files import PRIVATE_FILE, sha256_file, sha256_json

CHUNK = 256  # images copied at a time
DECODER = 2  # version of decode.py and what it uses; another one decodes everything again

_latest: dict[tuple[Path, Preprocessing], tuple[Path, dict[str, int]]] = {}  # a cache's last entry, rows of images
BrokenImages = Mapping[str, Mapping[int, str]]  # part -> position -> why the image cannot be decoded


@dataclass(frozen=True)
class Data:
    """A decoded data set: pixels of all parts in one array, and the label, name and group of each image."""

    folder: Path
    card: DatasetCard
    rule: str
    notes: tuple[str, ...]
    fingerprint: str
    labels: dict[str, NDArray[np.int64]]  # part -> (n,) or (n, labels)
    names: dict[str, list[str]]
    groups: dict[str, list[str]]
    hold: Hold | None = field(default=None, compare=False, repr=False)  # keeps the entry from being evicted

    @property
    def sizes(self) -> dict[str, int]:
        """The number of images in each part."""
        return {part: len(labels) for part, labels in self.labels.items()}

    def pixels(self, part: str) -> NDArray[np.uint8]:
        """Return the images of a part, (n, 3, S, S), memory-mapped."""
        start = sum(self.sizes[p] for p in PARTS[: PARTS.index(part)])
        pixels: NDArray[np.uint8] = np.load(self.folder / "pixels.npy", mmap_mode="r")
        return pixels[start : start + self.sizes[part]]


# --- preparing and opening -------------------------------------------------------------------------------------------


def prepare(
    card: DatasetCard,
    splits: Splits,
    preprocessing: Preprocessing,
    cache: Path,
    *,
    skip_broken: bool = False,
    progress: OnImages | None = None,
    limit: int = cache_folder.LIMIT,
) -> Data:
    """Return the decoded splits, decoding what is not cached yet, and then evict old entries above `limit` bytes.

    Of several processes one decodes and the others wait. Raises BrokenImagesError for images that cannot be decoded,
    unless `skip_broken` leaves them out with a note, SplitError if a part or a class of train is empty then, and
    DataError when the disk is full.
    """
    check_parts(card, splits)
    print_ = fingerprint(splits)
    folder, facts = entry_folder(print_, preprocessing, cache), _facts(card, splits, print_)
    hold = Hold(folder)
    broken = known_broken(folder, splits, preprocessing)
    if not broken and not is_whole(folder, thorough=True):  # thorough once per study; its jobs check size and time
        if _latest.get((cache, preprocessing), (None,))[0] == folder:
            del _latest[cache, preprocessing]  # it was damaged since
        broken = _build(card, splits, preprocessing, cache, progress)
        cache_folder.shrink(cache, limit)
    if broken:
        rest = _without(card, splits, broken, skip=skip_broken)
        return prepare(card, rest, preprocessing, cache, progress=progress, limit=limit)
    if sha256_json(read_manifest(folder)["facts"]) != sha256_json(facts):  # the card or a note has changed
        _write_manifest(folder, facts, read_manifest(folder)["pixels"])
    _remember(folder, splits, preprocessing, cache)
    return _data(folder, hold)


def open_prepared(print_: str, preprocessing: Preprocessing, cache: Path) -> Data:
    """Return data that `prepare` has cached, by their fingerprint. Raises DataError if the entry is gone or damaged."""
    folder = entry_folder(print_, preprocessing, cache)
    hold = Hold(folder)
    if not is_whole(folder):
        raise DataError(f"The decoded images in {folder} are missing or damaged. Run the study again to rebuild them.")
    return _data(folder, hold)


def entry_folder(print_: str, preprocessing: Preprocessing, cache: Path) -> Path:
    """Return the folder of the decoded images with this fingerprint."""
    key = {"data": print_, "side": preprocessing.size, "by": preprocessing.interpolation, "fit": preprocessing.fit}
    key |= {"crop": preprocessing.crop} if preprocessing.crop != 1.0 else {}  # entries from before there was a crop
    return cache / "pixels" / sha256_json(key | {"decoder": DECODER})[:24]


def _data(folder: Path, hold: Hold) -> Data:
    facts: dict[str, Any] = read_manifest(folder)["facts"]
    card = DatasetCard.restored(facts.pop("card"))
    shape = (-1, len(card.classes)) if card.task == "multi_label" else (-1,)  # also of an empty part
    labels = {part: np.asarray(values, np.int64).reshape(shape) for part, values in facts.pop("labels").items()}
    return Data(folder, card, notes=tuple(facts.pop("notes")), labels=labels, hold=hold, **facts)


def _facts(card: DatasetCard, splits: Splits, print_: str) -> dict[str, Any]:
    """Return everything about the images except their pixels, as `parts.json` holds it."""
    parts = splits.parts.items()
    return {
        "card": asdict(card),
        "rule": splits.rule,
        "notes": splits.notes,
        "fingerprint": print_,
        "labels": {name: part.labels.tolist() for name, part in parts},
        "names": {name: part.names for name, part in parts},
        "groups": {name: part.groups for name, part in parts},
    }


# --- decoding into an entry ------------------------------------------------------------------------------------------


def _build(
    card: DatasetCard, splits: Splits, preprocessing: Preprocessing, cache: Path, progress: OnImages | None
) -> BrokenImages:
    """Decode the splits into an entry. If some images fail, cache the others and return the positions of those."""
    print_ = fingerprint(splits)
    folder, total = entry_folder(print_, preprocessing, cache), sum(map(len, splits.parts.values()))
    with cache_folder.making(folder) as draft:
        if is_whole(folder, thorough=True):  # another process built it while this one waited
            return {}
        pixels = _allocate(draft, total, preprocessing.size)
        broken = _decode_parts(splits, preprocessing, cache, pixels, progress)
        pixels.flush()
        if broken:
            _build_rest(card, splits, broken, pixels, preprocessing, cache)
            (draft / "pixels.npy").unlink()
            checked_json.write(draft / "broken.json", broken)
        else:
            seal(draft, _facts(card, splits, print_))
        cache_folder.publish(draft, folder)
    return broken


def _allocate(draft: Path, images: int, side: int) -> np.memmap[Any, np.dtype[np.uint8]]:
    file, shape = draft / "pixels.npy", (images, 3, side, side)
    with cache_folder.reserved(file, math.prod(shape)):
        file.touch(PRIVATE_FILE)  # otherwise the umask would decide
        return np.lib.format.open_memmap(file, "w+", np.uint8, shape)


def _decode_parts(
    splits: Splits, preprocessing: Preprocessing, cache: Path, out: NDArray[np.uint8], progress: OnImages | None
) -> BrokenImages:
    """Fill `out` with the images of one part after another."""
    done, broken = 0, dict[str, dict[int, str]]()

    def tick(images: int) -> None:
        nonlocal done
        done += images
        if progress:
            progress(done, len(out))

    for name, part in splits.parts.items():
        rows = out[done : done + len(part)]
        rest = _copy_known(part, preprocessing, cache, rows)
        if len(rest) == len(part):
            _, failed = decode(part, preprocessing, rows, tick)
        else:
            tick(len(part) - len(rest))
            rows[rest], failed = decode(part.take(rest), preprocessing, tick=tick)
        broken |= {name: {rest[i]: why for i, why in failed.items()}} if failed else {}
    return broken


def _copy_known(part: Part, preprocessing: Preprocessing, cache: Path, out: NDArray[np.uint8]) -> list[int]:
    """Copy the images that the cache's last entry holds, as another seed's parts do; return what is left."""
    latest = _latest.get((cache, preprocessing))
    if latest is None or isinstance(part.images, np.ndarray) or not is_whole(latest[0]):
        return list(range(len(part)))
    folder, rows = latest
    known = {i: rows[key] for i, file in enumerate(part.images) if (key := _content(file)) in rows}
    pixels = np.load(folder / "pixels.npy", mmap_mode="r")
    for i, row in known.items():
        out[i] = pixels[row]
    return [i for i in range(len(part)) if i not in known]


def _remember(folder: Path, splits: Splits, preprocessing: Preprocessing, cache: Path) -> None:
    """Keep for `_copy_known` which image is in which row of an entry."""
    files = [file for part in splits.parts.values() for file in part.images]
    if all(isinstance(file, Path) for file in files):
        _latest[cache, preprocessing] = folder, {_content(file): row for row, file in enumerate(files)}


def _content(file: Path) -> str:
    """Return what decides the pixels of an image: its bytes, and the suffix that makes it DICOM."""
    return cached_file_digest(file) + file.suffix.lower()


def _build_rest(
    card: DatasetCard,
    splits: Splits,
    broken: BrokenImages,
    pixels: NDArray[np.uint8],
    preprocessing: Preprocessing,
    cache: Path,
) -> None:
    """Make the entry of the images that can be decoded by copying their pixels, so that none is decoded twice."""
    starts: dict[str, int] = dict(zip(PARTS, np.cumsum([0, *map(len, splits.parts.values())]).tolist(), strict=False))
    bad = [starts[name] + i for name, positions in broken.items() for i in positions]
    good = np.delete(np.arange(len(pixels)), bad)
    try:
        rest = _without(card, splits, broken, skip=True)
    except BrokenImagesError:
        return  # nothing to train or to test with
    print_ = fingerprint(rest)
    folder = entry_folder(print_, preprocessing, cache)
    with cache_folder.making(folder) as draft:
        out = _allocate(draft, len(good), preprocessing.size)
        for start in range(0, len(good), CHUNK):
            out[start : start + CHUNK] = pixels[good[start : start + CHUNK]]
        out.flush()
        seal(draft, _facts(card, rest, print_))
        cache_folder.publish(draft, folder)


def known_broken(folder: Path, splits: Splits, preprocessing: Preprocessing) -> BrokenImages:
    """Return the images listed in `broken.json` if all of them still fail; a decoder may have been installed since."""
    try:
        stored: dict[str, dict[str, str]] = checked_json.read(folder / "broken.json")
        known = {name: {int(i): str(why) for i, why in failed.items()} for name, failed in stored.items()}
        suspects = {name: splits.parts[name].take(list(failed)) for name, failed in known.items()}
    except (OSError, ValueError, KeyError, IndexError, AttributeError, TypeError):
        return {}
    still = all(len(decode(part, preprocessing)[1]) == len(part) for part in suspects.values())
    return known if still else {}


def _without(card: DatasetCard, splits: Splits, broken: BrokenImages, *, skip: bool) -> Splits:
    """Return the splits without broken images. Raises BrokenImagesError unless `skip`, or if a part would be empty."""
    reasons = {splits.parts[part].names[i]: why for part, failed in broken.items() for i, why in failed.items()}
    if not skip:
        raise BrokenImagesError(broken_sentence(reasons, ", or pass --skip-broken"))
    parts = {n: p.take([i for i in range(len(p)) if i not in broken.get(n, {})]) for n, p in splits.parts.items()}
    emptied = [part for part in broken if not len(parts[part])]
    emptied = emptied or [f"class {name!r} of train" for name in missing_classes(parts["train"], card)]
    if emptied:
        what = f"{card.title}: --skip-broken would leave no image in {' and '.join(emptied)}. "
        raise BrokenImagesError(what + broken_sentence(reasons))
    stale = missing_class_notes(splits.parts, card)
    kept = (note for note in splits.notes if note not in stale)
    note = f"Images left out because they cannot be decoded: {len(reasons)}."
    notes = (*kept, note, *missing_class_notes(parts, card))
    return replace(splits, train=parts["train"], val=parts["val"], test=parts["test"], notes=notes)


# --- integrity of an entry -------------------------------------------------------------------------------------------


def is_whole(folder: Path, *, thorough: bool = False) -> bool:
    """Return whether an entry matches its manifest; pixels are read if their time differs or with `thorough`."""
    file = folder / "pixels.npy"
    try:
        known, now = read_manifest(folder), file.stat()
    except (OSError, ValueError, KeyError, TypeError):
        return False
    if now.st_size != known["pixels"]["bytes"]:
        return False
    if now.st_mtime_ns == known["pixels"]["time"] and not thorough:
        return True
    return bool(sha256_file(file) == known["pixels"]["sha256"])


def seal(folder: Path, facts: Mapping[str, Any]) -> None:
    """Write the manifest of `pixels.npy`: the facts about its images, its size, time and SHA-256."""
    file = folder / "pixels.npy"
    now = file.stat()
    pixels = {"bytes": now.st_size, "time": now.st_mtime_ns, "sha256": sha256_file(file)}
    _write_manifest(folder, facts, pixels)


def _write_manifest(folder: Path, facts: Mapping[str, Any], pixels: Mapping[str, Any]) -> None:
    checked_json.write(folder / "parts.json", {"facts": facts, "pixels": pixels})


def read_manifest(folder: Path) -> dict[str, Any]:
    """Return the manifest of an entry. Raises OSError if it is missing and ValueError if it was modified."""
    manifest: dict[str, Any] = checked_json.read(folder / "parts.json")
    return manifest
