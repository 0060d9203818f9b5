"""Recipes: how to train. All methods of a study share one, except for the learning rate."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, fields, replace
from typing import Annotated, Any, Literal, Self, TypeAlias

from pydantic import Field

from peftbench.core.constants import PrecisionOption
from peftbench.core.fields import Count, Fraction, NotNegative, Positive, checked


@checked
class Recipe:
    """How to train. All methods of a study share one recipe, except for the learning rate."""

    name: str = "standard"
    optimizer: Literal["adamw", "sgd"] = "adamw"
    lr: Positive = 1e-3  # at the end of the warm-up
    momentum: Fraction = 0.9  # sgd
    weight_decay: NotNegative = 0.01  # on matrices, not on vectors
    batch: Count = 64
    steps: Count = 2000
    warmup: Fraction = 0.1  # share of the steps
    schedule: Literal["cosine", "linear", "constant"] = "cosine"  # after the warm-up, updated every step
    warmup_lr: NotNegative = 0.0  # where the warm-up begins
    min_lr: NotNegative = 0.0  # where the schedule ends
    clip: NotNegative = 0.0  # largest norm of the gradient; 0 = no clipping
    label_smoothing: Fraction = 0.0
    stop: Annotated[int, Field(ge=0)] = 0  # step after which training ends although the schedule goes on; 0 = never
    evaluations: Count = 20  # evenly spaced, the last step included
    head_lr: NotNegative = 0.0  # lowest learning rate of the head, where more than the head trains
    head: Literal["plain", "l2", "batchnorm"] = "plain"
    head_scale: Positive = 1.0  # l2: the norm that features are scaled to
    # which step is kept: the best macro F1 on validation, that of three evaluations in a row, or the lowest loss there
    selection: Literal["validation", "validation_smoothed", "validation_loss", "last"] = "validation"
    class_weights: Literal["none", "balanced"] = "none"
    augmentation: Literal["none", "light", "medical"] = "none"
    precision: PrecisionOption = "auto"
    compile: bool = False  # torch.compile the blocks while they train: for a GPU
    graph: bool = False  # replay each training step as one CUDA graph
    deterministic: bool = False  # on a GPU: slower kernels that give the same bits each time

    def at(self, rate: float) -> Self:
        """Return the recipe at another learning rate; warm-up and schedule begin and end no higher."""
        return replace(self, lr=rate, warmup_lr=min(self.warmup_lr, rate), min_lr=min(self.min_lr, rate))

    def by(self, optimizer: str, stated: Mapping[str, Any]) -> Self:
        """Return the recipe with another optimizer and what belongs to it, except for values that are `stated`."""
        if optimizer == self.optimizer:
            return self
        changes: dict[str, Any] = {"optimizer": optimizer, **OPTIMIZERS[optimizer]}
        return replace(self, **{name: value for name, value in changes.items() if name not in stated})

    def stored(self) -> dict[str, Any]:
        """Return the fields under the names that records and job ids have used since version 0.1.0."""
        return {"optimiser" if name == "optimizer" else name: value for name, value in asdict(self).items()}

    @classmethod
    def restored(cls, stored: Mapping[str, Any]) -> Self:
        """Return the recipe of a record: fields that it lacks have their default, unknown ones are dropped."""
        values = {"optimizer" if name == "optimiser" else name: value for name, value in stored.items()}
        return cls(**{field.name: values[field.name] for field in fields(cls) if field.name in values})


RECIPES: Mapping[str, Recipe] = {
    "quick": Recipe("quick", lr=1e-2, batch=32, steps=60, evaluations=5),
    # A learning rate suited to the backbone is too low for a new head in so few steps: with the head at the backbone's
    # 1e-4, SH-PEFT on BUSI (ViT-S, 60 steps) stays at a macro F1 of .24 to .38; with the head at 1e-2 it reaches .76.
    "standard": Recipe("standard", head_lr=1e-2),
    "official": Recipe("official"),  # overridden by each method's catalogue file; see official_recipes.py
    "paper": Recipe("paper", optimizer="sgd", weight_decay=0.0, steps=40_000, warmup=0.0, head="l2", selection="last"),
}
IN_BRACKETS = (  # fields that may be set as in paper[momentum=0]; the others have flags
    *("optimizer", "lr", "momentum", "weight_decay", "warmup", "schedule", "clip", "label_smoothing"),
    *("head", "head_scale", "head_lr", "class_weights", "selection"),
)
CPU_STANDARD: Mapping[str, Any] = {
    "batch": 32,
    "steps": 150,
    "evaluations": 10,
}  # recipe standard without a GPU
# Best rates for recipe `quick`: by mean validation macro F1 over the quick study's three phantoms, seed 0, the best
# was 1e-2 for linear, bitfit, lora and shpeft, which stand for all that train few weights, and 1e-3 for full.
QUICK_RATES: Mapping[str, float] = {"full": 1e-3, "ft_att": 1e-3, "last_blocks": 1e-3}

# --- optimizers ------------------------------------------------------------------------------------------------------

Optimizer: TypeAlias = Literal["adamw", "sgd"]
OPTIMIZERS: Mapping[str, Mapping[str, float]] = {  # what belongs to an optimizer unless the recipe states it
    "adamw": {"weight_decay": 0.01},
    "sgd": {"momentum": 0.9, "weight_decay": 0.0},  # coupled decay at SGD's high rates would shrink the weights
}
MIDDLE: Mapping[str, float] = {"adamw": -3.2, "sgd": -1.8}  # logarithm of the rate around which tuning begins
TUNED: Mapping[str, tuple[Optimizer, ...]] = {"standard": ("adamw", "sgd")}  # others tune the rate of their own
MOST_TRIALS = 100
