"""What is asked for: Study and Job, whose values alone decide a job's id."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

from peftbench.core.contract import Card, Preprocessing
from peftbench.core.fields import build
from peftbench.core.recipe import Recipe, grid
from peftbench.core.record import WHOLE, Amount, Cut, Variant
from peftbench.core.syntax import LARGEST, Spec, budget, parse, texts
from peftbench.errors import RequestError
from peftbench.storage.cache import LIMIT
from peftbench.storage.files import sha256_json

# --- studies ---------------------------------------------------------------------------------------------------------

QUICK = {
    "methods": ("bitfit", "lora", "shpeft", "full"),
    "datasets": ("phantom_ultrasound", "phantom_histology", "phantom_oct"),
}
PAPER_SIX = ("chaoyang", "covid_ct", "busi", "chest_xray", "oct", "limuc")


@dataclass(frozen=True)
class Study:
    """What was asked for, as written on the command line or in study.toml; every field has the flag's name."""

    methods: tuple[str, ...] = ()
    datasets: tuple[str, ...] = ()
    splits: tuple[Cut, ...] = ("official",)
    train_share: tuple[Amount, ...] = ()  # none: all of train
    shots: tuple[int, ...] = ()  # images of each class; none: all
    ratios: tuple[Amount, ...] = ()  # none: every method at its own default size
    seeds: tuple[int, ...] = (0,)
    backbone: str = ""  # "": clip_vit_b16 when its weights and a GPU are here, else mini
    image_size: int | None = None
    recipe: str = ""  # "": quick for the study without arguments, else standard
    tune: int | None = None  # learning rates to try; None: 4 with recipe standard, else none
    baselines: bool = True
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    compile: bool = False  # torch.compile for the blocks while they train
    graph: bool = False  # each training step replayed as one CUDA graph
    deterministic: bool = False  # on a GPU: the same bits each time
    steps: int | None = None  # these four: None = the recipe's
    batch: int | None = None
    evaluations: int | None = None
    lr: float | None = None
    threads: int = 1
    augmentation: Literal["", "none", "light", "medical"] = ""  # "": the recipe's

    def __post_init__(self) -> None:
        for name in ("image_size", "steps", "batch", "evaluations", "lr", "threads"):
            value = getattr(self, name)
            if value is not None and not 0 < value < LARGEST:
                raise RequestError(f"--{name.replace('_', '-')} {value}: it must be above 0 and below {LARGEST}.")
        if not self.seeds or min(self.seeds) < 0 or max(self.seeds) > LARGEST:
            raise RequestError(f"--seeds: give whole numbers such as 0,1,2, none below 0 or above {LARGEST}.")
        if self.tune:
            grid(self.tune)  # refuses a number below 2
        if self.tune and self.lr is not None:
            raise RequestError("--tune and --lr contradict each other: a rate is looked for or given.")
        if not self.splits or (self.train_share and self.shots) or min(self.shots, default=1) < 1:
            raise RequestError("Give --splits once or more, and --train-share or --shots (from 1) or neither.")
        _ = self.variants, *map(budget, self.ratios), *map(parse, self.methods)  # refuse nonsense

    @property
    def variants(self) -> tuple[Variant, ...]:
        """Every cut of the data with every size of train that was asked for; each is a job of its own."""
        sizes = [(_share(text), 0) for text in self.train_share] or [(1.0, n) for n in self.shots or (0,)]
        return tuple(dict.fromkeys(Variant(cut, *size) for cut in self.splits for size in sizes))


SEVERAL = frozenset(f.name for f in fields(Study) if str(f.type).startswith("tuple"))  # fields of several values


def _share(text: str) -> float:
    """A share of train in (0, 1]."""
    try:
        value = budget(text)
    except RequestError:
        value = 0
    if isinstance(value, int):
        raise RequestError(
            f"--train-share {text}: write a share such as 5% or 0.05, above 0% and at most 100%, or give images as "
            "--shots."
        )
    return value


def load_study(file: Path) -> Study:
    """Read study.toml. Raises RequestError naming the file and the key."""
    try:
        values = tomllib.loads(file.read_text(encoding="utf-8"))
        json.dumps(values, default=str)  # refuses numbers that are too long to be shown
    except OSError as error:
        raise RequestError(f"Cannot read the study {file}: {error.strerror}.") from None
    except (ValueError, RecursionError) as error:
        raise RequestError(f"The study {file} is not valid TOML: {error}.") from None
    return build(Study, values, f"The study {file}")


def asked(file: Path | None, given: Mapping[str, Any]) -> Study:
    """The study in `file`, if any, with the options in `given` put over it; None, "" and strange names are left out."""
    base = load_study(file) if file else Study()
    known = {f.name for f in fields(Study)}
    said = {k: v for k, v in given.items() if k in known and v not in (None, "", [])}
    for name in SEVERAL & said.keys():
        text = ",".join(said[name])
        if not (found := texts(text)):
            raise RequestError(f"--{name.replace('_', '-')} {text!r} names nothing.")
        said[name] = found
    if not base.baselines:
        said.pop("baselines", None)
    study = build(Study, said, "The command line")
    return replace(base, **{name: getattr(study, name) for name in said})


@dataclass(frozen=True)
class Places:
    """Folders and files of this machine; never part of an id."""

    store: Path
    data: Path
    cache: Path
    weights: Path | None = None
    device: str = "cpu"
    cache_limit: int = LIMIT  # bytes


@dataclass(frozen=True)
class Job:
    """One training run, everything resolved. `identity` decides its id; the fields behind it do not."""

    method: str
    version: int
    fields: Mapping[str, Any]  # of the method, the knob resolved
    defaults: Mapping[str, Any]  # of the same fields
    dataset: str
    fingerprint: str
    split: str
    backbone: str  # as written, @random included
    digest: str  # sha256 of the weights, or random:<seed>
    image_size: int | None  # as asked
    preprocessing: Preprocessing
    recipe: Recipe
    seed: int
    threads: int | None  # CPU
    role: Literal["final", "trial"] = "final"
    knob: str | None = None  # the method's, if it has one
    target: int | None = None  # trainable parameters asked for
    edge: Literal["floor", "ceiling"] | None = None
    tuning: Mapping[str, Any] | None = None
    variant: Variant = WHOLE  # of the data; `split` and `fingerprint` tell it apart
    policy: str = ""  # what augmentation `medical` does to this data set
    alias: str = ""  # how a user's variant of the method is called
    about: tuple[Card, tuple[str, ...]] | None = None  # card and notes of the data: the same images may have several

    def identity(self) -> dict[str, Any]:
        """The resolved values that decide the result, fields at their default left out."""
        defaults = Recipe().stored()
        return {
            "method": {
                "name": self.method,
                "version": self.version,
                "fields": {k: v for k, v in self.fields.items() if v != self.defaults.get(k, MISSING)},
            },
            "data": {"fingerprint": self.fingerprint, "split": self.split, "preprocessing": asdict(self.preprocessing)},
            "backbone": {"name": self.backbone, "digest": self.digest},
            "recipe": {k: v for k, v in self.recipe.stored().items() if k == "name" or v != defaults[k]},
            "threads": self.threads,
            "seed": self.seed,
            "role": self.role,
            **({"policy": self.policy} if self.policy else {}),
        }

    @property
    def id(self) -> str:
        """Sixteen hexadecimal digits."""
        return sha256_json(self.identity())[:16]

    @property
    def label(self) -> str:
        """How a table calls the method: its name and the fields that are not at their default, the knob's aside."""
        turned = self.knob if self.target is not None else None
        inside = {k: v for k, v in self.fields.items() if k != turned and v != self.defaults.get(k, MISSING)}
        return self.alias or str(Spec(self.method, None, inside))


digest = sha256_json  # for modules that have not taken it from storage.files yet
