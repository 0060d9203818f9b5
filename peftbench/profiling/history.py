"""Costs that `peftbench measure` found on this machine, kept in the cache for the predictions of `peftbench plan`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from peftbench.core.recipe import Recipe
from peftbench.core.record import Memory
from peftbench.profiling import hardware
from peftbench.storage import checked_json, files


class Latency(BaseModel):
    """Seconds from a batch on the device to its logits on the CPU."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    p50: float
    p95: float
    runs: int  # that were timed


class Measured(BaseModel):
    """The cost of one method on one machine, counted and timed."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    method: str  # its label: lora[r=4]
    target: int | None = None  # the budget, in trainable parameters
    trainable: int  # head excluded
    head: int
    batch: int  # images per training step
    steps: int  # that were timed, after a first one
    stored: bool = False  # training steps run on stored features
    flops_forward: float  # per image
    flops_training: float  # per image
    memory: Memory  # of a training step, counted
    peak_memory: int  # measured as in a record
    images_per_second: float  # training, by the wall clock
    cpu_seconds_per_image: float | None = None  # training, over all threads; None in costs older than the field
    predicted_per_second: float  # at batch 64, merged where the method merges
    latency: dict[str, Latency]  # "1", "64", and "1 merged", "64 merged" where merging changes the network
    selection_seconds: float
    selection_images: int  # whose gradients the method read in these seconds
    delta_bytes: int


def cost_key(
    backbone: str, size: int, method: Sequence[Any], device: str, threads: int, recipe: Recipe
) -> dict[str, Any]:
    """Return everything that decides how long an image takes: the key of stored costs.

    Args:
        backbone: its name, without `@random`, since random weights take as long.
        size: of the images, in pixels.
        method: its name, version and fields.
        device: `cpu` or `cuda`.
        threads: of a job on a CPU.
        recipe: of which precision and the kind of compilation count.
    """
    return {
        "hardware": _hardware(device),
        "device": device,
        "threads": threads,
        "precision": recipe.precision,
        **{name: True for name in ("compile", "graph") if getattr(recipe, name)},
        "backbone": backbone,
        "size": size,
        "method": list(method),
    }


@lru_cache
def _hardware(device: str) -> str:
    return hardware.environment(device)["hardware"]


def remember(cache: Path, key: Mapping[str, Any], found: Measured) -> None:
    """Store a cost under its key, which must hold everything that decides a time."""
    file = _file(cache, key)
    checked_json.write(file, found.model_dump(mode="json"), file.parent.name)


def recall(cache: Path, key: Mapping[str, Any]) -> Measured | None:
    """Return the cost under a key, or None without an intact one of the present fields."""
    file = _file(cache, key)
    try:
        return Measured.model_validate(checked_json.read(file, file.parent.name))
    except (OSError, ValueError):
        return None


def _file(cache: Path, key: Mapping[str, Any]) -> Path:
    text = json.dumps(key, sort_keys=True, separators=(",", ":"), default=list)
    return cache / "measured" / files.sha256(text.encode())[:24] / "cost.json"
