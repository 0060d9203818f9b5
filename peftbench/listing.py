"""`peftbench list` and `peftbench show`: what there is, read from the catalogue and the plug-ins."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Any

from rich.console import Console
from rich.table import Table

from peftbench import catalogue
from peftbench.errors import PeftbenchError, UnknownNameError
from peftbench.registry import FOLDERS, registry

console = Console(highlight=False, width=None if sys.stdout.isatty() else 120)


def show_list(kind: str, *, as_json: bool) -> None:
    """One line for each."""
    rows = _rows(kind)
    if as_json:
        console.print_json(json.dumps(rows))
        return
    table = Table(box=None, pad_edge=False)
    for column in ("name", *(key for key in next(iter(rows.values()), {}))):
        table.add_column(column, overflow="fold")
    for name, row in rows.items():
        table.add_row(name, *(str(value) for value in row.values()))
    console.print(table)


def _rows(kind: str) -> dict[str, dict[str, Any]]:
    if kind == "recipes":
        from peftbench.recipe import RECIPES  # noqa: PLC0415 - kept off the way of the other kinds

        return {
            name: {"optimiser": r.optimiser, "steps": r.steps, "batch": r.batch, "head": r.head}
            for name, r in RECIPES.items()
        }
    if kind not in FOLDERS:
        raise UnknownNameError("kind", kind, (*FOLDERS, "recipes"))
    return {name: _row(kind, name) for name in registry(kind).names()}


def _row(kind: str, name: str) -> dict[str, Any]:
    if kind == "methods" and name in catalogue.method_names():
        entry = catalogue.method_entry(name)
        return {"family": entry.family, "merges": entry.merges, "trains": entry.trains, "source": entry.paper}
    if kind == "datasets" and name in catalogue.dataset_names():
        data = catalogue.dataset_entry(name)
        return {"modality": data.modality, "classes": len(data.classes), "licence": data.licence, "title": data.title}
    origin = "built in" if name in registry(kind).own() else registry(kind).others()[name].value
    columns = {"methods": ("family", "merges", "trains"), "datasets": ("modality", "classes", "licence")}.get(kind, ())
    return {**dict.fromkeys(columns, ""), "source" if kind != "datasets" else "title": origin}


def show_one(kind: str, name: str, *, as_json: bool) -> None:
    """Everything known about one of them."""
    facts = _facts(kind, name)
    if as_json:
        console.print_json(json.dumps(facts, default=str))
        return
    console.print(f"{kind} {name}", style="bold")
    for key, value in facts.items():
        _print(key, value, indent=2)


def _print(key: str, value: object, indent: int) -> None:
    if isinstance(value, Mapping):
        console.print(f"{' ' * indent}{key}", markup=False)
        for inner, what in value.items():
            _print(str(inner), what, indent + 2)
    elif isinstance(value, (list, tuple)):
        for item in value:
            console.print(f"{' ' * indent}{key}: {item}", markup=False)
    elif value not in ("", None, ()):
        console.print(f"{' ' * indent}{key}: {value}", markup=False)


def _facts(kind: str, name: str) -> dict[str, Any]:
    readers = {"method": _method, "dataset": _dataset, "backbone": _backbone, "recipe": _recipe}
    if kind not in readers:
        raise UnknownNameError("kind", kind, readers)
    return readers[kind](name)


def _method(name: str) -> dict[str, Any]:
    plugin = registry("methods").get(name)
    options = {f.name: f"{f.type} = {f.default!r}" for f in fields(plugin)}
    entry = (
        catalogue.method_entry(name).model_dump()
        if name in catalogue.method_names()
        else {"trains": (plugin.__doc__ or "").strip()}
    )
    return {
        **entry,
        "knob": plugin.knob,
        "options": options,
        "counts": {b: _count(plugin, b) for b in ("mini", "clip_vit_b16")},
    }


def _count(plugin: Any, name: str) -> str:  # noqa: ANN401
    from peftbench import backbone  # noqa: PLC0415 - imports torch

    blank = backbone.find(name, blank=True).blank()
    total = sum(p.numel() for p in blank.parameters())
    try:
        count = plugin().count(blank)
    except PeftbenchError as error:
        return str(error)
    return f"{count:,} of {total:,} ({count / total:.4%}), head not counted"


def _dataset(name: str) -> dict[str, Any]:
    plugin = registry("datasets").get(name)
    if name in catalogue.dataset_names():
        return catalogue.dataset_entry(name).model_dump()
    return {"use": (plugin.__doc__ or "").strip()} if isinstance(plugin, type) else asdict(plugin.card)


def _backbone(name: str) -> dict[str, Any]:
    from peftbench import backbone  # noqa: PLC0415 - imports torch

    source = backbone.find(name, blank=True)
    parameters = sum(p.numel() for p in source.blank().parameters())
    return {
        **asdict(source.plugin.card),
        "parameters": f"{parameters:,}",
        "preprocessing": asdict(source.preprocessing),
    }


def _recipe(name: str) -> dict[str, Any]:
    from peftbench.recipe import QUICK_RATES, RECIPES  # noqa: PLC0415

    if name not in RECIPES:
        raise UnknownNameError("recipe", name, RECIPES)
    return {**asdict(RECIPES[name]), **({"learning rates": dict(QUICK_RATES)} if name == "quick" else {})}
