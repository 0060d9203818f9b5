"""What `engine.fit` costs above a bare training loop that computes the same: a figure of `peftbench bench`."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from peftbench.core.contract import Preprocessing
from peftbench.core.recipe import Recipe
from peftbench.data.batches import Images, batch_order
from peftbench.training.loop import Learner, Task, fit

IMAGES = 256
HALF = (0.5, 0.5, 0.5)


@dataclass(frozen=True)
class Match:
    """One model, its images and a recipe: plain SGD, no warm-up, everything trains."""

    model: nn.Module
    side: int  # pixels
    batch: int
    steps: int
    classes: int

    @property
    def preprocessing(self) -> Preprocessing:
        """From 0..255 to -1..1."""
        return Preprocessing(self.side, HALF, HALF)

    @property
    def recipe(self) -> Recipe:
        """The same for both."""
        base = Recipe("bench", optimizer="sgd", lr=0.05, weight_decay=0.0, warmup=0.0, evaluations=1)
        return replace(base, batch=self.batch, steps=self.steps)

    def pixels(self) -> NDArray[np.uint8]:
        """(IMAGES, 3, S, S), random."""
        return np.random.default_rng(0).integers(0, 256, (IMAGES, 3, self.side, self.side), dtype=np.uint8)


def contestants(match: Match) -> Mapping[str, Callable[[], nn.Module]]:
    """`engine` and `bare`: each call trains its own copy of the model for some steps and returns it."""
    pixels = match.pixels()
    labels = torch.arange(IMAGES) % match.classes
    images = Images(pixels, match.preprocessing, torch.device("cpu"))
    plan = list(batch_order(IMAGES, match.batch, 0, 0, match.steps))
    ours, theirs = deepcopy(match.model), deepcopy(match.model)

    def engine() -> nn.Module:
        learner = Learner(ours, dict(ours.named_parameters()))
        fit(learner, Task(images, labels, {}, match.classes), match.recipe, 0)
        return ours

    return {"engine": engine, "bare": lambda: bare(theirs, torch.from_numpy(pixels), labels, plan, match)}


def bare(
    model: nn.Module, pixels: Tensor, labels: Tensor, plan: Sequence[NDArray[np.int64]], match: Match
) -> nn.Module:
    """The loop one would write: no checkpoint, no evaluation, nothing to resume."""
    mean, std = (torch.tensor(three).view(3, 1, 1) for three in (match.preprocessing.mean, match.preprocessing.std))
    optimizer = torch.optim.SGD(model.parameters(), lr=match.recipe.lr, momentum=match.recipe.momentum)
    total = 0.0
    model.train()
    for step, index in enumerate(plan):
        for group in optimizer.param_groups:
            group["lr"] = match.recipe.lr * 0.5 * (1 + math.cos(math.pi * step / len(plan)))
        chosen = torch.from_numpy(index)
        x = (pixels[chosen].float() / 255 - mean) / std
        loss = F.cross_entropy(model(x), labels[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        total += loss.item()
    if not math.isfinite(total):
        raise FloatingPointError(f"The bare loop diverged: its losses add up to {total}.")
    return model
