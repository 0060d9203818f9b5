"""Which data sets are on this machine, and what a data set's name means. Imports no torch and opens no image."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, cast

from platformdirs import user_data_path

from peftbench.core import catalogue
from peftbench.core.contract import Dataset, Presence
from peftbench.core.fields import build
from peftbench.core.registry import registry
from peftbench.core.spec import PAPER_SIX
from peftbench.core.syntax import Spec, parse
from peftbench.errors import DataError, PluginError, RequestError

COLLECTION = "medmnist"


def data_folder(given: Path | None = None) -> Path:
    """The folder that holds all data sets: as given, or this user's own."""
    return given or user_data_path("peftbench") / "data"


def open_dataset(text: str) -> Dataset:
    """The data set that a spec names: a plug-in, or one with an argument such as `folder:PATH`. Raises RequestError."""
    if text not in registry("datasets").names():
        _refuse_bare_path(text)
    spec: Spec = parse(text)
    found: Any = registry("datasets").get(spec.name)
    argument = _argument(found, spec.name) if isinstance(found, type) else ""
    if bool(argument) != (spec.argument is not None) or spec.random or (spec.fields and not argument):
        raise RequestError(f"Cannot read the data set {text!r}: write {usage(spec.name)}.")
    made: Any = build(found, {**spec.fields, argument: spec.argument}, spec.name) if argument else found
    return cast("Dataset", made)


def _refuse_bare_path(text: str) -> None:
    """Say how the folder or table that was probably meant is asked for."""
    path = Path(text)
    if "/" not in text and (path.is_dir() or path.is_file()):
        kind = "folder" if path.is_dir() else "table"
        raise RequestError(f"No data set is called {text!r}; for the one that lies here, write {kind}:{text}.")


def usage(name: str) -> str:
    """How a plug-in is asked for: `busi`, `folder:PATH`."""
    found: Any = registry("datasets").get(name)
    return f"{name}:{_argument(found, name).upper()}" if isinstance(found, type) else name


def _argument(kind: type, name: str) -> str:
    """The field of a data set that stands behind the colon: its first."""
    if not is_dataclass(kind) or not fields(kind):
        raise PluginError(f"The data set {name!r} is a class and must be a dataclass with a field; mend the plug-in.")
    return fields(kind)[0].name


def presence(name: str, root: Path) -> Presence | None:
    """How much of a data set, by its plain name, is under `root`; None where only loading it would tell."""
    dataset: Any = registry("datasets").get(name)
    found: Presence | None = dataset.presence(root) if hasattr(dataset, "presence") else None
    return found


def is_complete(name: str, root: Path) -> bool:
    """Whether all of it is here, sound or not; what is still packed is unpacked to find out."""
    found = presence(name, root)
    if found and found.packed:
        with suppress(DataError):  # running it says what is wrong with it
            open_dataset(name).load(root, 0)
        found = presence(name, root)
    return bool(found and found.complete)


def of_collection(root: Path) -> tuple[str, ...]:
    """The specs of the sets of MedMNIST+ whose files are under `root`."""
    here: tuple[str, ...] = registry("datasets").get(COLLECTION).here(root)
    return here


def everything(root: Path) -> tuple[str, ...]:
    """Every real data set that is wholly here: of the paper, of MedMNIST+, of the user."""
    own = catalogue.own_datasets()
    return (*(name for name in (*PAPER_SIX, *own) if is_complete(name, root)), *of_collection(root))


def state(name: str, root: Path) -> str:
    """One phrase about a name of the list: `complete`, `incomplete (n of N)`, `no`, `3 of 12`, `built in`.

    Raises CatalogueError for a faulty description of the user's own.
    """
    if name == COLLECTION:
        return f"{len(of_collection(root))} of {len(catalogue.dataset_entry(name).members)}"
    if name in catalogue.dataset_names() and catalogue.dataset_entry(name).synthetic:
        return "built in"
    if isinstance(registry("datasets").get(name), type):
        return "wherever you say"
    found = presence(name, root)
    return str(found) if found else "unknown"
