"""`peftbench show`: everything known about one method, data set, backbone or recipe, fully checked."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, fields
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

from peftbench.cli.console import say, show_json
from peftbench.cli.options import CacheOption, DataOption, JsonOption

if TYPE_CHECKING:
    from peftbench.core.presets import Preset
    from peftbench.data.audit import Audit

_NOTHING: tuple[Any, ...] = ("", None, (), [], {})
FORMATS = (".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp", ".pdf")  # of the pictures of a data set


def show(
    kind: Annotated[str, typer.Argument(help="method, dataset, backbone or recipe.")],
    name: Annotated[str, typer.Argument(help="Its name, such as lora; `peftbench list` prints the names of a kind.")],
    data: DataOption = None,
    cache: CacheOption = None,
    out: Annotated[Path | None, typer.Option("--out", help="Of a data set: the file for its pictures.")] = None,
    json: JsonOption = False,
) -> None:
    """Show everything known about a method, data set, backbone or recipe.

    A data set that is on this machine is also audited, and pictures of each class are written to a file.
    """
    if kind == "dataset":
        show_dataset(name, data, cache, out, as_json=json)
        return
    found = facts(kind, name)
    if json:
        show_json(found)
    else:
        print_facts(f"{kind} {name}", found)


def show_dataset(name: str, data: Path | None, cache: Path | None, out: Path | None, *, as_json: bool) -> None:
    """Print what the catalogue knows of a data set; where it is on this machine, audit it and write pictures."""
    from peftbench.cli.data import audit_facts, show_audit
    from peftbench.core.registry import registry
    from peftbench.data.availability import open_dataset
    from peftbench.errors import RequestError
    from peftbench.storage.folders import data_folder

    if out and out.suffix.lower() not in FORMATS:
        raise RequestError(f"--out {out}: the file's name must end in {', '.join(FORMATS)}.")
    known = facts("dataset", name) if name in registry("datasets").names() else asdict(open_dataset(name).card)
    found = None if isinstance(_plugin(name), type) else _audit_if_here(name, data, cache)
    file = _write_pictures(found, out or Path("reports") / "datasets" / f"{_stem(name)}.png") if found else None
    if as_json:
        show_json(known | ({"audit": audit_facts(found), "pictures": str(file)} if found else {}))
        return
    print_facts(f"dataset {name}", known)
    if found:
        show_audit(found)
        say(f"Pictures: {file} (images of the data set: mind its licence and its patients).")
    elif not isinstance(_plugin(name), type):
        say(f"Not (completely) under {data_folder(data)}: no audit and no pictures.")


def _plugin(name: str) -> object:
    """Return the plug-in of exactly that name, None without one; a class needs an argument to be a data set."""
    from peftbench.core.registry import registry

    return registry("datasets").get(name) if name in registry("datasets").names() else None


def _audit_if_here(name: str, data: Path | None, cache: Path | None) -> Audit | None:
    from peftbench.cli.data import audit
    from peftbench.errors import MissingDataError

    try:
        return audit(name, data, cache)
    except MissingDataError:
        return None


def _stem(name: str) -> str:
    return "".join(letter if letter.isalnum() else "_" for letter in name).strip("_")


def _write_pictures(found: Audit, file: Path) -> Path:
    from PIL import Image

    from peftbench.cli.picture_grid import draw
    from peftbench.results.store import make_output_folder
    from peftbench.storage.files import replacing

    make_output_folder(file)
    kind = Image.registered_extensions()[file.suffix.lower()]
    with replacing(file, private=True) as draft:  # the pictures show patients
        draw(found.splits, found.card.classes).save(draft, format=kind)
    return file


# --- facts -----------------------------------------------------------------------------------------------------------


def print_facts(title: str, found: Mapping[str, Any]) -> None:
    """Print facts under a title, one per line."""
    say(title, style="bold")
    for key, value in found.items():
        _print(key, value, indent=2)


def _print(key: str, value: object, indent: int) -> None:
    if isinstance(value, Mapping):
        if not any(what not in _NOTHING for what in value.values()):
            return
        say(f"{' ' * indent}{key}")
        for inner, what in value.items():
            _print(str(inner), what, indent + 2)
    elif isinstance(value, (list, tuple)):
        numbers = all(isinstance(item, int | float) for item in value)  # such as a mean of three channels
        for item in [", ".join(map(str, value))] if numbers and value else value:
            say(f"{' ' * indent}{key}: {item}")
    elif value not in _NOTHING:
        say(f"{' ' * indent}{key}: {value}")


def facts(kind: str, name: str) -> dict[str, Any]:
    """Return everything known about a method, data set, backbone or recipe. Raises UnknownNameError."""
    from peftbench.core.guarded import guard
    from peftbench.errors import UnknownNameError

    readers = {"method": _method, "dataset": _dataset, "backbone": _backbone, "recipe": _recipe}
    if kind not in readers:
        raise UnknownNameError("kind", kind, readers)
    with guard(f"The {kind} {name!r} cannot be shown"):
        return readers[kind](name)


def _method(name: str) -> dict[str, Any]:
    from peftbench.core import catalogue, catalogue_files
    from peftbench.core.fields import build
    from peftbench.core.published import main_scores
    from peftbench.core.registry import registry, variant
    from peftbench.core.syntax import Spec

    base, values = variant(name)
    plugin = registry("methods").get(base)
    types = get_type_hints(plugin)  # without the limits of values
    options = {f.name: f"{_type(types[f.name])} = {values.get(f.name, f.default)!r}" for f in fields(plugin)}
    entry = (
        catalogue.method_entry(base).model_dump()
        if base in catalogue_files.method_names()
        else {"trains": (plugin.__doc__ or "").strip()}
    )
    scores = {where: f"{score:.1f}" for where, score in main_scores(base).items()}
    return {
        **({} if base == name else {"variant of": str(Spec(base, None, values))}),
        **entry,
        "macro F1 in % published by Liu et al., MICCAI 2024": scores,
        "knob": plugin.knob,
        "options": options,
        "counts": {b: _count(partial(build, plugin, values, name), b) for b in ("mini", "clip_vit_b16")},
    }


def _type(annotation: object) -> str:
    return annotation.__name__ if isinstance(annotation, type) else str(annotation).replace("typing.", "")


def _count(method: Callable[[], Any], name: str) -> str:
    from peftbench.core.guarded import guard
    from peftbench.errors import PeftbenchError, PluginError
    from peftbench.models import backbone
    from peftbench.models.top_k import backbone_size

    blank = backbone.locate(name, blank=True).blank()
    total = backbone_size(blank)
    try:
        with guard(f"It cannot be counted on {name}"):
            made = method()
            count = made.count(blank)
    except PluginError:  # a faulty plug-in, not one that does not fit this backbone
        raise
    except PeftbenchError as error:
        return str(error)
    aim = "" if made.exact else "; approximately, depends on the data"
    return f"{count:,} of {total:,} ({count / total:.4%}), head not counted{aim}"


def _dataset(name: str) -> dict[str, Any]:
    from peftbench.core import catalogue, catalogue_files
    from peftbench.core.registry import registry

    plugin = registry("datasets").get(name)
    if name in catalogue_files.dataset_names():
        return catalogue.dataset_entry(name).model_dump()
    return {"use": (plugin.__doc__ or "").strip()} if isinstance(plugin, type) else asdict(plugin.card)


def _backbone(name: str) -> dict[str, Any]:
    from peftbench.models import backbone
    from peftbench.models.top_k import backbone_size

    source = backbone.locate(name, blank=True)
    parameters = backbone_size(source.blank())
    stated = getattr(source.plugin, "facts", None)
    return {
        **asdict(source.plugin.card),
        **({"preset": _preset_facts(stated)} if stated else {}),
        "parameters": f"{parameters:,}",
        "preprocessing": source.preprocessing.stored(),
    }


def _preset_facts(stated: Preset) -> dict[str, Any]:
    """Return what a preset states beyond its card, and which facts about its file are not known."""
    found = stated.model_dump(exclude={"title", "licence", "notes", "pretraining", "citation", "version"})
    found["weights"]["not known"] = ", ".join(stated.unknown)
    return found


def _recipe(name: str) -> dict[str, Any]:
    from peftbench.core.recipe import QUICK_RATES, RECIPES
    from peftbench.errors import UnknownNameError

    if name not in RECIPES:
        raise UnknownNameError("recipe", name, RECIPES)
    return {**asdict(RECIPES[name]), **({"learning rates": dict(QUICK_RATES)} if name == "quick" else {})}
