"""`peftbench list` and `peftbench show`: what there is, read from the catalogue and the plug-ins."""

from __future__ import annotations

import ast
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, fields
from functools import partial
from importlib.resources import files
from pathlib import Path
from types import MappingProxyType
from typing import Any, get_type_hints

from rich.console import Console
from rich.table import Table

from peftbench.core import catalogue
from peftbench.core.fields import build
from peftbench.core.registry import FOLDERS, registry, variant
from peftbench.core.syntax import Spec
from peftbench.data import availability
from peftbench.errors import PeftbenchError, UnknownNameError, blaming

HOW = "how to get"
_NOTHING: tuple[Any, ...] = ("", None, (), [], {})
DATASET_COLUMNS = ("here", "modality", "classes", "sizes", "licence", HOW)
YES_NO = MappingProxyType({"True": "yes", "False": "no"})
LEGEND = (
    "Family: S selective, A additive, P prompts. Knob: the field that --ratios turns; without one a method has one "
    "size. Merges: into plain timm weights."
)
HERE = ("complete", "built in", "wherever you say")

console = Console(highlight=False, markup=False, width=None if sys.stdout.isatty() else 120)


def show_list(kind: str, root: Path, *, as_json: bool) -> None:
    """One line for each; below those of data sets, how to get what is not wholly under `root`."""
    rows = _rows(kind, root)
    if as_json:
        console.print_json(json.dumps(rows))
        return
    absent = {name: how for name, row in rows.items() if (how := row.pop(HOW, "")) and row["here"] not in HERE}
    table = Table(box=None, pad_edge=False)
    for column in ("name", *(key for key in next(iter(rows.values()), {}))):
        table.add_column(column, overflow="fold")
    for name, row in rows.items():
        table.add_row(name, *(YES_NO.get(str(value), str(value)) for value in row.values()))
    console.print(table)
    if kind == "methods":
        console.print(f"\n{LEGEND}", markup=False)
    if absent:
        console.print(f"\nHow to get what is not wholly under {root}:", markup=False)
    for name, how in absent.items():
        console.print(f"{name}: {how}", markup=False)


def _rows(kind: str, root: Path) -> dict[str, dict[str, Any]]:
    if kind == "recipes":
        from peftbench.core.recipe import RECIPES  # noqa: PLC0415 - kept off the way of the other kinds

        return {
            name: {"optimizer": r.optimizer, "steps": r.steps, "batch": r.batch, "head": r.head}
            for name, r in RECIPES.items()
        }
    if kind not in FOLDERS:
        raise UnknownNameError("kind", kind, (*FOLDERS, "recipes"))
    if kind == "datasets":
        return {name: _dataset_row(name, root) for name in _sound(kind)}
    rows = {name: _row(kind, name) for name in _sound(kind)}
    own = catalogue.own_methods() if kind == "methods" else {}
    return rows | {name: _variant_row(name) for name in own}


def _sound(kind: str) -> Iterator[str]:
    """Every name but those of other people's plug-ins that cannot be loaded, which stderr names."""
    theirs = registry(kind).others()
    for name in registry(kind).names():
        try:
            if name in theirs:
                registry(kind).get(name)
        except PeftbenchError as error:
            Console(stderr=True, soft_wrap=True).print(f"peftbench: left out: {error}", markup=False)
        else:
            yield name


def _row(kind: str, name: str) -> dict[str, Any]:
    if kind == "methods" and name in catalogue.method_names():
        entry = catalogue.method_entry(name)
        short = {"family": entry.family, "knob": entry.knob, "merges": entry.merges}
        return {**short, "trains": entry.trains, "source": entry.paper}
    if name in registry(kind).own():
        code = files(f"peftbench.{kind}").joinpath(f"{name}.py").read_text("utf-8")
        return {"what": _first_line(code), "source": "built in"}
    origin, plugin = registry(kind).others()[name].value, registry(kind).get(name)
    says = (getattr(plugin, "__doc__", None) or "").strip().partition("\n")[0]
    if kind != "methods":
        return {"what": says, "source": origin}
    known = {"family": "", "knob": getattr(plugin, "knob", None) or "", "merges": getattr(plugin, "merges", "")}
    return {**known, "trains": says, "source": origin}


def _first_line(code: str) -> str:
    """What the docstring of a file begins with; to import the file may take seconds."""
    return (ast.get_docstring(ast.parse(code)) or "").partition("\n")[0]


def _variant_row(name: str) -> dict[str, Any]:
    """A user's variant says what its base says, and which fields it sets; a faulty file says what is wrong with it."""
    try:
        base, values = variant(name)
        return {**_row("methods", base), "source": str(Spec(base, None, values))}
    except PeftbenchError as error:
        return {"family": "", "knob": "", "merges": "", "trains": str(error), "source": ""}


def _dataset_row(name: str, root: Path) -> dict[str, Any]:
    """What is here and what it is; a faulty description of the user's own says what is wrong with it."""
    try:
        here = availability.describe_presence(name, root)
        entry = catalogue.dataset_entry(name) if name in catalogue.dataset_names() else None
    except PeftbenchError as error:
        return {**dict.fromkeys(DATASET_COLUMNS, ""), "here": str(error)}
    if entry is None:
        return {**dict.fromkeys(DATASET_COLUMNS, ""), "here": here, "modality": availability.usage(name)}
    many = [len(member.classes) for member in entry.members.values()]
    classes = f"{min(many)} to {max(many)}" if many else len(entry.classes) or "as found"
    facts = (here, entry.modality, classes, _sizes(entry.sizes), entry.licence, entry.how_to_get)
    return dict(zip(DATASET_COLUMNS, facts, strict=True))


def _sizes(sizes: Mapping[catalogue.Size, int]) -> str:
    """`425/118/203` where the parts are published, else the number of images."""
    parts = [f"{count:,}" for part, count in sizes.items() if part != "total"]
    return "/".join(parts) or (f"{sizes['total']:,}" if sizes else "")


def show_one(kind: str, name: str, *, as_json: bool) -> None:
    """Everything known about one of them."""
    told = facts(kind, name)
    if as_json:
        console.print_json(json.dumps(told, default=str))
        return
    tell(f"{kind} {name}", told)


def tell(title: str, told: Mapping[str, Any]) -> None:
    """Facts under a title, a line each."""
    console.print(title, style="bold")
    for key, value in told.items():
        _print(key, value, indent=2)


def _print(key: str, value: object, indent: int) -> None:
    if isinstance(value, Mapping):
        if not any(what not in _NOTHING for what in value.values()):
            return
        console.print(f"{' ' * indent}{key}", markup=False)
        for inner, what in value.items():
            _print(str(inner), what, indent + 2)
    elif isinstance(value, (list, tuple)):
        for item in value:
            console.print(f"{' ' * indent}{key}: {item}", markup=False)
    elif value not in _NOTHING:
        console.print(f"{' ' * indent}{key}: {value}", markup=False)


def facts(kind: str, name: str) -> dict[str, Any]:
    """Everything known about one of them. Raises UnknownNameError."""
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
        if base in catalogue.method_names()
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
    if name in catalogue.dataset_names():
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
    from peftbench.core.recipe import QUICK_RATES, RECIPES  # noqa: PLC0415

    if name not in RECIPES:
        raise UnknownNameError("recipe", name, RECIPES)
    return {**asdict(RECIPES[name]), **({"learning rates": dict(QUICK_RATES)} if name == "quick" else {})}
