"""How to train: the recipes, the same for every method of a study but for the learning rate."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, Self

from peftbench.errors import RequestError


@dataclass(frozen=True)
class Recipe:
    """How to train; the same for every method of a study but for the learning rate."""

    name: str = "standard"
    optimizer: Literal["adamw", "sgd"] = "adamw"
    lr: float = 1e-3  # at the end of the warm-up
    momentum: float = 0.9  # sgd
    weight_decay: float = 0.01  # on matrices, not on vectors
    batch: int = 64
    steps: int = 2000
    warmup: float = 0.1  # share of the steps
    schedule: Literal["cosine", "linear", "constant"] = "cosine"  # behind the warm-up, a step at a time
    warmup_lr: float = 0.0  # where the warm-up begins
    min_lr: float = 0.0  # where the schedule ends
    clip: float = 0.0  # largest norm of the gradient; 0 = any
    label_smoothing: float = 0.0
    evaluations: int = 20  # evenly spaced, the last step included
    head_lr: float = 0.0  # the head learns at this rate where `lr` is lower and more than the head learns
    head: Literal["plain", "l2", "batchnorm"] = "plain"
    head_scale: float = 1.0  # l2: the length of the features
    selection: Literal["validation", "last"] = "validation"
    class_weights: Literal["none", "balanced"] = "none"
    augmentation: Literal["none", "light", "medical"] = "none"
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    compile: bool = False  # torch.compile for the blocks while they train: for a GPU
    graph: bool = False  # each training step replayed as one CUDA graph
    deterministic: bool = False  # on a GPU: the same bits each time, with slower kernels; a CPU gives them anyway

    def __post_init__(self) -> None:
        for name in ("lr", "batch", "steps", "evaluations", "head_scale"):
            if not 0 < getattr(self, name) < math.inf:
                raise RequestError(f"Recipe {self.name}: {name} must be above 0, not {getattr(self, name)}.")
        if not 0 <= self.warmup < 1 or not 0 <= self.weight_decay < math.inf or not 0 <= self.momentum < 1:
            raise RequestError(f"Recipe {self.name}: warmup and momentum lie in [0, 1), weight_decay is not negative.")
        if not 0 <= self.label_smoothing < 1:
            raise RequestError(f"Recipe {self.name}: label_smoothing lies in [0, 1), not at {self.label_smoothing}.")
        for name in ("clip", "head_lr", "warmup_lr", "min_lr"):
            if not 0 <= getattr(self, name) < math.inf:
                raise RequestError(f"Recipe {self.name}: {name} is not negative, as {getattr(self, name)} is.")

    def at(self, rate: float) -> Self:
        """The same at another learning rate: it begins and ends no higher."""
        return replace(self, lr=rate, warmup_lr=min(self.warmup_lr, rate), min_lr=min(self.min_lr, rate))

    def stored(self) -> dict[str, Any]:
        """Return the fields under the names that records and job ids have used since version 0.1.0."""
        return {"optimiser" if name == "optimizer" else name: value for name, value in asdict(self).items()}


RECIPES: Mapping[str, Recipe] = {
    "quick": Recipe("quick", lr=1e-2, batch=32, steps=60, evaluations=5),
    # At a rate that suits a backbone a new head hardly learns in so few steps: with the head at the backbone's 1e-4,
    # SH-PEFT on BUSI (ViT-S, 60 steps) stays at a macro F1 of .24 to .38, with the head at 1e-2 it comes to .76.
    "standard": Recipe("standard", head_lr=1e-2),
    "official": Recipe("official"),  # what the catalogue says of each method takes the place of these; see official.py
    "paper": Recipe("paper", optimizer="sgd", weight_decay=0.0, steps=40_000, warmup=0.0, head="l2", selection="last"),
}
IN_BRACKETS = (  # what may be set behind a recipe's name, as in paper[momentum=0]; the rest have flags
    *("momentum", "weight_decay", "warmup", "schedule", "clip", "label_smoothing"),
    *("head", "head_scale", "head_lr", "class_weights"),
)
CPU_STANDARD: Mapping[str, Any] = {
    "batch": 32,
    "steps": 150,
    "evaluations": 10,
}  # what recipe standard does where there is no GPU
# Rates of recipe `quick`: the best of GRID by mean validation macro F1 over the quick study's three phantoms, seed 0,
# was 1e-2 for linear, bitfit, lora and shpeft, which stand for all that train few weights, and 1e-3 for full.
QUICK_RATES: Mapping[str, float] = {"full": 1e-3, "ft_att": 1e-3, "last_blocks": 1e-3}
GRID = (1e-5, 1e-4, 1e-3, 1e-2)  # what --tune 4 tries
MOST = 100  # rates of a grid, whose two digits would meet otherwise


def grid(points: int) -> tuple[float, ...]:
    """`points` learning rates, evenly spaced in the logarithm over the range of GRID."""
    if points < 2:  # noqa: PLR2004 - one point is no choice
        raise RequestError(f"--tune {points}: at least 2 learning rates are needed to choose between.")
    if points > MOST:
        raise RequestError(f"--tune {points}: no more than {MOST} learning rates are told apart.")
    step = (GRID[-1] / GRID[0]) ** (1 / (points - 1))
    return tuple(float(f"{GRID[0] * step**i:.2g}") for i in range(points))
