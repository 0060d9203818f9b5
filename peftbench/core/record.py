"""The record of a job, stored as `record.json`: everything about it except its logits, strictly typed."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self, TypeAlias

from pydantic import AliasChoices, BaseModel, ConfigDict, Field

from peftbench.core.constants import RANDOM_WEIGHTS, UNTRAINED, Edge, Role
from peftbench.storage.files import sha256_json

SCHEMA = 1
Cut: TypeAlias = Literal["official", "grouped", "deduplicated"]
Amount: TypeAlias = Annotated[str, Field(coerce_numbers_to_str=True)]  # 1%, 100k, or a number, quoted or not


@dataclass(frozen=True)
class Variant:
    """The images of a data set that a job uses: how leaks between parts are treated, and how much of train is used."""

    splits: Cut = "official"  # as published; without groups in two parts; also without near duplicates
    share: float = 1.0  # of the training images, in whole groups
    shots: int = 0  # training images per class; 0: all
    folds: int = 0  # of a cross-validation; 0: none
    fold: int = 0  # from 1 to `folds`; 0: all of them, their predictions pooled

    def __str__(self) -> str:
        """Return the addition to a method's label, such as `grouped, 5% of train`; empty for the whole data set."""
        few = f"{100 * self.share:.3g}% of train" if self.share < 1 else f"{self.shots} shots" if self.shots else ""
        of = f"fold {self.fold} of {self.folds}" if self.fold else f"{self.folds} folds" if self.folds else ""
        return ", ".join(word for word in ("" if self.splits == "official" else self.splits, few, of) if word)


WHOLE = Variant()


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, serialize_by_alias=True)


class MethodFacts(_Strict):
    """The method as it ran."""

    name: str
    version: int
    fields: dict[str, Any]  # every hyper-parameter, the knob resolved
    label: (
        str  # name and fields that differ from their default, such as lora[alpha=16]; without a knob that a budget set
    )


class DataFacts(_Strict):
    """The data set as the job used it."""

    name: str
    fingerprint: str  # SHA-256 over names, labels, contents and parts
    split: str
    sizes: dict[str, int]  # part -> images
    groups: dict[str, int]  # part -> groups
    card: dict[str, Any]
    notes: list[str]
    variant: Variant = WHOLE
    test: str = ""  # digest of the test images' names and labels: jobs with the same one can be compared image by image
    balance: dict[str, list[int]] = {}  # part -> images per class
    audit: dict[str, int] = {}  # finding of `peftbench data check` -> how often; without names of images

    @property
    def positive_index(self) -> int:
        """The label of the positive class of two; the second where the card names none."""
        positive = self.card.get("positive")
        return list(self.card["classes"]).index(positive) if positive else 1


class BackboneFacts(_Strict):
    """The pretrained network."""

    name: str
    digest: str  # SHA-256 of its weights; "random:<seed>" for random ones
    random: bool
    parameters: int  # without any head
    preprocessing: dict[str, Any]  # size, mean, std, interpolation, fit
    overlap: str = ""  # why its pretraining may have seen the test images; "": not known


class Budget(_Strict):
    """The requested and the reached size, in trainable backbone parameters."""

    target: int | None  # None: no budget was set
    reached: int
    knob: str | None
    edge: Edge | None = None


class Counts(_Strict):
    """Trainable parameters."""

    trainable: int  # head excluded
    head: int


class Choice(_Strict):
    """The step that a selection rule chose, and its scores."""

    step: int
    val: dict[str, float | None]  # metric -> value, None: undefined; empty without a validation part
    test: dict[str, float | None]


class Memory(_Strict):
    """Memory of a training step in bytes, counted tensor by tensor, without temporaries."""

    weights: int  # all tensors of the network and of added modules, trained or not
    gradients: int
    optimizer: int = Field(
        validation_alias=AliasChoices("optimizer", "optimiser"),
        serialization_alias="optimiser",  # the spelling of records since version 0.1.0
    )
    activations: int  # saved by the forward pass for the backward pass
    pixels: int  # the batch and, on a CPU, the part of the decoded images in memory

    @property
    def total(self) -> int:
        """Return their sum."""
        return self.weights + self.gradients + self.optimizer + self.activations + self.pixels


class Costs(_Strict):
    """Time and memory of the job on the machine of `environment`."""

    seconds: float  # from start to end
    selection_seconds: float  # for the method to choose what is trained
    train_seconds: float
    evaluation_seconds: float
    images_per_second: float | None  # in training
    peak_memory: int  # bytes: peak of the allocator on a GPU, growth of the resident set on a CPU
    delta_bytes: int
    memory: Memory | None = None  # the following: None in records that are older than the field
    flops_forward: float | None = None  # per image; a multiply-add counts as two
    flops_training: float | None = None  # per image of a training step: forward and backward
    predicted_per_second: float | None = None  # images, in evaluations; None if stored features were used
    cpu_seconds: float | None = None  # CPU time of the job over all threads, which other processes do not disturb
    train_cpu_seconds: float | None = None  # the part of training


@dataclass(frozen=True)
class ScoredTrial:
    """One trial of a search, as a table or figure shows it."""

    optimizer: str  # "" in records of version 0.1.0: the recipe's
    lr: float
    setting: Mapping[str, Any]  # fields of the method that were tuned
    score: float | None


class Tuning(_Strict):
    """How optimizer, learning rate and fields of the method were tuned, always on the validation part."""

    grid: list[float]
    scores: list[float | None]  # validation macro F1 of each; None: the trial failed
    trials: list[str]  # job ids
    chosen: float
    optimizers: list[str] = []  # of each trial; empty in records of version 0.1.0, whose trials all used the recipe's
    settings: list[dict[str, Any]] = []  # of each trial: fields of the method that were tuned; empty if there are none
    edge: Literal["", "lowest", "highest"] = ""  # whether the chosen rate is at the edge of those tried
    refit: bool = False  # trained on train and val at the chosen rate, to the step chosen by the trial

    @property
    def points(self) -> list[ScoredTrial]:
        """Return the trials in their order."""
        optimizers = self.optimizers or [""] * len(self.grid)
        settings = self.settings or [{}] * len(self.grid)
        return [ScoredTrial(*values) for values in zip(optimizers, self.grid, settings, self.scores, strict=True)]

    @property
    def best(self) -> ScoredTrial:
        """Return the chosen trial: the first with the best score at the chosen rate."""
        at_chosen = [point for point in self.points if point.lr == self.chosen]
        return max(at_chosen, key=lambda point: -math.inf if point.score is None else point.score)


class Record(_Strict):
    """Everything about one job except its logits, as `record.json` holds it."""

    schema_version: int = SCHEMA
    id: str
    role: Role
    status: Literal["done", "failed"]
    reason: str = ""  # of a failure
    method: MethodFacts
    data: DataFacts
    backbone: BackboneFacts
    recipe: dict[str, Any]
    seed: int
    threads: int | None  # on a CPU; the last bits of the results depend on it
    budget: Budget | None = None
    counts: Counts | None = None
    choices: dict[str, Choice] = {}  # rule -> choice: validation, last, oracle
    costs: Costs | None = None
    tuning: Tuning | None = None
    facts: dict[str, float] = {}  # numbers by which the method describes its plan
    ways: dict[str, str] = {}  # layer -> how its single weights' gradient was computed; the last bits depend on it
    notes: list[str] = []  # "not converged", ...
    environment: dict[str, str] = {}
    files: dict[str, str] = {}  # file beside the record -> SHA-256
    seal: str = ""  # SHA-256 of all of the above; empty before it is written

    def sealed(self) -> Self:
        """Return the record with its seal, by which later changes of the file are noticed."""
        return self.model_copy(update={"seal": self._digest()})

    @property
    def intact(self) -> bool:
        """Return whether the record is sealed and was not changed since."""
        return self.seal == self._digest()

    def _digest(self) -> str:
        # Without defaults: a field that a later version adds does not change the seal of an old record.
        sealed = self.model_dump(mode="json", exclude={"seal"}, exclude_defaults=True)
        return sha256_json(sealed, spaced=True)

    @property
    def rule(self) -> str:
        """Return the selection rule of the recipe, or `last` if there is no validation part."""
        rule = str(self.recipe["selection"])
        return rule if rule in self.choices else "last"

    @property
    def has_learning_rate(self) -> bool:
        """Whether the recipe's steps trained it; not majority, k-NN and probes fitted by L-BFGS."""
        return self.method.name not in UNTRAINED and self.method.fields.get("solver") != "lbfgs"

    @property
    def label(self) -> str:
        """Return the label in tables: `lora[r=4]`, `linear (random weights)`, `lora (5% of train)`."""
        return self.labeled(self.data.variant)

    def labeled(self, variant: Variant) -> str:
        """Return the label for another variant of the data."""
        return self.plain_label + (f" ({variant})" if str(variant) else "")

    @property
    def plain_label(self) -> str:
        """Return the label without the variant of the data."""
        return self.method.label + (RANDOM_WEIGHTS if self.backbone.random else "")
