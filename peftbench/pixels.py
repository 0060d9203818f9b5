"""From image files to batches: decoded once into a memory-mapped uint8 cache, made into float batches on the device."""

from __future__ import annotations

import json
import os
import shutil
import uuid
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from peftbench.contract import Card, Part, Preprocessing, Splits
from peftbench.errors import BrokenImagesError, DataError
from peftbench.spec import digest
from peftbench.splits import fingerprint

_FILTERS = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}
PARTS = ("train", "val", "test")


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
    card: Card, splits: Splits, preprocessing: Preprocessing, cache: Path, *, skip_broken: bool = False
) -> Data:
    """Decode what is not in the cache yet.

    Raises BrokenImagesError, unless `skip_broken` leaves such images out and says so.
    """
    print_ = fingerprint(splits)
    folder, facts = _place(print_, preprocessing, cache), json.dumps(_facts(card, splits, print_))
    if not (folder / "parts.json").exists():
        decoded = {name: decode(part, preprocessing) for name, part in splits.parts.items()}
        broken = {name: bad for name, (_, bad) in decoded.items() if bad}
        if broken:
            return prepare(card, _without(splits, broken, skip=skip_broken), preprocessing, cache, skip_broken=False)
        _store(folder, np.concatenate([pixels for pixels, _ in decoded.values()]), facts)
    elif (folder / "parts.json").read_text() != facts:  # the pixels are the same, but the card or a note was mended
        _write(folder / "parts.json", facts)
    return find(print_, preprocessing, cache)


def _place(print_: str, preprocessing: Preprocessing, cache: Path) -> Path:
    key = {"data": print_, "side": preprocessing.size, "by": preprocessing.interpolation, "fit": preprocessing.fit}
    return cache / "pixels" / digest(key)[:24]


def find(print_: str, preprocessing: Preprocessing, cache: Path) -> Data:
    """Data that `prepare` made, by their fingerprint."""
    folder = _place(print_, preprocessing, cache)
    try:
        facts: dict[str, Any] = json.loads((folder / "parts.json").read_text())
    except OSError:
        raise DataError(f"The decoded images in {folder} are gone; run the study again to decode them anew.") from None
    known: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in facts["card"].items()}
    card = Card(**known)
    shape = (-1, len(card.classes)) if card.task == "multi_label" else (-1,)  # of an empty part, too
    labels = {part: np.asarray(values, np.int64).reshape(shape) for part, values in facts["labels"].items()}
    return Data(
        folder,
        card,
        facts["rule"],
        tuple(facts["notes"]),
        facts["fingerprint"],
        labels,
        facts["names"],
        facts["groups"],
    )


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


def _store(folder: Path, pixels: NDArray[np.uint8], facts: str) -> None:
    """Write beside and rename, so that a crash or a second process leaves a whole folder or none."""
    draft = folder.with_name(f"{folder.name}.{uuid.uuid4().hex}")
    draft.mkdir(parents=True, mode=0o700)
    np.save(draft / "pixels.npy", pixels)
    _write(draft / "parts.json", facts)
    try:
        draft.rename(folder)
    except OSError:  # another process was first; the contents are the same
        shutil.rmtree(draft)


def _write(file: Path, text: str) -> None:
    """In one piece, readable by its owner only: it names images and their groups."""
    draft = file.with_name(f".{file.name}.{uuid.uuid4().hex}")
    draft.touch(mode=0o600)
    draft.write_text(text)
    draft.replace(file)


def _without(splits: Splits, broken: dict[str, list[int]], *, skip: bool) -> Splits:
    names = [splits.parts[part].names[i] for part, bad in broken.items() for i in bad]
    if not skip:
        shown = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")  # noqa: PLR2004
        raise BrokenImagesError(
            f"{len(names)} images do not open: {shown}. Mend them, or leave them out with --skip-broken."
        )
    kept = {n: p.take([i for i in range(len(p)) if i not in set(broken.get(n, []))]) for n, p in splits.parts.items()}
    notes = (*splits.notes, f"{len(names)} broken images left out")
    return Splits(**kept, rule=splits.rule, notes=notes, carved=splits.carved)


# --- decoding --------------------------------------------------------------------------------------------------------


def decode(part: Part, preprocessing: Preprocessing) -> tuple[NDArray[np.uint8], list[int]]:
    """Pixels (n, 3, size, size) of a part, and the positions of the images that do not open (left black)."""
    side = preprocessing.size
    out = np.zeros((len(part), 3, side, side), np.uint8)
    bad: list[int] = []

    def one(i: int) -> None:
        try:
            out[i] = _open(part.images[i], preprocessing)
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
            bad.append(i)

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        list(pool.map(one, range(len(part))))
    return out, sorted(bad)


def _open(image: Path | NDArray[np.uint8], preprocessing: Preprocessing) -> NDArray[np.uint8]:
    """One image as (3, size, size), whatever its mode; grey becomes three equal channels."""
    opened = Image.open(image) if isinstance(image, Path) else Image.fromarray(image)
    with opened as picture:
        shown = fit(_rgb(picture), preprocessing)
    return np.asarray(shown).transpose(2, 0, 1)


def _rgb(picture: Image.Image) -> Image.Image:
    """Eight bits a channel, without transparency: of greys of sixteen bits the upper eight, which Pillow would clip."""
    if picture.mode.startswith("I"):
        grey = np.asarray(picture).clip(0, 2**16 - 1) >> 8
        return Image.fromarray(grey.astype(np.uint8)).convert("RGB")
    return (picture.convert("RGBA") if picture.mode == "P" else picture).convert("RGB")


def fit(picture: Image.Image, preprocessing: Preprocessing) -> Image.Image:
    """A square picture of the network's size: squashed, or its short side fitted and the middle cut out."""
    side, resample = preprocessing.size, _FILTERS[preprocessing.interpolation]
    if preprocessing.fit == "squash":
        return picture.resize((side, side), resample)
    scale = side / min(picture.size)
    wide, high = (max(side, round(length * scale)) for length in picture.size)
    left, top = (wide - side) // 2, (high - side) // 2
    return picture.resize((wide, high), resample).crop((left, top, left + side, top + side))


# --- batches ---------------------------------------------------------------------------------------------------------


class Images:
    """uint8 images as float batches, standardised as the backbone wants them, in buffers that are used again."""

    def __init__(self, pixels: NDArray[np.uint8], preprocessing: Preprocessing, device: torch.device) -> None:
        self.pixels, self.device = pixels, device
        self.mean = 255 * torch.tensor(preprocessing.mean, device=device).view(3, 1, 1)
        self.scale = 1 / (255 * torch.tensor(preprocessing.std, device=device).view(3, 1, 1))
        self._buffers: dict[int, Tensor] = {}

    def __len__(self) -> int:
        return len(self.pixels)

    def batch(self, index: Sequence[int] | NDArray[np.int64]) -> Tensor:
        """(B, 3, S, S) float32, valid until the next call with as many images."""
        raw = torch.from_numpy(np.ascontiguousarray(self.pixels[np.asarray(index)])).to(self.device)
        if len(raw) not in self._buffers:
            self._buffers[len(raw)] = torch.empty(raw.shape, dtype=torch.float32, device=self.device)
        return self._buffers[len(raw)].copy_(raw).sub_(self.mean).mul_(self.scale)


class Features:
    """Stored features (n, D) in place of images: what a head alone trains on."""

    def __init__(self, features: Tensor) -> None:
        self.features = features

    def __len__(self) -> int:
        return len(self.features)

    def batch(self, index: Sequence[int] | NDArray[np.int64]) -> Tensor:
        """(B, D)."""
        return self.features[torch.as_tensor(np.asarray(index), device=self.features.device)]


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


def augment(batch: Tensor, kind: Literal["none", "light"], seed: int, step: int) -> Tensor:
    """`light`: each image mirrored or not, and moved by up to an eighth of its side. Seeded by the step."""
    if kind == "none":
        return batch
    draw, side = np.random.default_rng([seed, 11, step]), batch.shape[-1]
    pad = side // 8
    flips, moves = draw.integers(2, size=len(batch)), draw.integers(2 * pad + 1, size=(len(batch), 2))
    padded = F.pad(batch, (pad, pad, pad, pad), mode="replicate")
    moved = [image[:, y : y + side, x : x + side] for image, (y, x) in zip(padded, moves.tolist(), strict=True)]
    return torch.stack([m.flip(-1) if f else m for m, f in zip(moved, flips.tolist(), strict=True)])
