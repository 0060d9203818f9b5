"""What every job leaves: everything about it but its logits. `record.json` holds it, strictly typed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self, TypeAlias

from pydantic import AliasChoices, BaseModel, ConfigDict, Field

from peftbench.storage.files import sha256_json

SCHEMA = 1
Cut: TypeAlias = Literal["official", "grouped", "deduplicated"]
Amount: TypeAlias = Annotated[str, Field(coerce_numbers_to_str=True)]  # 1%, 100k, or a number with or without quotes


@dataclass(frozen=True)
class Variant:
    """Which images of a data set a job uses: how leaks between parts are treated, and how much of train it sees."""

    splits: Cut = "official"  # the parts as the data set gives them, without crossing groups, without duplicates too
    share: float = 1.0  # of train's images, in whole groups
    shots: int = 0  # images of each class in train; 0 = all

    def __str__(self) -> str:
        """What a table writes behind a method's name: `grouped, 5% of train`; empty where nothing was changed."""
        few = f"{100 * self.share:.3g}% of train" if self.share < 1 else f"{self.shots} shots" if self.shots else ""
        return ", ".join(word for word in ("" if self.splits == "official" else self.splits, few) if word)


WHOLE = Variant()


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, serialize_by_alias=True)


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
    variant: Variant = WHOLE
    test: str = ""  # digest of the test images' names and labels: equal where jobs may be compared image by image
    balance: dict[str, list[int]] = {}  # part -> images of each class
    audit: dict[str, int] = {}  # what `peftbench data check` found -> how often; it names no image


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


class Memory(_Strict):
    """What a training step holds, in bytes, counted tensor by tensor; what is held for a moment only is left out."""

    weights: int  # all tensors of the network and what was added to it, trained or not
    gradients: int
    optimizer: int = Field(
        validation_alias=AliasChoices("optimizer", "optimiser"),
        serialization_alias="optimiser",  # records have spelled it so since version 0.1.0
    )
    activations: int  # what forward keeps for backward
    pixels: int  # the batch and, on CPU, the part of the decoded images that lies in memory

    @property
    def total(self) -> int:
        """Their sum."""
        return self.weights + self.gradients + self.optimizer + self.activations + self.pixels


class Costs(_Strict):
    """What the job took on the machine of `environment`."""

    seconds: float  # from start to end
    selection_seconds: float  # choosing what to train
    train_seconds: float
    evaluation_seconds: float
    images_per_second: float | None  # training
    peak_memory: int  # bytes: allocator peak on a GPU, growth of the process's resident set on CPU
    delta_bytes: int
    memory: Memory | None = None  # these four: None in records that are older than the field
    flops_forward: float | None = None  # of an image through the network; a multiply-add is two
    flops_training: float | None = None  # of an image in a training step: forward and backward
    predicted_per_second: float | None = None  # images, in evaluations; None where stored features stood for them


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
    files: dict[str, str] = {}  # what lies beside it -> sha256
    seal: str = ""  # sha256 of all the above; "" = not written yet

    def sealed(self) -> Self:
        """The same with its seal, so that a later change of the file is seen."""
        return self.model_copy(update={"seal": self._digest()})

    @property
    def intact(self) -> bool:
        """Whether it was sealed and nothing was changed since."""
        return self.seal == self._digest()

    def _digest(self) -> str:
        # Without defaults: a field that a later version adds does not change the seal of an old record.
        sealed = self.model_dump(mode="json", exclude={"seal"}, exclude_defaults=True)
        return sha256_json(sealed, spaced=True)

    @property
    def rule(self) -> str:
        """The selection rule of its recipe, or the last step where there is no validation part."""
        asked = str(self.recipe["selection"])
        return asked if asked in self.choices else "last"

    @property
    def label(self) -> str:
        """How tables call it: `lora[r=4]`, `linear (random weights)`, `lora (5% of train)`."""
        return self.labelled(self.data.variant)

    def labelled(self, variant: Variant) -> str:
        """The label that it would have on another variant of the data."""
        return self.plain_label + (f" ({variant})" if str(variant) else "")

    @property
    def plain_label(self) -> str:
        """The same without what was done to the data."""
        return self.method.label + (" (random weights)" if self.backbone.random else "")
