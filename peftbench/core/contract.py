"""What a plug-in is, without torch: data sets, metrics and reports.

A plug-in is the module attribute `plugin` of a file in its folder (`peftbench/datasets/busi.py`), or whatever an entry
point of the group `peftbench.datasets` names. The contract of methods is in `method.py`: it needs torch.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal, Protocol, Self, TypeAlias, TypeVar, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from peftbench.core.record import Record
from peftbench.errors import SplitError, StoreError
from peftbench.storage import files

if TYPE_CHECKING:
    from timm.models.vision_transformer import VisionTransformer

Task: TypeAlias = Literal["single", "multi_label", "ordinal"]
Labels: TypeAlias = NDArray[np.int64]  # (n,) class indices; task multi_label: (n, classes) of 0 and 1
Logits: TypeAlias = NDArray[np.float32]  # (n, classes)
Images: TypeAlias = Sequence[Path] | NDArray[np.uint8]  # files, or pixels (n, height, width, 3)
PARTS = ("train", "val", "test")  # of every data set, in the order in which they are stored
INCOMPLETE = "Incomplete copy"  # how the note begins that every table shows


# --- data sets -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class DatasetCard:
    """What a reader must know about a data set before believing a number on it."""

    title: str
    modality: str  # "breast ultrasound"
    classes: tuple[str, ...]  # in label order
    licence: str
    source: str  # where it comes from: a URL or "drawn from a seed"
    citation: str = ""
    task: Task = "single"
    group_key: str = ""  # what may never cross parts: "patient", "source paper"; "" = nothing known
    synthetic: bool = False


@dataclass(frozen=True)
class Presence:
    """How much of a data set lies on this machine, told without opening an image."""

    found: int = 0  # images
    whole: int = 0  # images of a complete copy
    packed: bool = False  # downloaded and still packed, wholly or in part: the first use unpacks it

    @property
    def complete(self) -> bool:
        """Whether nothing is missing."""
        return 0 < self.whole <= self.found

    def __str__(self) -> str:
        """One phrase for a table."""
        if self.complete:
            return "complete"
        if self.packed:
            return "packed, unpacked when first used"
        return f"incomplete ({self.found:,} of {self.whole:,})" if self.found else "no"


@dataclass(frozen=True)
class Part:
    """One part of a data set: image i has label `labels[i]`, name `names[i]` and belongs to `groups[i]`."""

    images: Images
    labels: Labels
    names: tuple[str, ...]  # unique within the data set: a path relative to its root
    groups: tuple[str, ...]  # the card's group key; each image its own group where nothing is known

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def seen(self) -> frozenset[int]:
        """The classes that at least one image has."""
        found = np.unique(self.labels) if self.labels.ndim == 1 else np.flatnonzero(self.labels.any(axis=0))
        return frozenset(found.tolist())

    def take(self, index: Sequence[int] | NDArray[np.int64]) -> Self:
        """The images at `index`, in that order."""
        chosen = [int(i) for i in index]
        if chosen == list(range(len(self))):
            return self
        images: Images = (
            _rows(self.images, chosen) if isinstance(self.images, np.ndarray) else [self.images[i] for i in chosen]
        )
        names, groups = tuple(self.names[i] for i in chosen), tuple(self.groups[i] for i in chosen)
        return type(self)(images, self.labels[chosen], names, groups)

    def joined(self, other: Part) -> Part:
        """This part's images, then the other's."""
        if isinstance(self.images, np.ndarray) and isinstance(other.images, np.ndarray):
            images: Images = np.concatenate([self.images, other.images])
        else:
            images = [*self.images, *other.images]
        return Part(
            images, np.concatenate([self.labels, other.labels]), self.names + other.names, self.groups + other.groups
        )


def _rows(pixels: NDArray[np.uint8], chosen: list[int]) -> NDArray[np.uint8]:
    """A copy of these images; of greys that stand there three times over, of one channel."""
    if pixels.strides[-1]:
        return pixels[chosen]
    return np.broadcast_to(pixels[..., :1][chosen], (len(chosen), *pixels.shape[1:]))


@dataclass(frozen=True)
class Splits:
    """The three parts and how they came about."""

    train: Part
    val: Part
    test: Part
    rule: str  # "official", "70/10/20 stratified, grouped by lesion": part of a job's identity
    notes: tuple[str, ...] = ()  # what differs from the published set, what was left out
    carved: bool = False  # val was cut from the published train part: recipe `paper` trains on both
    left_out: tuple[str, ...] = ()  # names of images that were found and belong to no class

    def __post_init__(self) -> None:
        names = [set(part.names) for part in self.parts.values()]
        twice = (names[0] & names[1]) | (names[0] & names[2]) | (names[1] & names[2])
        if twice:
            raise SplitError(f"{len(twice)} images lie in two parts, the first is {min(twice)!r}; each may lie in one.")

    @property
    def parts(self) -> dict[str, Part]:
        """`train`, `val` and `test` by name."""
        return {"train": self.train, "val": self.val, "test": self.test}


@runtime_checkable
class Dataset(Protocol):
    """A data set: a card, and a way from a folder on this machine to three parts.

    It may also tell how much of it is there: `presence(root: Path) -> Presence`.
    """

    @property
    def card(self) -> DatasetCard:
        """What it is."""
        ...

    def load(self, root: Path, seed: int) -> Splits:
        """Find the files under `root` (the data folder that holds all data sets); `seed` decides what is not official.

        Raises MissingDataError (what is missing, where it was sought, how to get it) and SplitError.
        """
        ...


# --- backbones -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Preprocessing:
    """From an image file to the network's input; all of it is part of a job's identity."""

    size: int  # pixels, square
    mean: tuple[float, float, float]  # of pixels in 0..1, per channel
    std: tuple[float, float, float]
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"
    fit: Literal["squash", "crop"] = "squash"  # squash keeps the whole image, crop keeps its aspect


@dataclass(frozen=True)
class BackboneCard:
    """Where a pretrained network comes from and on what terms."""

    title: str
    source: str  # what was pretrained on what, and where the weights are to be had
    licence: str
    notes: tuple[str, ...] = ()


@runtime_checkable
class Backbone(Protocol):
    """A pretrained network.

    Built by its plug-in from what follows the colon and stands in brackets: `timm:NAME[depth=8]`.
    """

    @property
    def card(self) -> BackboneCard:
        """Where it comes from."""
        ...

    def preprocessing(self, image_size: int | None) -> Preprocessing:
        """What its pretraining used, at `image_size` pixels if given."""
        ...

    def network(self, image_size: int | None) -> VisionTransformer:
        """The bare network (no head, `num_classes=0`) with fresh random values.

        Must work under `torch.device("meta")`.
        """
        ...

    def weights(self, given: Path | None) -> Path:
        """The file of pretrained weights: `given` (the user's --weights), or its own.

        Raises WeightsError with the way to get it.
        """
        ...

    def load(self, vit: VisionTransformer, file: Path) -> None:
        """Fill `vit` with the weights in `file`, strictly. Raises WeightsError; never unpickles."""
        ...


# --- metrics -------------------------------------------------------------------------------------------------------


@runtime_checkable
class Metric(Protocol):
    """A number, or several by name, from stored logits (n, classes); nan where it is undefined.

    It is asked about single and ordinal labels (n,) unless `of_tasks` says otherwise. Where images belong to groups
    (patients), it is asked a second time about the groups, each with its mean logits and its label.
    """

    def __call__(self, logits: Logits, labels: Labels) -> float | Mapping[str, float]:
        """Higher is better unless the name says loss or error."""
        ...


Scorer = TypeVar("Scorer", bound=Callable[[Logits, Labels], float | Mapping[str, float]])


def of_tasks(*tasks: Task) -> Callable[[Scorer], Scorer]:
    """Says of a metric for which tasks it has a meaning: `@of_tasks("ordinal")`."""

    def marked(metric: Scorer) -> Scorer:
        vars(metric)["tasks"] = tasks
        return metric

    return marked


def tasks_of(metric: Metric) -> tuple[Task, ...]:
    """What `of_tasks` said of it, else the tasks with one label an image."""
    tasks: tuple[Task, ...] = getattr(metric, "tasks", ("single", "ordinal"))
    return tasks


def lower_is_better(metric: str) -> bool:
    """By its name, as in `brier_score_loss_per_group`."""
    return bool({"loss", "error"} & set(metric.split("_")))


# --- reports -------------------------------------------------------------------------------------------------------


PREDICTIONS = "predictions.npz"
SCORED = frozenset({PREDICTIONS, "curve.csv"})  # files that tables and figures are made from
AGAIN = "move the job's folder away and run the study again."


@dataclass(frozen=True, eq=False)  # the same job, not equal ones: hashable and quick to compare
class Result:
    """A finished or failed job as a report sees it: the record and, if done, its stored predictions."""

    record: Record
    folder: Path

    @cached_property
    def damage(self) -> str:
        """What is wrong with the files of a finished job; empty if they are those that its record was written for."""
        if self.record.status == "failed":
            return ""
        problems = (_problem(self.folder / name, digest) for name, digest in sorted(self.record.files.items()))
        return next((problem for problem in problems if problem), "") or self._unreadable()

    @property
    def has_predictions(self) -> bool:
        """Whether predictions of test images are stored; records may be published without."""
        return (self.folder / PREDICTIONS).exists() and bool(self.record.data.sizes.get("test", 1))

    def predictions(self, rule: str, part: str = "test") -> tuple[Logits, Labels, tuple[int, ...]]:
        """Return logits (n, classes), labels (n,) or (n, labels) and groups (n,) of a part at a rule's step.

        Raises StoreError when the file is not the one that the record was written for.
        """
        file = self.folder / PREDICTIONS
        content, digest = file.read_bytes(), self.record.files.get(PREDICTIONS)
        if digest is not None and files.sha256(content) != digest:
            raise StoreError(f"{file} was changed after its record was written; {AGAIN}")
        with np.load(io.BytesIO(content), allow_pickle=False) as stored:
            return stored[f"{part}/{rule}/logits"], stored[f"{part}/labels"], tuple(stored[f"{part}/groups"].tolist())

    def _unreadable(self) -> str:
        """Return what is wrong with predictions that no digest protects: a record of a made-up or edited store."""
        if PREDICTIONS in self.record.files or not self.has_predictions:
            return ""
        try:
            self.predictions(self.record.rule)
        except Exception as error:  # noqa: BLE001 - a damaged archive raises almost anything
            return f"{PREDICTIONS} cannot be read ({type(error).__name__})"
        return ""


def _problem(file: Path, digest: str) -> str:
    """Return what is wrong with a file of a job. Large files, which no table is made from, need only exist."""
    try:
        whole = file.exists() if file.name not in SCORED else files.sha256_file(file) == digest
    except FileNotFoundError:
        whole = False
    except OSError as error:
        return f"{file.name} cannot be read ({error.strerror})"
    if whole:
        return ""
    return f"{file.name} was changed after its record was written" if file.exists() else f"{file.name} is missing"


@runtime_checkable
class Report(Protocol):
    """One output format. Reads results only: no torch, no images."""

    suffix: ClassVar[str]

    def write(self, results: Sequence[Result], out: Path) -> list[Path]:
        """Write into the folder `out`; returns what was written."""
        ...
