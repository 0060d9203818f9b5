"""`peftbench show`: everything known about one method, data set, backbone or recipe, fully checked."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, fields
from functools import partial
from typing import Any, get_type_hints

from rich.console import Console

from peftbench.core import catalogue, catalogue_files
from peftbench.core.fields import build
from peftbench.core.recipe import QUICK_RATES, RECIPES
from peftbench.core.registry import registry, variant
from peftbench.core.syntax import Spec
from peftbench.errors import PeftbenchError, UnknownNameError, blaming

_NOTHING: tuple[Any, ...] = ("", None, (), [], {})
console = Console(highlight=False, markup=False, width=None if sys.stdout.isatty() else 120)


def show_one(kind: str, name: str, *, as_json: bool) -> None:
    """Print everything known about one method, data set, backbone or recipe."""
    found = facts(kind, name)
    if as_json:
        console.print_json(json.dumps(found, default=str))
        return
    print_facts(f"{kind} {name}", found)


def print_facts(title: str, found: Mapping[str, Any]) -> None:
    """Print facts under a title, one a line."""
    console.print(title, style="bold")
    for key, value in found.items():
        _print(key, value, indent=2)


def _print(key: str, value: object, indent: int) -> None:
    if isinstance(value, Mapping):
        if not any(what not in _NOTHING for what in value.values()):
            return
        console.print(f"{' ' * indent}{key}")
        for inner, what in value.items():
            _print(str(inner), what, indent + 2)
    elif isinstance(value, (list, tuple)):
        for item in value:
            console.print(f"{' ' * indent}{key}: {item}")
    elif value not in _NOTHING:
        console.print(f"{' ' * indent}{key}: {value}")


def facts(kind: str, name: str) -> dict[str, Any]:
    """Return everything known about one of them. Raises UnknownNameError."""
    readers = {"method": _method, "dataset": _dataset, "backbone": _backbone, "recipe": _recipe}
    if kind not in readers:
        raise UnknownNameError("kind", kind, readers)
    with blaming(f"The {kind} {name!r} cannot be shown"):
        return readers[kind](name)


def _method(name: str) -> dict[str, Any]:
    base, values = variant(name)
    plugin = registry("methods").get(base)
    types = get_type_hints(plugin)  # without the limits of values
    options = {f.name: f"{_type(types[f.name])} = {values.get(f.name, f.default)!r}" for f in fields(plugin)}
    entry = (
        catalogue.method_entry(base).model_dump()
        if base in catalogue_files.method_names()
        else {"trains": (plugin.__doc__ or "").strip()}
    )
    return {
        **({} if base == name else {"variant of": str(Spec(base, None, values))}),
        **entry,
        "knob": plugin.knob,
        "options": options,
        "counts": {b: _count(partial(build, plugin, values, name), b) for b in ("mini", "clip_vit_b16")},
    }


def _type(annotation: object) -> str:
    return annotation.__name__ if isinstance(annotation, type) else str(annotation).replace("typing.", "")


def _count(method: Callable[[], Any], name: str) -> str:
    from peftbench.models import backbone  # noqa: PLC0415 - imports torch

    blank = backbone.locate(name, blank=True).blank()
    total = sum(p.numel() for p in blank.parameters())
    try:
        with blaming("It cannot be counted"):
            made = method()
            count = made.count(blank)
    except PeftbenchError as error:
        return str(error)
    aim = "" if made.exact else "; aimed at, the data decide"
    return f"{count:,} of {total:,} ({count / total:.4%}), head not counted{aim}"


def _dataset(name: str) -> dict[str, Any]:
    plugin = registry("datasets").get(name)
    if name in catalogue_files.dataset_names():
        return catalogue.dataset_entry(name).model_dump()
    return {"use": (plugin.__doc__ or "").strip()} if isinstance(plugin, type) else asdict(plugin.card)


def _backbone(name: str) -> dict[str, Any]:
    from peftbench.models import backbone  # noqa: PLC0415 - imports torch

    source = backbone.locate(name, blank=True)
    parameters = sum(p.numel() for p in source.blank().parameters())
    return {
        **asdict(source.plugin.card),
        "parameters": f"{parameters:,}",
        "preprocessing": asdict(source.preprocessing),
    }


def _recipe(name: str) -> dict[str, Any]:
    if name not in RECIPES:
        raise UnknownNameError("recipe", name, RECIPES)
    return {**asdict(RECIPES[name]), **({"learning rates": dict(QUICK_RATES)} if name == "quick" else {})}
