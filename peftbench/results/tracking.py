"""What a tracker receives of a job: numbers and settings of its record, without names of images, groups and paths."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

from peftbench.core.contract import Result, TrackedJob, Value
from peftbench.core.record import Record
from peftbench.results.redaction import redact


def tracked(result: Result, dataset: str) -> TrackedJob:
    """Return a finished job for trackers; `dataset` is the name that may leave this machine."""
    record = result.record
    numbers = {name: float(value) for name, value in _numbers(record) if value is not None and math.isfinite(value)}
    curve = [row for row in result.curve() if "step" in row]
    name = f"{record.label} on {dataset}, seed {record.seed}"
    return TrackedJob(record.id, name, dict(_parameters(record, dataset)), curve, numbers)


def _parameters(record: Record, dataset: str) -> Iterator[tuple[str, Value]]:
    yield "job", record.id
    yield "role", record.role
    yield "method", record.method.label
    yield "dataset", dataset
    yield "backbone", record.backbone.name
    yield "image_size", int(record.backbone.preprocessing["size"])
    yield "seed", record.seed
    if variant := str(record.data.variant):
        yield "data", variant
    if record.budget and record.budget.target is not None:
        yield "budget", record.budget.target
    fields: Mapping[str, Mapping[str, object]] = {"method": record.method.fields, "recipe": record.recipe}
    for kind, values in fields.items():
        for name, value in values.items():
            spelled = "optimizer" if name == "optimiser" else name  # as the program writes it; records keep the old one
            yield f"{kind}.{spelled}", _plain(value)


def _plain(value: object) -> Value:
    return value if isinstance(value, bool | int | float) else redact(str(value))


def _numbers(record: Record) -> Iterator[tuple[str, float | None]]:
    """Yield scores at the step that the recipe's rule chose, sizes and costs; None where a value is undefined."""
    choice = record.choices[record.rule]
    for part, scores in (("validation", choice.val), ("test", choice.test)):
        for metric, score in scores.items():
            yield f"{part}/{metric}", score
    yield "chosen_step", choice.step
    if record.counts:
        yield "size/trainable", record.counts.trainable
        yield "size/head", record.counts.head
        yield "size/share", record.counts.trainable / record.backbone.parameters
    if record.costs:
        for name, cost in record.costs:
            if isinstance(cost, int | float):
                yield f"cost/{name}", cost
