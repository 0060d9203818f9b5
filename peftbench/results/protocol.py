"""What a reader needs to repeat a study or to judge it: the data as found, and how every method was trained."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from functools import partial

from peftbench.core.contract import PARTS
from peftbench.core.leaks import describe_leaks
from peftbench.core.record import Record
from peftbench.results.formatting import NONE, Cell, format_count
from peftbench.results.summary import Block

Columns = dict[str, list[Cell]]

DIGITS = 12  # of a digest


def data_columns(block: Block) -> Columns:
    """Return one row per data set: classes in order, images and groups of each part, split, audit and notes."""
    records = [block.records[name] for name in block.datasets]
    seen = block.overlaps(block.datasets)
    overlaps = {name: [f"The pretraining may have seen test images: {reason}."] for name, reason in seen.items()}
    columns: Mapping[str, Callable[[Record], str]] = {
        "data set": lambda record: record.data.name,
        "title": lambda record: str(record.data.card.get("title", NONE)),
        "task": lambda record: str(record.data.card.get("task", "single")).replace("_", "-"),
        "classes": lambda record: ", ".join(map(str, record.data.card.get("classes", ()))),
        **{part: partial(_part, part) for part in PARTS},
        "split": lambda record: record.data.split,
        "audit": _audit,
        "notes": lambda record: " ".join([*record.data.notes, *overlaps.get(record.data.name, ())]),
    }
    return {title: [Cell(show(record) or NONE) for record in records] for title, show in columns.items()}


def _part(part: str, record: Record) -> str:
    images, groups = record.data.sizes.get(part, 0), record.data.groups.get(part, 0)
    same = not images or groups == images
    return f"{images:,}" if same else f"{images:,} in {groups:,} groups"


def _audit(record: Record) -> str:
    if not record.data.audit:
        return "not audited"
    return describe_leaks(record.data.audit) or "no leak found"


def setting_columns(block: Block) -> Columns:
    """Return one row per fact about the training that all methods of a block share."""
    records = [result.record for result in block.results]
    facts = {**_network(records[0]), **_training(block, records), **_machines(records)}
    return {"fact": [Cell(name) for name in facts], "value": [Cell(value) for value in facts.values()]}


def _network(record: Record) -> dict[str, str]:
    backbone, pixels = record.backbone, record.backbone.preprocessing
    digest = backbone.digest if backbone.random else backbone.digest[:DIGITS]
    return {
        "backbone": f"{backbone.name}, {format_count(backbone.parameters)} parameters, weights {digest}",
        "preprocessing": ", ".join(f"{name} {_plain(value)}" for name, value in pixels.items()),
    }


def _training(block: Block, records: list[Record]) -> dict[str, str]:
    recipe = json.loads(block.setting.fields)
    precision = recipe.pop("precision", "")
    trials = sorted({len(record.tuning.grid) for record in records if record.tuning})
    return {
        "recipe": block.setting.recipe,
        "recipe's fields": ", ".join(f"{_field(name)} {_plain(value)}" for name, value in recipe.items()),
        "precision": str(precision) or _values(str(record.recipe.get("precision", "")) for record in records),
        "step that is scored": block.setting.selection.replace("_", " "),
        "trials of each search": ", ".join(map(str, trials)) or "no search",
        "trained on train and val": "yes" if any(r.tuning.refit for r in records if r.tuning) else "no",
        "seeds": _values(str(record.seed) for record in sorted(records, key=lambda record: record.seed)),
    }


def _machines(records: list[Record]) -> dict[str, str]:
    names = dict.fromkeys(name for record in records for name in record.environment)
    found = {name: _values(record.environment.get(name, "") for record in records) for name in names}
    threads = _values(str(record.threads) for record in records if record.threads)
    return {**found, "CPU threads of a job": threads} if threads else found


def _values(values: Iterable[str]) -> str:
    return ", ".join(dict.fromkeys(value for value in values if value))


def _field(name: str) -> str:
    return "optimizer" if name == "optimiser" else name.replace("_", " ")


def _plain(value: object) -> str:
    return " ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
