"""Contracts of the plug-ins that need no torch: data sets, backbones, metrics, reports and trackers.

A plug-in is the attribute `plugin` of a module in its folder (`peftbench/datasets/busi.py`), or the object that an
entry point of the group `peftbench.datasets` names. The contract of methods, which needs torch, is `models/method.py`.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, Self, TypeAlias, TypeVar, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from peftbench.core.record import Record
from peftbench.errors import SplitError, StoreError
from peftbench.storage import files

if TYPE_CHECKING:
    from timm.models.eva import Eva
    from timm.models.vision_transformer import VisionTransformer

TaskKind: TypeAlias = Literal["single", "multi_label", "ordinal"]
Labels: TypeAlias = NDArray[np.int64]  # (n,) class indices; task multi_label: (n, classes) of 0 and 1
Logits: TypeAlias = NDArray[np.float32]  # (n, classes)
Value: TypeAlias = bool | int | float | str
Images: TypeAlias = Sequence[Path] | NDArray[np.uint8]  # files, or pixels (n, height, width, 3)
PARTS = ("train", "val", "test")  # of every data set, in the order in which they are stored
INCOMPLETE = "Incomplete copy"  # the beginning of a note that every table shows


def is_about_missing_images(note: str) -> bool:
    """Return whether a note states that images are missing or were left out."""
    return "left out" in note or "ncomplete" in note


# --- data sets -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class DatasetCard:
    """The facts about a data set that a reader needs to judge a score on it."""

    title: str
    modality: str  # "breast ultrasound"
    classes: tuple[str, ...]  # in label order
    licence: str
    source: str  # a URL or "drawn from a seed"
    citation: str = ""
    task: TaskKind = "single"
    group_key: str = ""  # "patient", "source paper": no group may be in two parts; "" = unknown
    synthetic: bool = False
    positive: str = ""  # of two classes the one to be detected; "" = the second

    @property
    def positive_index(self) -> int:
        """The label of the positive class of two."""
        return self.classes.index(self.positive) if self.positive else 1

    @classmethod
    def restored(cls, stored: Mapping[str, Any]) -> Self:
        """Return the card whose fields a JSON file holds."""
        return cls(**_with_tuples(stored))


def _with_tuples(stored: Mapping[str, Any]) -> dict[str, Any]:
    """Return JSON values with tuples in place of lists."""
    return {name: tuple(value) if isinstance(value, list) else value for name, value in stored.items()}


@dataclass(frozen=True)
class Presence:
    """How much of a data set is on this machine, found without opening an image."""

    found: int = 0  # images
    whole: int = 0  # images of a complete copy
    packed: bool = False  # downloaded and still packed, wholly or in part: the first use unpacks it

    @property
    def complete(self) -> bool:
        """Whether nothing is missing."""
        return 0 < self.whole <= self.found

    def __str__(self) -> str:
        """Return a phrase for a table."""
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
        """Return the images at `index`, in that order."""
        chosen = [int(i) for i in index]
        if chosen == list(range(len(self))):
            return self
        images: Images = (
            _rows(self.images, chosen) if isinstance(self.images, np.ndarray) else [self.images[i] for i in chosen]
        )
        names, groups = tuple(self.names[i] for i in chosen), tuple(self.groups[i] for i in chosen)
        return type(self)(images, self.labels[chosen], names, groups)

    def joined(self, other: Part) -> Part:
        """Return this part's images followed by the other's."""
        if isinstance(self.images, np.ndarray) and isinstance(other.images, np.ndarray):
            images: Images = np.concatenate([self.images, other.images])
        else:
            images = [*self.images, *other.images]
        return Part(
            images, np.concatenate([self.labels, other.labels]), self.names + other.names, self.groups + other.groups
        )


def _rows(pixels: NDArray[np.uint8], chosen: list[int]) -> NDArray[np.uint8]:
    """Return a copy of these images; of three equal channels (broadcast grey values) only one is copied."""
    if pixels.strides[-1]:
        return pixels[chosen]
    return np.broadcast_to(pixels[..., :1][chosen], (len(chosen), *pixels.shape[1:]))


@dataclass(frozen=True)
class Splits:
    """The three parts of a data set and how they were made."""

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
            raise SplitError(f"{len(twice)} images are in two parts, the first is {min(twice)!r}; keep each in one.")

    @property
    def parts(self) -> dict[str, Part]:
        """`train`, `val` and `test` by name."""
        return {"train": self.train, "val": self.val, "test": self.test}


@runtime_checkable
class Dataset(Protocol):
    """A data set: a card, and a function that reads three parts from a folder on this machine.

    It may also have `presence(root: Path) -> Presence`, which finds how much of it is there.
    """

    @property
    def card(self) -> DatasetCard:
        """Facts about the data set."""
        ...

    def load(self, root: Path, seed: int) -> Splits:
        """Read the files under `root`, the folder of all data sets; `seed` decides the parts that are not official.

        Raises MissingDataError (what is missing, where it was searched for, how to get it) and SplitError.
        """
        ...


# --- backbones -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Preprocessing:
    """How an image file becomes the network's input; every field is part of a job's identity."""

    size: int  # pixels, square
    mean: tuple[float, float, float]  # of pixels in 0..1, per channel
    std: tuple[float, float, float]
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"
    fit: Literal["squash", "crop"] = "squash"  # squash keeps the whole image, crop keeps its aspect
    crop: float = 1.0  # share of the short side that a crop keeps; left out of ids and records while it is 1

    def stored(self) -> dict[str, Any]:
        """Return the fields as an id, a record and a delta hold them."""
        return {name: value for name, value in asdict(self).items() if name != "crop" or value != 1.0}

    @classmethod
    def restored(cls, stored: Mapping[str, Any]) -> Self:
        """Return the preprocessing whose fields a JSON file holds."""
        return cls(**_with_tuples(stored))


@dataclass(frozen=True)
class HubFile:
    """A file of weights on the Hugging Face hub; facts that are not known are empty."""

    repository: str
    file: str
    revision: str = ""  # commit; "": the newest
    sha256: str = ""
    size: int | None = None  # bytes, approximate
    gated: str = ""  # address where access must be asked for


@dataclass(frozen=True)
class BackboneCard:
    """Origin and licence of a pretrained network."""

    title: str
    source: str  # the pretraining, its data, and where to get the weights
    licence: str
    notes: tuple[str, ...] = ()


@runtime_checkable
class Backbone(Protocol):
    """A pretrained network.

    Its plug-in builds it from the text after the colon and the fields in brackets: `timm:NAME[depth=8]`. It may also
    have `hub_file`, a HubFile that holds its weights, `network_digest`, a text that becomes part of jobs' ids, and
    `timm_arguments(image_size)`, the name and the arguments with which `timm.create_model` builds the same network.
    """

    @property
    def card(self) -> BackboneCard:
        """Origin and licence."""
        ...

    def preprocessing(self, image_size: int | None) -> Preprocessing:
        """Return the preprocessing of its pretraining, at `image_size` pixels if given."""
        ...

    def network(self, image_size: int | None) -> VisionTransformer | Eva:
        """Return the network without a head (`num_classes=0`), with new random values.

        Must work under `torch.device("meta")`.
        """
        ...

    def weights(self, given: Path | None) -> Path:
        """Return the file of pretrained weights: `given` (--weights), or its own.

        Raises WeightsError with the way to get it.
        """
        ...

    def load(self, vit: VisionTransformer | Eva, file: Path) -> Sequence[str] | None:
        """Fill `vit` with the weights in `file`, strictly. Raises WeightsError; never unpickles.

        May return sentences on what was taken from the file and what was left out.
        """
        ...


# --- metrics -------------------------------------------------------------------------------------------------------


@runtime_checkable
class Metric(Protocol):
    """A number, or several by name, from stored logits (n, classes); nan where it is undefined.

    It is called with single and ordinal labels (n,), or for the tasks that `of_tasks` declares. Where images belong to
    groups (patients), it is called a second time with one row per group: its mean logits and its label.
    """

    def __call__(self, logits: Logits, labels: Labels) -> float | Mapping[str, float]:
        """Return the value; higher is better unless the name contains loss or error."""
        ...


Scorer = TypeVar("Scorer", bound=Callable[[Logits, Labels], float | Mapping[str, float]])


def of_tasks(*tasks: TaskKind) -> Callable[[Scorer], Scorer]:
    """Declare the tasks for which a metric is defined: `@of_tasks("ordinal")`."""

    def marked(metric: Scorer) -> Scorer:
        vars(metric)["tasks"] = tasks
        return metric

    return marked


def tasks_of(metric: Metric) -> tuple[TaskKind, ...]:
    """Return the tasks that `of_tasks` declares, by default those with one label per image."""
    tasks: tuple[TaskKind, ...] = getattr(metric, "tasks", ("single", "ordinal"))
    return tasks


def of_positive(metric: Scorer) -> Scorer:
    """Declare that a metric of two classes is about the positive one, which it takes to be class 1."""
    vars(metric)["is_of_positive"] = True
    return metric


def oriented(metric: Metric, positive: int) -> Metric:
    """Return the metric for data whose positive class of two has the label `positive`."""
    if positive == 1 or not getattr(metric, "is_of_positive", False):
        return metric

    def swapped(logits: Logits, labels: Labels) -> float | Mapping[str, float]:
        two = labels.ndim == 1 and logits.shape[1] == 2  # noqa: PLR2004 - elsewhere no class is the positive one
        return metric(logits[:, ::-1], 1 - labels) if two else metric(logits, labels)

    return of_tasks(*tasks_of(metric))(swapped)


def lower_is_better(metric: str) -> bool:
    """Return whether the metric's name contains loss or error, as `brier_score_loss_per_group` does."""
    return bool({"loss", "error"} & set(metric.split("_")))


# --- reports -------------------------------------------------------------------------------------------------------


PREDICTIONS = "predictions.npz"
SCORED = frozenset({PREDICTIONS, "curve.csv"})  # files that tables and figures are made from
AGAIN = "move the job's folder away and run the study again."


@dataclass(frozen=True, eq=False)  # compared by identity: hashable, and quick to compare
class Result:
    """A finished or failed job as a report sees it: the record and, if done, its stored predictions."""

    record: Record
    folder: Path

    @cached_property
    def damage(self) -> str:
        """What is wrong with the files of a finished job; "" if they match the digests in its record."""
        if self.record.status == "failed":
            return ""
        problems = (_problem(self.folder / name, digest) for name, digest in sorted(self.record.files.items()))
        return next((problem for problem in problems if problem), "") or self._unreadable()

    @property
    def has_predictions(self) -> bool:
        """Whether predictions of test images are stored; records may be published without them."""
        return (self.folder / PREDICTIONS).is_file() and bool(self.record.data.sizes.get("test", 1))

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

    def curve(self) -> list[dict[str, float]]:
        """Return the rows of the learning curve, one per evaluation, an empty cell left out; none if none is stored."""
        file = self.folder / "curve.csv"
        if not file.exists():
            return []
        with file.open(encoding="utf-8", newline="") as lines:
            return [{name: float(value) for name, value in row.items() if value} for row in csv.DictReader(lines)]

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
        whole = file.is_file() and (file.name not in SCORED or files.sha256_file(file) == digest)
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
        """Write into the folder `out` and return the paths of the files."""
        ...


# --- trackers ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TrackedJob:
    """What may leave this machine of a finished job: no name of an image or group, and no path."""

    id: str
    name: str  # for people: method, data set and seed
    parameters: Mapping[str, Value]  # method, data set, backbone, seed, `method.r`, `recipe.lr`, ...
    curve: Sequence[Mapping[str, float]]  # one row per evaluation, `step` among its keys
    numbers: Mapping[str, float]  # `test/macro_f1`, `validation/auc`, `size/trainable`, `cost/seconds`, ...


@runtime_checkable
class Tracker(Protocol):
    """Copies finished jobs to another program. Its plug-in is called with the store's folder: `plugin(store: Path)`.

    What it raises is reported once; it then receives no more jobs, and the study goes on.
    """

    def track(self, job: TrackedJob) -> None:
        """Receive a job that is done, trials of a search included; called in the process that runs the study."""

    def close(self) -> None:
        """Receive the end of the run."""
