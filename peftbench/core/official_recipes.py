"""Recipe `official`: every method as its authors train it, as far as they state it and peftbench supports it.

What the authors do not state is taken from the standard recipe; what peftbench does not support is noted in the record.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from peftbench.core import catalogue, catalogue_files
from peftbench.core.catalogue import Official
from peftbench.core.recipe import Recipe

AS_THEY_ARE = (
    *("weight_decay", "momentum", "batch", "schedule", "clip"),
    *("label_smoothing", "warmup", "warmup_lr", "min_lr"),
)
POINTS = 4  # rates to try of a range that the authors state
NOT_RUN: Mapping[str, str] = {
    name: name.replace("_", " ")
    for name in ("mixup", "cutmix", "erasing", "drop_path", "weight_decay_grid", "augmentation")
} | {"head": "start of the head"}


def entry(method: str) -> Official:
    """Return the authors' recipe from the catalogue; an empty one for methods of other packages."""
    return catalogue.method_entry(method).official if method in catalogue_files.method_names() else Official()


def recipe(method: str, base: Recipe, images: int, written: Mapping[str, Any]) -> Recipe:
    """Return the authors' recipe for a train part of so many images; values that the user has `written` override it.

    The learning rate is the first of a grid; `rates` has all.
    """
    theirs = entry(method)
    stated = {name: value for name in AS_THEY_ARE if (value := getattr(theirs, name)) is not None}
    if theirs.optimizer:
        stated["optimizer"] = theirs.optimizer.lower()
    if theirs.head_kind:
        stated["head"] = theirs.head_kind
    stated |= {name: value for name, value in written.items() if name != "lr"}
    made = replace(base, **stated)
    if "steps" not in written:
        made = replace(made, steps=_steps(theirs, made, images))
    if theirs.warmup_epochs is not None and theirs.epochs and "warmup" not in written:
        made = replace(made, warmup=theirs.warmup_epochs / theirs.epochs)
    return made.at(written.get("lr") or rates(method, made)[0])


def rates(method: str, made: Recipe) -> tuple[float, ...]:
    """Return the authors' learning rates, ascending, scaled to the batch of `made`; its own rate if none is stated."""
    theirs = entry(method)
    found = sorted(theirs.lr_grid) or _spread(theirs.lr_range) or ([theirs.lr] if theirs.lr else [made.lr])
    scale = made.batch / theirs.lr_batch if theirs.lr_batch else 1.0
    return tuple(float(f"{rate * scale:.4g}") for rate in found)


def _spread(limits: tuple[float, float] | None) -> list[float]:
    """Return POINTS rates from the lower to the upper limit, evenly spaced on a logarithmic scale."""
    if limits is None:
        return []
    low, high = limits
    return [float(f"{low * (high / low) ** (i / (POINTS - 1)):.2g}") for i in range(POINTS)]


def by_epochs(method: str, made: Recipe) -> bool:
    """Return whether the number of steps depends on the number of training images."""
    theirs = entry(method)
    return made.name == "official" and not theirs.steps and bool(theirs.epochs)


def fields(method: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the authors' hyper-parameters that differ from the defaults, overridden by `given` ones."""
    return {**entry(method).fields, **given}


def left_out(method: str) -> list[str]:
    """Return notes on what the authors do and this recipe does not."""
    theirs = entry(method)
    names = [words for name, words in NOT_RUN.items() if getattr(theirs, name)]
    names += ["warm-up"] if theirs.warmup_epochs and not theirs.epochs else []  # in epochs of an unknown number
    notes = [f"official: without the authors' {', '.join(names)}"] if names else []
    if theirs.lr is None and not theirs.lr_grid and theirs.lr_range is None:
        notes.append("official: the authors state no learning rate")
    return notes


def _steps(theirs: Official, made: Recipe, images: int) -> int:
    if theirs.steps:
        return theirs.steps
    return max(1, round(theirs.epochs * images / made.batch)) if theirs.epochs else made.steps
