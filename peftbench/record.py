"""What every job leaves: everything about it but its logits. `record.json` holds it, strictly typed."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

SCHEMA = 1


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class MethodFacts(_Strict):
    """The method as it ran."""

    name: str
    version: int
    fields: dict[str, Any]  # every hyper-parameter, the knob resolved
    label: str  # its name and what is not at its default, a knob that a budget turned aside: lora[alpha=16]


class DataFacts(_Strict):
    """The data as they were found."""

    name: str
    fingerprint: str  # sha256 over names, labels, contents and parts
    split: str
    sizes: dict[str, int]  # part -> images
    groups: dict[str, int]  # part -> groups
    card: dict[str, Any]
    notes: list[str]


class BackboneFacts(_Strict):
    """The pretrained network."""

    name: str
    digest: str  # sha256 of its weights; "random:<seed>" for a random one
    random: bool
    parameters: int  # without any head
    preprocessing: dict[str, Any]  # size, mean, std, interpolation, fit


class Budget(_Strict):
    """What was asked for and what was reached, in trainable backbone parameters."""

    target: int | None  # None: no budget was set
    reached: int
    knob: str | None
    edge: Literal["floor", "ceiling"] | None = None


class Counts(_Strict):
    """Trained parameters."""

    trainable: int  # head excluded
    head: int


class Choice(_Strict):
    """One selection rule's step and what it scored."""

    step: int
    val: dict[str, float | None]  # metric -> value, None = undefined; empty without a validation part
    test: dict[str, float | None]


class Costs(_Strict):
    """What the job took on the machine of `environment`."""

    seconds: float  # from start to end
    selection_seconds: float  # choosing what to train
    train_seconds: float
    evaluation_seconds: float
    images_per_second: float | None  # training
    peak_memory: int  # bytes: allocator peak on a GPU, growth of the process's resident set on CPU
    delta_bytes: int


class Tuning(_Strict):
    """How the learning rate was found: always on validation."""

    grid: list[float]
    scores: list[float | None]  # validation macro F1 of each, None = that trial failed
    trials: list[str]  # job ids
    chosen: float


class Record(_Strict):
    """Everything about one job but its logits. `record.json` holds it."""

    schema_version: int = SCHEMA
    id: str
    role: Literal["final", "trial"]
    status: Literal["done", "failed"]
    reason: str = ""  # of a failure
    method: MethodFacts
    data: DataFacts
    backbone: BackboneFacts
    recipe: dict[str, Any]
    seed: int
    threads: int | None  # on CPU; bits depend on it
    budget: Budget | None = None
    counts: Counts | None = None
    choices: dict[str, Choice] = {}  # rule -> choice: validation, last, oracle
    costs: Costs | None = None
    tuning: Tuning | None = None
    facts: dict[str, float] = {}  # what the method says of its plan
    notes: list[str] = []  # "not converged", ...
    environment: dict[str, str] = {}

    @property
    def rule(self) -> str:
        """The selection rule of its recipe, or the last step where there is no validation part."""
        asked = str(self.recipe["selection"])
        return asked if asked in self.choices else "last"

    @property
    def label(self) -> str:
        """How tables call it: `lora[r=4]`, `linear (random weights)`."""
        return self.method.label + (" (random weights)" if self.backbone.random else "")
