"""Recipe `official`: every method as its authors train it, as far as the catalogue knows and our engine can.

What a source does not state is the standard recipe's; what the engine does not offer is said in the record.
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
NOT_RUN: Mapping[str, str] = {
    name: name.replace("_", " ")
    for name in ("mixup", "cutmix", "erasing", "drop_path", "weight_decay_grid", "augmentation")
} | {"head": "start of the head"}


def entry(method: str) -> Official:
    """What the catalogue knows; nothing of a method from elsewhere."""
    return catalogue.method_entry(method).official if method in catalogue_files.method_names() else Official()


def recipe(method: str, base: Recipe, images: int, written: Mapping[str, Any]) -> Recipe:
    """The authors' recipe for a train part of so many images; what the user has `written` wins.

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
    """The authors' learning rates at the batch of `made`, a grid's ascending; the recipe's where none is stated."""
    theirs = entry(method)
    found = sorted(theirs.lr_grid) or ([theirs.lr] if theirs.lr else [made.lr])
    scale = made.batch / theirs.lr_batch if theirs.lr_batch else 1.0
    return tuple(float(f"{rate * scale:.4g}") for rate in found)


def by_epochs(method: str, made: Recipe) -> bool:
    """Whether the number of steps follows from that of the training images."""
    theirs = entry(method)
    return made.name == "official" and not theirs.steps and bool(theirs.epochs)


def fields(method: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """The authors' hyper-parameters where they are not our defaults; `given` ones win."""
    return {**entry(method).fields, **given}


def left_out(method: str) -> list[str]:
    """What the authors do and this recipe does not."""
    theirs = entry(method)
    names = [words for name, words in NOT_RUN.items() if getattr(theirs, name)]
    names += ["warm-up"] if theirs.warmup_epochs and not theirs.epochs else []  # of how many, they do not say
    unsaid = theirs.lr is None and not theirs.lr_grid
    said = [f"official: without the authors' {', '.join(names)}"] if names else []
    return said + (["official: the authors state no learning rate"] if unsaid else [])


def _steps(theirs: Official, made: Recipe, images: int) -> int:
    if theirs.steps:
        return theirs.steps
    return max(1, round(theirs.epochs * images / made.batch)) if theirs.epochs else made.steps
