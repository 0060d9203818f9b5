"""What is requested: Study, and Job, whose resolved values alone decide a job's id."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, ClassVar, Literal, TypeAlias

from pydantic import BeforeValidator, Field

from peftbench.core import catalogue_files
from peftbench.core.constants import Edge, PrecisionOption, Role
from peftbench.core.contract import DatasetCard, Preprocessing
from peftbench.core.fields import Count, Positive, build, checked, fields_of_many
from peftbench.core.recipe import MOST_TRIALS, Recipe
from peftbench.core.record import WHOLE, Amount, Cut, Variant
from peftbench.core.registry import refuse_unknown_methods
from peftbench.core.syntax import LARGEST, Spec, budget, parse, texts, visible
from peftbench.errors import RequestError
from peftbench.storage.cache import LIMIT
from peftbench.storage.files import sha256_json

# --- studies ---------------------------------------------------------------------------------------------------------


def _parsed(value: object) -> object:
    return (parse(value) if value else None) if isinstance(value, str) else value


Parsed: TypeAlias = Annotated[Spec, BeforeValidator(_parsed)]


@checked
class Study:
    """A study as requested: every field has the name of its flag, and of its key in study.toml.

    Methods and the recipe may be given as text, such as `lora[r=4]`, and are parsed here, once.
    """

    called: ClassVar[str] = "study"

    methods: tuple[Parsed, ...] = ()  # or `paper`, `all`; none: those of the quick study
    datasets: tuple[str, ...] = ()  # names, `folder:PATH`, or `all`, `paper`, ...; none: `all`
    splits: Annotated[tuple[Cut, ...], Field(min_length=1)] = ("official",)
    train_share: tuple[Amount, ...] = ()  # of train's images; none: all of them
    shots: tuple[Count, ...] = ()  # training images of each class; none: all of them
    match: str = ""  # such as shpeft@1%: the budget is the size of this method at this ratio
    ratios: tuple[Amount, ...] = ()  # budgets; none: every method at its own default size
    seeds: tuple[Annotated[int, Field(ge=0, le=LARGEST)], ...] = ()  # none: 0,1,2 for standard and paper, else 0
    backbone: str = ""  # "": clip_vit_b16 if its weights and a GPU are on this machine, else mini
    image_size: Count | None = None  # pixels; None: the backbone's own
    recipe: Annotated[Spec | None, BeforeValidator(_parsed)] = (
        None  # None: quick for the study without arguments, else standard
    )
    tune: Annotated[int, Field(ge=0, le=MOST_TRIALS)] | None = None  # trials a method; None: 8 for standard, else 0
    folds: Annotated[int, Field(ge=0, le=100)] = 0  # of a cross-validation; 0: the data set's own parts
    refit: bool = False  # train the final jobs on train and val, at the rate and step that trials chose
    baselines: bool = True  # run majority, knn, linear, and linear on random weights as well
    precision: PrecisionOption = "auto"
    compile: bool = False  # torch.compile the blocks while they train
    graph: bool = False  # replay each training step as one CUDA graph
    deterministic: bool = False  # on a GPU: the same bits each time
    steps: Count | None = None  # of this and the next three: None = the recipe's
    batch: Count | None = None
    evaluations: Count | None = None
    lr: Positive | None = None
    threads: Count = 1  # CPU threads of a job
    augmentation: Literal["", "none", "light", "medical"] = ""  # "": the recipe's
    image_column: str = ""  # of a table:FILE.csv, as of the next three; "": image, label, split and group
    label_column: str = ""
    split_column: str = ""
    group_column: str = ""

    def __post_init__(self) -> None:
        if self.tune == 1:
            raise RequestError("--tune must be 0 or at least 2, got 1: one trial leaves nothing to choose.")
        if self.tune and self.lr is not None:
            raise RequestError(
                "--tune and --lr exclude each other: --tune searches for the learning rate; leave one out."
            )
        if self.train_share and self.shots:
            raise RequestError("--train-share and --shots exclude each other; leave one out.")
        if self.folds == 1:
            raise RequestError("--folds must be 0 or at least 2, got 1.")
        if self.folds and self.splits != ("official",):
            raise RequestError("--folds works only with --splits official.")
        if self.match and self.ratios:
            raise RequestError("--match and --ratios exclude each other: --match sets the budget; leave one out.")
        _ = self.matched, self.variants, [budget(ratio) for ratio in self.ratios]  # refuses what cannot be read

    @property
    def variants(self) -> tuple[Variant, ...]:
        """Return every cut of the data with every size of train and every fold; each is a job of its own."""
        sizes = [(_share(text), 0) for text in self.train_share] or [(1.0, n) for n in self.shots or (0,)]
        folds = range(1, self.folds + 1) if self.folds else (0,)
        found = [Variant(cut, *size, self.folds, fold) for cut in self.splits for size in sizes for fold in folds]
        return tuple(dict.fromkeys(found))

    @property
    def matched(self) -> tuple[Spec, float | int] | None:
        """Return the method and ratio whose size is the budget, if any."""
        method, at, ratio = self.match.rpartition("@")
        if self.match and not at:
            raise RequestError(f"--match must be METHOD@RATIO, such as shpeft@1%, got {self.match}.")
        return (parse(method), budget(ratio)) if self.match else None

    @property
    def columns(self) -> dict[str, str]:
        """The columns of tables that are called otherwise than image, label, split and group."""
        return {name: value for name in COLUMNS if (value := getattr(self, name))}

    def stored(self) -> dict[str, Any]:
        """Return the fields as study.json stores them: methods and recipe as text."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return values | {"methods": [str(spec) for spec in self.methods], "recipe": str(self.recipe or "")}


COLUMNS = ("image_column", "label_column", "split_column", "group_column")
SEVERAL = fields_of_many(Study)  # flags that take several values


def _share(text: str) -> float:
    """Return a share of train, in (0, 1]."""
    try:
        value = budget(text)
    except RequestError:
        value = 0
    if isinstance(value, int):
        raise RequestError(
            f"--train-share must be a share above 0% and at most 100%, such as 5% or 0.05, got {visible(text)}; "
            "for a number of images, use --shots."
        )
    return value


SCALES = ("printed", "small")
# Options that exclude each other: one that is given replaces the other of the file.
RIVALS: Mapping[str, str] = MappingProxyType(
    {"lr": "tune", "tune": "lr", "ratios": "match", "match": "ratios", "train_share": "shots", "shots": "train_share"}
)


def find_study(text: str) -> Path:
    """Return the file that a path, or the name of a shipped study, stands for. Raises UnknownNameError."""
    path = Path(text)
    if not path.is_file() and (text in catalogue_files.study_names() or path.name == text.removesuffix(".toml")):
        return catalogue_files.built_in("studies", text)
    return path


def load_study(file: Path, scale: str = "") -> Study:
    """Read study.toml; with the scale `small` its table `small` replaces keys above it.

    Raises RequestError naming the file and the key.
    """
    values = read_values(file)
    small = values.pop("small", None)
    values.pop("title", None)
    values.pop("executor", None)  # where the study runs, which `executor_table` reads
    if scale not in ("", *SCALES):
        raise RequestError(f"--scale must be {' or '.join(SCALES)}, got {visible(scale)}.")
    if scale == "small":
        if not isinstance(small, dict):
            raise RequestError(f"The study {file} has no table [small]; leave --scale out.")
        values |= small
    return build(Study, values, f"The study {file}")


def executor_table(file: Path | None) -> dict[str, Any]:
    """Return the table [executor] of a study file, unchecked; empty without one. Raises RequestError."""
    table = read_values(file).get("executor", {}) if file else {}
    if not isinstance(table, dict):
        raise RequestError(f"The study {file}: executor must be a table, [executor], got {table!r}.")
    return table


def read_values(file: Path) -> dict[str, Any]:
    """Return the keys of a study.toml, unchecked. Raises RequestError naming the file."""
    try:
        values = tomllib.loads(file.read_text(encoding="utf-8-sig"))  # some editors begin a file with a byte-order mark
        json.dumps(values, default=str)  # refuses integers with more digits than Python prints
    except OSError as error:
        raise RequestError(f"Cannot read the study {file}: {error.strerror}.") from None
    except (ValueError, RecursionError) as error:
        raise RequestError(f"The study {file} is not valid TOML: {error}.") from None
    return values


def read_study(file: Path | None, given: Mapping[str, Any], scale: str = "") -> Study:
    """Return the study in `file`, if any, overridden by the options in `given`; None, "" and [] override nothing.

    Raises RequestError for a name that is not a field of a study.
    """
    if scale and not file:
        raise RequestError("--scale needs a study, such as paper-table1; `peftbench list studies` names them.")
    base = load_study(file, scale) if file else Study()
    options = {k: v for k, v in given.items() if v not in (None, "", [])}
    for name in SEVERAL & options.keys():
        text = ",".join(options[name])
        if not (found := texts(text, _exists)):
            raise RequestError(f"{flag(name)} must name at least one value, got {text!r}.")
        options[name] = found
    study, plain = build(Study, options, "", flag), Study()
    refuse_unknown_methods(spec.name for spec in study.methods)
    replaced = {rival: getattr(plain, rival) for name, rival in RIVALS.items() if name in options}
    return replace(base, **replaced | {name: getattr(study, name) for name in options})


def _exists(path: str) -> bool:
    """Return whether a text names a file or folder; not for a text that no file system takes."""
    try:
        return bool(path) and Path(path).exists()
    except (OSError, ValueError):
        return False


def flag(name: str) -> str:
    """Return the flag of a field: `--image-size` for `image_size`."""
    return f"--{name.replace('_', '-')}"


# --- jobs ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Places:
    """Folders, files and the device on this machine; never part of a job's id."""

    store: Path
    data: Path
    cache: Path
    weights: Path | None = None
    device: str = "cpu"
    cache_limit: int = LIMIT  # bytes

    def absolute(self) -> Places:
        """Return the same places with absolute paths, as other machines must see them."""
        weights = self.weights and self.weights.absolute()
        store, data, cache = (path.absolute() for path in (self.store, self.data, self.cache))
        return replace(self, store=store, data=data, cache=cache, weights=weights)


@dataclass(frozen=True)
class Job:
    """One training run, everything resolved. What `identity` returns decides its id."""

    method: str
    version: int
    fields: Mapping[str, Any]  # of the method, the knob resolved
    defaults: Mapping[str, Any]  # of the same fields
    dataset: str
    fingerprint: str
    split: str
    backbone: str  # as written, @random included
    digest: str  # sha256 of the weights, or random:<seed>
    image_size: int | None  # as requested
    preprocessing: Preprocessing
    recipe: Recipe
    seed: int
    threads: int | None  # CPU
    role: Role = "final"
    knob: str | None = None  # the method's, if it has one
    target: int | None = None  # the budget, in trainable parameters
    edge: Edge | None = None
    tuning: Mapping[str, Any] | None = None
    variant: Variant = WHOLE  # of the data; part of the id through `split` and `fingerprint`
    policy: str = ""  # how augmentation `medical` treats this data set
    alias: str = ""  # name of the user's own variant of the method
    network: str = ""  # identifies the network of a user's own preset of a backbone
    about: tuple[DatasetCard, tuple[str, ...]] | None = None  # of the data: card and notes

    def identity(self) -> dict[str, Any]:
        """Return the resolved values that decide the result, without fields at their default."""
        defaults, pixels = Recipe().stored(), self.preprocessing.stored()
        network = {"network": self.network} if self.network else {}
        return {
            "method": {
                "name": self.method,
                "version": self.version,
                "fields": {k: v for k, v in self.fields.items() if v != self.defaults.get(k, MISSING)},
            },
            "data": {"fingerprint": self.fingerprint, "split": self.split, "preprocessing": pixels},
            "backbone": {"name": self.backbone, "digest": self.digest, **network},
            "recipe": {k: v for k, v in self.recipe.stored().items() if k == "name" or v != defaults[k]},
            "threads": self.threads,
            "seed": self.seed,
            "role": self.role,
            **({"policy": self.policy} if self.policy else {}),
        }

    @cached_property
    def id(self) -> str:
        """Sixteen hexadecimal digits."""
        return sha256_json(self.identity())[:16]

    @property
    def label(self) -> str:
        """The method's name in tables."""
        return self.alias or label(
            self.method, self.fields, self.defaults, self.knob if self.target is not None else ""
        )


def label(name: str, values: Mapping[str, Any], defaults: Mapping[str, Any], turned: str | None = None) -> str:
    """Return a method's name with the fields that differ from their defaults: `lora[alpha=16]`.

    The field `turned`, which a budget has set, is left out.
    """
    return str(Spec(name, None, {k: v for k, v in values.items() if k != turned and v != defaults.get(k, MISSING)}))
