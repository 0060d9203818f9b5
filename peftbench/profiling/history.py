"""What `peftbench measure` found on this machine, kept in the cache, so that `peftbench plan` can foretell times."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from peftbench.core.record import Memory
from peftbench.storage import checked_json, files


class Latency(BaseModel):
    """Seconds from a batch on the device to its logits."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    p50: float
    p95: float
    runs: int  # how many were timed


class Measured(BaseModel):
    """The cost of one method on one machine: counted, and as timed."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    method: str  # its label: lora[r=4]
    target: int | None = None  # trainable parameters asked for
    trainable: int  # head excluded
    head: int
    batch: int  # images a training step
    steps: int  # timed, behind a first one that was not
    stored: bool = False  # a training step sees stored features
    flops_forward: float  # an image
    flops_training: float  # an image
    memory: Memory  # counted, a training step
    peak_memory: int  # measured as in a record
    images_per_second: float  # training
    predicted_per_second: float  # at batch 64, merged where the method merges
    latency: dict[str, Latency]  # "1", "64", and "1 merged", "64 merged" where merging changes the network
    selection_seconds: float
    selection_images: int  # whose gradients the method looked at within these seconds
    delta_bytes: int


def remember(cache: Path, key: Mapping[str, Any], found: Measured) -> None:
    """Keep it under its key: whatever decides a time."""
    file = _file(cache, key)
    checked_json.write(file, found.model_dump(mode="json"), file.parent.name)


def recall(cache: Path, key: Mapping[str, Any]) -> Measured | None:
    """What was kept under a key; None where nothing was, it was changed, or by a version whose fields were others."""
    file = _file(cache, key)
    try:
        return Measured.model_validate(checked_json.read(file, file.parent.name))
    except (OSError, ValueError):
        return None


def _file(cache: Path, key: Mapping[str, Any]) -> Path:
    text = json.dumps(key, sort_keys=True, separators=(",", ":"), default=list)
    return cache / "measured" / files.sha256(text.encode())[:24] / "cost.json"
