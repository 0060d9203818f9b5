"""`peftbench list`: names with the most important facts, read from files without importing plug-ins where possible."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any

import typer

from peftbench.cli.console import say, show_json, show_listing, warn
from peftbench.cli.options import DataOption, JsonOption
from peftbench.core import catalogue_files
from peftbench.core.registry import FOLDERS, registry, variant
from peftbench.core.syntax import PATHS, Spec
from peftbench.errors import PeftbenchError, UnknownNameError

KINDS = "methods, datasets, backbones, metrics, reports, executors, trackers, recipes or studies."
PLUGINS = (*FOLDERS, "executors", "trackers")
HOW = "how to get"
DATASET_COLUMNS = ("here", "modality", "classes", "sizes", "licence", HOW)
YES_NO = MappingProxyType({"True": "yes", "False": "no"})
LEGEND = (
    "Family: S selective, A additive, P prompts. Knob: the field that --ratios sets; a method without one has one "
    "size. Merges: into plain timm weights."
)
AT_PATH = "at the path given"
PRESENT = ("complete", "built in", AT_PATH)


def list_(
    kind: Annotated[
        str,
        typer.Argument(help=KINDS),
    ],
    data: DataOption = None,
    json: JsonOption = False,
) -> None:
    """List what is installed. For data sets also what is on this machine."""
    show_list(kind, data, as_json=json)


def show_list(kind: str, data: Path | None, *, as_json: bool) -> None:
    """Print one line for each; for data sets also how to get those that are not complete in the folder `data`."""
    rows = _rows(kind, data)
    if as_json:
        show_json(rows)
        return
    absent = {name: how for name, row in rows.items() if (how := row.pop(HOW, "")) and row["here"] not in PRESENT}
    columns = ("name", *next(iter(rows.values()), {}))
    show_listing(columns, [[name, *map(_text, row.values())] for name, row in rows.items()])
    if kind == "methods":
        say("")
        say(LEGEND)
    if absent:
        say("")
        say(f"How to get what is not complete in {_root(data)}:")
    for name, how in absent.items():
        say(f"{name}: {how}")


def _text(value: object) -> str:
    """Return a fact as a table shows it."""
    if isinstance(value, dict):  # the images of each part if published, else in all: `425/118/203`
        return "/".join(f"{count:,}" for count in value.values())
    return YES_NO.get(str(value), str(value))


def _root(data: Path | None) -> Path:
    from peftbench.storage.folders import data_folder

    return data_folder(data)


def _rows(kind: str, data: Path | None) -> dict[str, dict[str, Any]]:
    if kind == "recipes":
        return _recipes()
    if kind == "studies":
        return _studies()
    if kind not in PLUGINS:
        raise UnknownNameError("kind", kind, (*PLUGINS, "recipes", "studies"))
    if kind == "datasets":
        return {name: _dataset_row(name, _root(data)) for name in _loadable(kind)}
    rows = {name: _row(kind, name) for name in _loadable(kind)}
    if kind == "backbones":
        rows = {name: {"what": "", "weights": "", "licence": "", "source": ""} | row for name, row in rows.items()}
    own = catalogue_files.own_methods() if kind == "methods" else {}
    return rows | {name: _variant_row(name) for name in own}


def _recipes() -> dict[str, dict[str, Any]]:
    from peftbench.core.recipe import RECIPES

    return {
        name: {"optimizer": r.optimizer, "steps": r.steps, "batch": r.batch, "head": r.head}
        for name, r in RECIPES.items()
    }


def _studies() -> dict[str, dict[str, Any]]:
    """Return what each shipped study is and how many jobs of which recipe it asks for."""
    found = {}
    for name in catalogue_files.study_names():
        known = catalogue_files.read(catalogue_files.built_in("studies", name))
        found[name] = {"what": known["title"], "recipe": known["recipe"], "backbone": known.get("backbone", "any")}
    return found


def _loadable(kind: str) -> Iterator[str]:
    """Yield every name, except installed plug-ins that cannot be loaded, which are named on stderr."""
    installed = registry(kind).others()
    for name in registry(kind).names():
        try:
            if name in installed:
                registry(kind).get(name)
        except PeftbenchError as error:
            warn(f"left out: {error}")
        else:
            yield name


# --- methods, backbones, metrics, reports ----------------------------------------------------------------------------


def _row(kind: str, name: str) -> dict[str, Any]:
    if kind == "methods" and name in catalogue_files.method_names():
        known = catalogue_files.read(catalogue_files.built_in("methods", name))
        return {
            "family": known.get("family", ""),
            "knob": known.get("knob", ""),
            "merges": known.get("merges", ""),
            "trains": known.get("trains", ""),
            "source": known.get("paper", ""),
        }
    if kind == "backbones" and (file := _preset_file(name)):
        return _preset_row(name, file)
    if name in registry(kind).built_in():
        return {
            "what": _first_line(Path(__file__).parents[1] / registry(kind).room / f"{name}.py"),
            "source": "built in",
        }
    origin, plugin = registry(kind).others()[name].value, registry(kind).get(name)
    what = (getattr(plugin, "__doc__", None) or "").strip().partition("\n")[0]
    if kind != "methods":
        return {"what": what, "source": origin}
    facts = {"family": "", "knob": getattr(plugin, "knob", None) or "", "merges": getattr(plugin, "merges", "")}
    return {**facts, "trains": what, "source": origin}


def _preset_file(name: str) -> Path | None:
    own = catalogue_files.own_backbones()
    if name in own:
        return own[name]
    return catalogue_files.built_in("backbones", name) if name in catalogue_files.backbone_names() else None


def _preset_row(name: str, file: Path) -> dict[str, Any]:
    """Return the facts of a preset; those that a user's file leaves to its base are found there."""
    known = catalogue_files.read(file)
    base = known.get("base")
    if base in catalogue_files.backbone_names():
        known = catalogue_files.read(catalogue_files.built_in("backbones", base)) | known
    weights = known.get("weights", {})
    hub = "hub, gated" if known.get("gated") else "hub"
    place = "in the package" if weights.get("shipped") else hub if "repository" in weights else weights.get("path", "")
    source = "built in" if name in catalogue_files.backbone_names() else f"backbones/{file.name}"
    return {
        "what": known.get("title", ""),
        "weights": place,
        "licence": known.get("licence", "unknown"),
        "source": source,
    }


def _first_line(code: Path) -> str:
    """Return the first line of a module's docstring without importing it, which may take seconds."""
    return (ast.get_docstring(ast.parse(code.read_text("utf-8"))) or "").partition("\n")[0]


def _variant_row(name: str) -> dict[str, Any]:
    """Return the facts of a user's variant: its base's, with the fields that it sets, or the fault of its file."""
    try:
        base, values = variant(name)
        return {**_row("methods", base), "source": str(Spec(base, None, values))}
    except PeftbenchError as error:
        return {"family": "", "knob": "", "merges": "", "trains": str(error), "source": ""}


# --- data sets -------------------------------------------------------------------------------------------------------


def _dataset_row(name: str, root: Path) -> dict[str, Any]:
    """Return what is on this machine and what it is, or the fault of a user's own file."""
    nothing = dict.fromkeys(DATASET_COLUMNS, "")
    if name in PATHS:
        return {**nothing, "here": AT_PATH, "modality": f"{name}:PATH"}
    own = catalogue_files.own_datasets()
    try:
        if name not in catalogue_files.dataset_names():
            return {**nothing, "here": _presence(name, root)}
        known = catalogue_files.read(own[name] if name in own else catalogue_files.built_in("datasets", name))
        present = "built in" if known.get("synthetic") else _presence_of(name, known, root, own=name in own)
    except PeftbenchError as error:
        return {**nothing, "here": str(error)}
    facts = (present, known.get("modality", "unknown"), _classes(known), _sizes(known.get("sizes", {})))
    return dict(zip(DATASET_COLUMNS, (*facts, known.get("licence", "the user's own"), _how(known)), strict=True))


def _presence_of(name: str, known: Mapping[str, Any], root: Path, *, own: bool) -> str:
    """Return how much of a data set is present; its plug-in is imported only where there is a folder to look into."""
    folders = [root / one for one in (name, known.get("stand_in")) if one]
    if own or any(folder.exists() for folder in folders):
        return _presence(name, root)
    return f"0 of {len(known['members'])}" if "members" in known else "no"


def _presence(name: str, root: Path) -> str:
    from peftbench.data.availability import describe_presence

    return describe_presence(name, root)


def _classes(known: Mapping[str, Any]) -> int | str:
    """Return the number of classes, or in words: the range over the members of a collection, or `as found`."""
    if several := [len(member["classes"]) for member in known.get("members", {}).values()]:
        return f"{min(several)} to {max(several)}"
    return len(known.get("classes", ())) or "as found"


def _sizes(sizes: Mapping[str, int]) -> dict[str, int]:
    """Return the number of images of each part if they are published, else in all."""
    return {part: count for part, count in sizes.items() if part != "total"} or dict(sizes)


def _how(known: Mapping[str, Any]) -> str:
    return str(known.get("how_to_get", ""))
