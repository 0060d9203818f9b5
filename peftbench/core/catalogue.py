"""The catalogue: facts about every method and data set, one checked TOML file each in `methods/` and `datasets/`.

An unknown key, a missing key and a value of the wrong type raise a CatalogueError that names the file and the key.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Annotated, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from peftbench.core.catalogue_files import built_in, own_datasets, read
from peftbench.core.contract import DatasetCard, TaskKind
from peftbench.core.fields import sentence
from peftbench.errors import CatalogueError

SizeName = Literal["train", "val", "test", "total"]
Texts = Annotated[tuple[str, ...], Field(strict=False)]  # TOML has lists only
Numbers = Annotated[tuple[float, ...], Field(strict=False)]


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Official(_Entry):
    """How the method's authors train it. None: not stated. official_recipes.py decides what is run of it."""

    optimizer: Literal["AdamW", "SGD"] | None = None
    lr: float | None = None  # at the end of the warm-up
    lr_grid: Numbers = ()  # the authors choose from it on validation
    lr_range: tuple[float, float] | None = Field(default=None, strict=False)  # lowest and highest over their data sets
    lr_batch: int | None = None  # batch size that lr is for; lr scales linearly with the batch size
    weight_decay: float | None = None
    weight_decay_grid: Numbers = ()
    momentum: float | None = None
    batch: int | None = None
    epochs: float | None = None
    steps: int | None = None  # if stated instead of epochs
    warmup_epochs: float | None = None
    warmup: float | None = None  # share of the steps, if stated instead of epochs
    warmup_lr: float | None = None  # at which the warm-up starts
    min_lr: float | None = None  # at which the schedule ends
    schedule: Literal["cosine", "linear", "constant"] | None = None
    clip: float | None = None  # largest norm of the gradient
    label_smoothing: float | None = None
    mixup: float | None = None
    cutmix: float | None = None
    erasing: float | None = None
    drop_path: float | None = None
    head_kind: Literal["plain", "l2", "batchnorm"] | None = None
    head: str | None = None  # initialization in words, if not a truncated normal of std 0.02 with bias 0
    init: str | None = None  # in words
    augmentation: str | None = None  # in words
    fields: dict[
        str, bool | int | float | str
    ] = {}  # of the method, where the authors' values are not the defaults here
    notes: Texts = ()


class MethodEntry(_Entry):
    """One method: a file of `methods/`."""

    title: str
    family: Literal["S", "A", "P", "S+A", "baseline"]  # selective, additive, prompt
    knob: str = ""  # the hyper-parameter that a budget sets; "" = fixed size
    trains: str  # what it trains, in one line
    formula: str
    paper: str  # citation
    url: str = ""  # of the paper
    code: str = ""  # of the authors; "" = none is published
    merges: bool  # whether what it trained folds into the backbone's weights, so that inference costs nothing extra
    official: Official = Official()
    differs: Texts = ()  # where this implementation differs from the authors', and why


class Member(_Entry):
    """One data set of a collection such as MedMNIST+."""

    title: str
    modality: str
    classes: Texts
    task: TaskKind = "single"
    positive: str = ""
    licence: str = ""  # "" = the collection's
    sizes: dict[SizeName, int]


class Download(_Entry):
    """Where `peftbench data fetch` downloads files; without a URL it prints instructions."""

    base: str = ""  # URL of every file of `checksums`; {file} is replaced by its name
    urls: dict[str, str] = {}  # file -> URL, if not made from `base`
    sizes: dict[str, int] = {}  # file -> bytes, as published
    accept: str = ""  # terms to accept before the download; "" = none


class DatasetEntry(_Entry):
    """One data set: a file of `datasets/`."""

    title: str
    modality: str
    classes: Texts  # in label order
    licence: str
    sources: Texts  # URLs, or one line such as "generated from a seed"
    citation: str = ""
    task: TaskKind = "single"
    group_key: str = ""  # what must not be shared between parts, such as a patient; "" = unknown
    positive: str = ""  # of two classes the one to be detected; "" = the second
    synthetic: bool = False
    layout: str = ""  # folders and files as published, below root/<name>/
    sizes: dict[SizeName, int] = {}  # images per part, as published
    paper: dict[SizeName, int] = {}  # as stated in the SH-PEFT paper
    complete: int | None = None  # images of a complete copy; None = the published total
    split: str = ""  # the rule in words
    checksums: dict[str, str] = {}  # downloaded file -> "sha256:..." or "md5:...", as published
    download: Download = Download()
    members: dict[str, Member] = {}  # of a collection: name after the colon -> data set
    stand_in: str = ""  # a data set whose copy is used where this one is missing
    dirt: Texts = ()  # known defects of the files
    how_to_get: str = ""  # what to do to get the files, and where to put them


class OwnEntry(DatasetEntry):
    """A user's own data set: a file of `datasets/` in the working folder."""

    path: str  # a folder of class folders, or a table FILE.csv; relative to the working folder, or ~
    modality: str = "unknown"
    classes: Texts = ()  # names of the class folders in label order; none = sorted
    licence: str = "the user's own"
    sources: Texts = ("the user's own",)
    image_column: str = "image"  # of a table: the columns that hold path, label, part and group of an image
    label_column: str = "label"
    split_column: str = "split"
    group_column: str = "group"
    group: str = ""  # regular expression on an image's path; its match, or its first group, is the group's key


Entry = TypeVar("Entry", bound=_Entry)


@lru_cache
def method_entry(name: str) -> MethodEntry:
    """Return the entry of a method. Raises UnknownNameError and CatalogueError."""
    return read_entry(built_in("methods", name), MethodEntry)


def dataset_entry(name: str) -> DatasetEntry:
    """Return the entry of a data set. Raises UnknownNameError and CatalogueError."""
    own = own_datasets()
    return read_entry(own[name], OwnEntry) if name in own else _built_in_dataset(built_in("datasets", name))


@lru_cache
def _built_in_dataset(file: Path) -> DatasetEntry:
    return read_entry(file, DatasetEntry)


def dataset_card(name: str, member: str = "") -> DatasetCard:
    """Return the card of a data set, or of a member of a collection, made from its entry."""
    entry = dataset_entry(name)
    what = entry.members[member] if member else entry
    return DatasetCard(
        title=what.title,
        modality=what.modality,
        classes=what.classes,
        licence=what.licence or entry.licence,
        source=", ".join(entry.sources),
        citation=entry.citation,
        task=what.task,
        group_key=entry.group_key,
        synthetic=entry.synthetic,
        positive=what.positive,
    )


def read_entry(file: Path, model: type[Entry]) -> Entry:
    """Read one TOML file strictly. Raises CatalogueError naming the file and the key."""
    try:
        return model.model_validate(read(file))
    except ValidationError as error:
        raise CatalogueError(sentence(error, file, lambda key: f"key {key!r}")) from None
