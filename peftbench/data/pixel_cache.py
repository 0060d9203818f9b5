"""Decoded once into a memory-mapped uint8 cache (see `sealed`), made into float batches on the device."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float32
from numpy.typing import NDArray
from torch import Tensor

from peftbench.core.contract import Card, Preprocessing, Splits
from peftbench.core.spec import digest
from peftbench.data.decode import decode
from peftbench.data.sealed import is_whole, mend, read, seal
from peftbench.data.splits import fingerprint
from peftbench.errors import BrokenImagesError, DataError
from peftbench.storage import cache as kept
from peftbench.storage import checked_json
from peftbench.storage.cache import Hold

PARTS = ("train", "val", "test")
ROWS = 256  # images copied at a time
RESIDENT = 0.25  # of a card's free memory that images may take for good

Broken = Mapping[str, Sequence[int]]  # part -> positions of the images that do not open
Watch = Callable[[int, int], None]  # images decoded, images in all


@dataclass(frozen=True)
class Data:
    """A data set as decoded: pixels of all parts in one array, and what is known of each image."""

    folder: Path
    card: Card
    rule: str
    notes: tuple[str, ...]
    fingerprint: str
    labels: dict[str, NDArray[np.int64]]  # part -> (n,) or (n, labels)
    names: dict[str, list[str]]
    groups: dict[str, list[str]]
    hold: Hold | None = field(default=None, compare=False, repr=False)  # so long it is not dropped from the cache

    @property
    def sizes(self) -> dict[str, int]:
        """Images of each part."""
        return {part: len(labels) for part, labels in self.labels.items()}

    def pixels(self, part: str) -> NDArray[np.uint8]:
        """(n, 3, size, size), memory-mapped."""
        start = sum(self.sizes[p] for p in PARTS[: PARTS.index(part)])
        whole: NDArray[np.uint8] = np.load(self.folder / "pixels.npy", mmap_mode="r")
        return whole[start : start + self.sizes[part]]


# --- the cache -------------------------------------------------------------------------------------------------------


def prepare(
    card: Card,
    splits: Splits,
    preprocessing: Preprocessing,
    cache: Path,
    *,
    skip_broken: bool = False,
    watch: Watch | None = None,
    limit: int = kept.LIMIT,
) -> Data:
    """Decode what is not in the cache yet, in one process at a time; then keep the cache below `limit` bytes.

    Raises BrokenImagesError, unless `skip_broken` leaves such images out and says so, and DataError for a full disk.
    """
    print_ = fingerprint(splits)
    folder, facts = _place(print_, preprocessing, cache), _facts(card, splits, print_)
    hold = Hold(folder)
    broken = _known_broken(folder, splits, preprocessing)
    if not broken and not is_whole(folder, thorough=True):  # once a study; each of its jobs looks at size and time
        broken = _build(card, splits, preprocessing, cache, watch)
    if broken:
        rest = _without(splits, broken, skip=skip_broken)
        return prepare(card, rest, preprocessing, cache, watch=watch, limit=limit)
    kept.shrink(cache, limit)
    if digest(read(folder)["facts"]) != digest(facts):  # the pixels are the same, but the card or a note was mended
        mend(folder, facts)
    return _data(folder, hold)


def find(print_: str, preprocessing: Preprocessing, cache: Path) -> Data:
    """Data that `prepare` made, by their fingerprint."""
    folder = _place(print_, preprocessing, cache)
    hold = Hold(folder)
    if not is_whole(folder):
        raise DataError(f"The decoded images in {folder} are gone or damaged; run the study again to decode them anew.")
    return _data(folder, hold)


def _place(print_: str, preprocessing: Preprocessing, cache: Path) -> Path:
    key = {"data": print_, "side": preprocessing.size, "by": preprocessing.interpolation, "fit": preprocessing.fit}
    return cache / "pixels" / digest(key)[:24]


def _data(folder: Path, hold: Hold) -> Data:
    facts: dict[str, Any] = read(folder)["facts"]
    known: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in facts.pop("card").items()}
    card = Card(**known)
    shape = (-1, len(card.classes)) if card.task == "multi_label" else (-1,)  # of an empty part, too
    labels = {part: np.asarray(values, np.int64).reshape(shape) for part, values in facts.pop("labels").items()}
    return Data(folder, card, notes=tuple(facts.pop("notes")), labels=labels, hold=hold, **facts)


def _facts(card: Card, splits: Splits, print_: str) -> dict[str, Any]:
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


# --- its files -------------------------------------------------------------------------------------------------------


def _build(card: Card, splits: Splits, preprocessing: Preprocessing, cache: Path, watch: Watch | None) -> Broken:
    """Make the entry of these splits, or note which of their images do not open and make the entry of the others."""
    print_ = fingerprint(splits)
    folder, total = _place(print_, preprocessing, cache), sum(map(len, splits.parts.values()))
    with kept.making(folder) as draft:
        if is_whole(folder, thorough=True):  # another process made it while this one waited
            return {}
        pixels = _canvas(draft, total, preprocessing.size)
        broken = _decode(splits, preprocessing, pixels, watch)
        pixels.flush()
        if broken:
            _keep_the_rest(card, splits, broken, pixels, preprocessing, cache)
            (draft / "pixels.npy").unlink()
            checked_json.write(draft / "broken.json", broken)
        else:
            seal(draft, _facts(card, splits, print_))
        kept.publish(draft, folder)
    return broken


def _canvas(draft: Path, images: int, side: int) -> np.memmap[Any, np.dtype[np.uint8]]:
    kept.refuse_full(draft, images * 3 * side * side)
    made = np.lib.format.open_memmap(draft / "pixels.npy", "w+", np.uint8, (images, 3, side, side))
    kept.reserve(draft / "pixels.npy")
    return made


def _decode(splits: Splits, preprocessing: Preprocessing, out: NDArray[np.uint8], watch: Watch | None) -> Broken:
    """Fill `out`, part after part."""
    done, broken = 0, dict[str, list[int]]()

    def tick(images: int) -> None:
        nonlocal done
        done += images
        if watch:
            watch(done, len(out))

    for name, part in splits.parts.items():
        start = done
        _, bad = decode(part, preprocessing, out[start : start + len(part)], tick)
        broken |= {name: bad} if bad else {}
    return broken


def _keep_the_rest(
    card: Card, splits: Splits, broken: Broken, pixels: NDArray[np.uint8], preprocessing: Preprocessing, cache: Path
) -> None:
    """The entry of the images that open, copied, so that nothing is decoded twice."""
    starts: dict[str, int] = dict(zip(PARTS, np.cumsum([0, *map(len, splits.parts.values())]).tolist(), strict=False))
    bad = [starts[name] + i for name, places in broken.items() for i in places]
    good = np.delete(np.arange(len(pixels)), bad)
    if not len(good):
        return
    rest = _without(splits, broken, skip=True)
    print_ = fingerprint(rest)
    folder = _place(print_, preprocessing, cache)
    with kept.making(folder) as draft:
        out = _canvas(draft, len(good), preprocessing.size)
        for start in range(0, len(good), ROWS):
            out[start : start + ROWS] = pixels[good[start : start + ROWS]]
        out.flush()
        seal(draft, _facts(card, rest, print_))
        kept.publish(draft, folder)


def _known_broken(folder: Path, splits: Splits, preprocessing: Preprocessing) -> Broken:
    """The images that did not open last time, if none of them opens now: a reader may have been installed since."""
    try:
        known: dict[str, list[int]] = checked_json.read(folder / "broken.json")
        suspects = {name: splits.parts[name].take(places) for name, places in known.items()}
    except (OSError, ValueError, KeyError, IndexError):
        return {}
    still = all(len(decode(part, preprocessing)[1]) == len(part) for part in suspects.values())
    return known if still else {}


def _without(splits: Splits, broken: Broken, *, skip: bool) -> Splits:
    names = [splits.parts[part].names[i] for part, bad in broken.items() for i in bad]
    if not skip or len(names) == sum(map(len, splits.parts.values())):
        shown = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")  # noqa: PLR2004
        raise BrokenImagesError(
            f"{len(names)} images do not open: {shown}. Mend them, or leave them out with --skip-broken."
        )
    kept = {n: p.take([i for i in range(len(p)) if i not in set(broken.get(n, []))]) for n, p in splits.parts.items()}
    notes = (*splits.notes, f"{len(names)} broken images left out")
    return Splits(**kept, rule=splits.rule, notes=notes, carved=splits.carved)


# --- batches ---------------------------------------------------------------------------------------------------------


class Images:
    """uint8 images as float batches, standardised as the backbone wants them, in buffers that are used again.

    `resident` ones go to the device whole, when the first batch is asked for, and others batch by batch.
    """

    def __init__(
        self,
        pixels: NDArray[np.uint8],
        preprocessing: Preprocessing,
        device: torch.device,
        *,
        resident: bool = False,
    ) -> None:
        self.pixels, self.device, self.resident = pixels, device, resident
        self.mean = 255 * torch.tensor(preprocessing.mean, device=device).view(3, 1, 1)
        self.scale = 1 / (255 * torch.tensor(preprocessing.std, device=device).view(3, 1, 1))
        self._buffers: dict[int, tuple[NDArray[np.uint8], Tensor]] = {}

    def __len__(self) -> int:
        return len(self.pixels)

    def batch(self, index: Sequence[int] | NDArray[np.int64] | Tensor) -> Float32[Tensor, "batch 3 side side"]:
        """(B, 3, S, S) float32, valid until the next call with as many images."""
        raw, made = self._buffer(len(index))
        if self.resident:
            chosen = self._held[torch.as_tensor(index, device=self.device)]
            return made.copy_(chosen).sub_(self.mean).mul_(self.scale)
        places = np.asarray(index)
        for i in np.argsort(places, kind="stable"):  # in the order in which they lie on the disk
            raw[i] = self.pixels[places[i]]
        return made.copy_(torch.from_numpy(raw)).sub_(self.mean).mul_(self.scale)

    @cached_property
    def _held(self) -> Tensor:
        return torch.from_numpy(np.array(self.pixels)).to(self.device)

    def _buffer(self, images: int) -> tuple[NDArray[np.uint8], Tensor]:
        if images not in self._buffers:
            shape = (images, *self.pixels.shape[1:])
            made = torch.empty(shape, dtype=torch.float32, device=self.device)
            self._buffers[images] = np.empty(shape, np.uint8), made
        return self._buffers[images]


def fits(size: int, device: torch.device) -> bool:
    """Whether that many bytes of images may lie on a card for good; a CPU has them mapped into its memory anyway."""
    return device.type == "cuda" and size <= RESIDENT * torch.cuda.mem_get_info(device)[0]


class Features:
    """Stored features (n, D) in place of images: what a head alone trains on."""

    resident = True

    def __init__(self, features: Tensor) -> None:
        self.features = features

    def __len__(self) -> int:
        return len(self.features)

    def batch(self, index: Sequence[int] | NDArray[np.int64] | Tensor) -> Float[Tensor, "batch ..."]:
        """(B, D)."""
        return self.features[torch.as_tensor(index, device=self.features.device)]


def order(images: int, batch: int, seed: int, first: int, last: int) -> Iterator[NDArray[np.int64]]:
    """The index batches of steps first..last-1, permutation after permutation, the same after a resume."""
    for step in range(first, last):
        places = np.arange(step * batch, (step + 1) * batch)
        rounds = {
            r: np.random.default_rng([seed, 7, r]).permutation(images) for r in np.unique(places // images).tolist()
        }
        yield np.asarray(
            [rounds[r][i] for r, i in zip((places // images).tolist(), (places % images).tolist(), strict=True)]
        )
