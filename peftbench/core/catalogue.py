"""The catalogue: what is known of every method and data set, one TOML file each in `methods/` and `datasets/`.

A source checkout reads the top-level folders, an installed wheel its copies in `peftbench/_data`. Every file is held
to its model below: an unknown key, a missing one or a value of the wrong kind is a CatalogueError that names both.
"""

from __future__ import annotations

import tomllib
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from peftbench.core.contract import DatasetCard, Task
from peftbench.errors import CatalogueError, UnknownNameError

Kind = Literal["methods", "datasets"]
Column = Literal["D1", "D2", "D3", "D4", "D5", "D6", "average"]
Size = Literal["train", "val", "test", "total"]
Texts = Annotated[tuple[str, ...], Field(strict=False)]  # TOML knows lists only
Numbers = Annotated[tuple[float, ...], Field(strict=False)]


CALLED = {"methods": "method", "datasets": "data set"}


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Official(_Entry):
    """How the method's authors train it; what `--recipe official` runs of it, official.py says. None = not stated."""

    optimizer: Literal["AdamW", "SGD"] | None = None
    lr: float | None = None  # at the end of the warm-up
    lr_grid: Numbers = ()  # from which the authors choose on validation
    lr_batch: int | None = None  # the batch for which lr stands: at another it grows in proportion
    weight_decay: float | None = None
    weight_decay_grid: Numbers = ()
    momentum: float | None = None
    batch: int | None = None
    epochs: float | None = None
    steps: int | None = None  # where the source counts these
    warmup_epochs: float | None = None
    warmup: float | None = None  # share of the steps, where the source says it so
    warmup_lr: float | None = None  # from which the rise begins
    min_lr: float | None = None  # at which the schedule ends
    schedule: Literal["cosine", "linear", "constant"] | None = None
    clip: float | None = None  # largest norm of the gradient
    label_smoothing: float | None = None
    mixup: float | None = None
    cutmix: float | None = None
    erasing: float | None = None
    drop_path: float | None = None
    head_kind: Literal["plain", "l2", "batchnorm"] | None = None
    head: str | None = None  # words, where it is drawn otherwise than ours (truncated normal of std 0.02, bias 0)
    init: str | None = None  # words
    augmentation: str | None = None  # words
    fields: dict[str, bool | int | float | str] = {}  # of the method, where the authors' are not our defaults
    notes: Texts = ()


class MethodEntry(_Entry):
    """What is known of one method: a file of `methods/`."""

    title: str
    family: Literal["S", "A", "P", "S+A", "baseline"]  # selective, additive, prompt
    knob: str = ""  # the hyper-parameter that a budget turns; "" = its size is fixed
    trains: str  # one line
    formula: str
    paper: str  # citation
    url: str = ""  # of the paper
    code: str = ""  # of the authors; "" = none is published
    merges: bool  # whether its change folds into the weights, so that the tuned network costs nothing more to run
    official: Official = Official()
    published: dict[Column, float] = {}  # macro F1 in % by Liu et al., MICCAI 2024; empty = not in their table
    differs: Texts = ()  # where ours differs from the authors' and why


class Member(_Entry):
    """What is known of one set of a collection such as MedMNIST+, where it differs from the others."""

    title: str
    modality: str
    classes: Texts
    task: Task = "single"
    licence: str = ""  # "" = the collection's
    sizes: dict[Size, int]


class Download(_Entry):
    """Where `peftbench data fetch` gets files; without a URL it says what to do by hand."""

    base: str = ""  # URL of every file of `checksums`, with {file} where its name stands
    urls: dict[str, str] = {}  # file -> URL, where it has its own
    sizes: dict[str, int] = {}  # file -> bytes, as published
    accept: str = ""  # terms to be accepted first; "" = the licence lets anybody download


class DatasetEntry(_Entry):
    """What is known of one data set: a file of `datasets/`."""

    title: str
    modality: str
    classes: Texts  # in label order
    licence: str
    sources: Texts  # URLs, or one line such as "drawn from a seed"
    citation: str = ""
    task: Task = "single"
    group_key: str = ""  # what may never cross parts; "" = nothing known
    synthetic: bool = False
    layout: str = ""  # folders and files as published, below root/<name>/
    sizes: dict[Size, int] = {}  # images a part, as published
    paper: dict[Size, int] = {}  # as the SH-PEFT paper states them
    complete: int | None = None  # images from which on a copy counts as complete; None = the published total
    split: str = ""  # the rule in words
    checksums: dict[str, str] = {}  # downloaded file -> "sha256:..." or "md5:...", as published
    download: Download = Download()
    members: dict[str, Member] = {}  # of a collection: what follows the colon
    dirt: Texts = ()  # known faults of the files
    how_to_get: str = ""  # what the user does to have the files, ending where to put them


class OwnEntry(DatasetEntry):
    """A data set of the user's own: a file of `datasets/` in the working folder."""

    path: str  # a folder of class folders, or a table FILE.csv; relative to the working folder, or ~
    modality: str = "unknown"
    classes: Texts = ()  # the names of the class folders in label order; none = as sorted
    licence: str = "the user's own"
    sources: Texts = ("the user's own",)
    group: str = ""  # a regular expression: what it, or its first group, finds in an image's path is the group's key


Entry = TypeVar("Entry", bound=_Entry)


def method_names() -> tuple[str, ...]:
    """The methods that have a file, sorted."""
    return _names("methods")


def dataset_names() -> tuple[str, ...]:
    """The data sets that have a file, the user's own among them, sorted."""
    return tuple(sorted({*_names("datasets"), *own_datasets()}))


def own_datasets() -> dict[str, Path]:
    """The files of `datasets/` in the working folder by name; `path` marks the user's. Raises CatalogueError."""
    return _own("datasets", "path")


def own_methods() -> dict[str, Path]:
    """The files of `methods/` in the working folder by name; `base` marks the user's. Raises CatalogueError."""
    return _own("methods", "base")


def _own(kind: Kind, mark: str) -> dict[str, Path]:
    """In a copy of peftbench's own catalogue, files without the mark are peftbench's; its names are taken."""
    folder, built_in = Path(kind).absolute(), _folder(kind)
    if not folder.is_dir() or folder.resolve() == built_in.resolve():
        return {}
    files = {file.stem: file for file in sorted(folder.glob("*.toml"))}
    taken = [name for name in files if name in _names(kind)]
    if clash := [files[name] for name in taken if mark in _toml(files[name])]:
        one = clash[0]
        raise CatalogueError(f"{one}: peftbench has a {CALLED[kind]} {one.stem!r} of its own; rename the file.")
    return {name: file for name, file in files.items() if name not in taken}


def method_variant(name: str) -> tuple[str, dict[str, Any]]:
    """The method that a user's variant is of, through other variants too, and the fields set. Raises CatalogueError."""
    own, base, values, passed = own_methods(), name, dict[str, Any](), list[str]()
    while base in own:
        if base in passed:
            raise CatalogueError(f"{own[name]}: its base leads back to {base!r}; a variant must end at a method.")
        passed.append(base)
        base, fields = _variant(own[base])
        values = {**fields, **values}
    return base, values


def _variant(file: Path) -> tuple[str, dict[str, Any]]:
    fields = {key: value for key, value in _toml(file).items() if key != "title"}
    base = fields.pop("base", None)
    if not isinstance(base, str):
        raise CatalogueError(f"{file}: key 'base' must name the method that this is a variant of, such as \"lora\".")
    return base, {key: tuple(value) if isinstance(value, list) else value for key, value in fields.items()}


@lru_cache
def method_entry(name: str) -> MethodEntry:
    """The entry of a method; raises UnknownNameError and CatalogueError."""
    return read_entry(_file("methods", name), MethodEntry)


def dataset_entry(name: str) -> DatasetEntry:
    """The entry of a data set; raises UnknownNameError and CatalogueError."""
    own = own_datasets()
    return read_entry(own[name], OwnEntry) if name in own else _built_in(_file("datasets", name))


@lru_cache
def _built_in(file: Path) -> DatasetEntry:
    return read_entry(file, DatasetEntry)


def dataset_card(name: str, member: str = "") -> DatasetCard:
    """The card of a data set, made from its entry; of a collection, that of a member."""
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
    )


def read_entry(file: Path, model: type[Entry]) -> Entry:
    """Read one TOML file strictly; raises CatalogueError naming the file and the key."""
    try:
        return model.model_validate(_toml(file))
    except ValidationError as error:
        raise CatalogueError(f"{file}: {_first(error)}; mend the file.") from None


def _toml(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise CatalogueError(f"{file} cannot be read: {error.strerror}.") from None
    except (ValueError, RecursionError) as error:
        raise CatalogueError(f"{file} is not valid TOML: {error}.") from None


def _first(error: ValidationError) -> str:
    """The first fault as `key 'official.lr': what is wrong`, and how many more there are."""
    fault, *others = error.errors(include_url=False)
    key = ".".join(str(step) for step in fault["loc"])
    more = f" (and {len(others)} more)" if others else ""
    words = "there is no such key" if fault["type"] == "extra_forbidden" else fault["msg"]
    return f"key {key!r}: {words}{more}"


def _folder(kind: Kind) -> Path:
    package = Path(__file__).parents[1]
    checkout = package.parent / kind
    is_checkout = (package.parent / "pyproject.toml").is_file() and checkout.is_dir()
    return checkout if is_checkout else package / "_data" / kind


def _names(kind: Kind) -> tuple[str, ...]:
    folder = _folder(kind)
    if not folder.is_dir():
        raise CatalogueError(f"The catalogue folder {folder} is missing; install peftbench again.")
    return tuple(sorted(file.stem for file in folder.glob("*.toml")))


def _file(kind: Kind, name: str) -> Path:
    names = _names(kind)
    if name not in names:
        known = dataset_names() if kind == "datasets" else names
        raise UnknownNameError({"methods": "method", "datasets": "data set"}[kind], name, known)
    return _folder(kind) / f"{name}.toml"
