"""Find out which data sets are on this machine and open them by name. Imports no torch and opens no image."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, cast

from peftbench.core import catalogue, catalogue_files
from peftbench.core.constants import PAPER_DATASETS
from peftbench.core.contract import Dataset, Presence
from peftbench.core.fields import build
from peftbench.core.registry import registry
from peftbench.core.syntax import Spec, parse
from peftbench.errors import DataError, PluginError, RequestError

COLLECTION = "medmnist"
TABLE = "table"


def open_dataset(text: str, columns: Mapping[str, str] | None = None) -> Dataset:
    """Return the data set of a specification such as `busi` or `folder:PATH`. Raises RequestError.

    `columns` names the columns of a table (`image_column` and so on) and does not concern other data sets.
    """
    if text not in registry("datasets").names():
        _refuse_bare_path(text)
    spec: Spec = parse(text)
    found: Any = registry("datasets").get(spec.name)
    argument = _argument(found, spec.name) if isinstance(found, type) else ""
    if bool(argument) != (spec.argument is not None) or spec.random or (spec.fields and not argument):
        raise RequestError(f"--datasets: cannot parse {text!r}; write {usage(spec.name)}.")
    fields_ = {**spec.fields, **(columns or {})} if spec.name == TABLE else spec.fields
    made: Any = build(found, {**fields_, argument: spec.argument}, spec.name) if argument else found
    return cast("Dataset", made)


def _refuse_bare_path(text: str) -> None:
    """Raise RequestError with the right spelling if `text` is the name of a folder or file in the working folder."""
    path = Path(text)
    if "/" not in text and (path.is_dir() or path.is_file()):
        kind = "folder" if path.is_dir() else "table"
        raise RequestError(
            f"--datasets: unknown data set {text!r}. To use the {kind} of that name, write {kind}:{text}."
        )


def usage(name: str) -> str:
    """Return how a data set is written on the command line: `busi`, `folder:PATH`."""
    found: Any = registry("datasets").get(name)
    return f"{name}:{_argument(found, name).upper()}" if isinstance(found, type) else name


def _argument(kind: type, name: str) -> str:
    """Return the first field of a data set: the one written after the colon."""
    if not is_dataclass(kind) or not fields(kind):
        raise PluginError(f"The data set {name!r} must be an instance, or a dataclass with at least one field.")
    return fields(kind)[0].name


def presence(name: str, root: Path) -> Presence | None:
    """Return how much of a data set is under `root`; None if the plug-in cannot tell without loading it."""
    dataset: Any = registry("datasets").get(name)
    found: Presence | None = dataset.presence(root) if hasattr(dataset, "presence") else None
    return found


def is_complete(name: str, root: Path) -> bool:
    """Return whether all files of a data set are here, damaged or not; packed archives are unpacked first."""
    found = presence(name, root)
    if found and found.packed:
        with suppress(DataError):  # a run reports the error
            open_dataset(name).load(root, 0)
        found = presence(name, root)
    return bool(found and found.complete)


def collection_specs(root: Path) -> tuple[str, ...]:
    """Return the specifications of the MedMNIST+ sets whose files are under `root`."""
    present: tuple[str, ...] = registry("datasets").get(COLLECTION).here(root)
    return present


def complete_datasets(root: Path) -> tuple[str, ...]:
    """Return every real data set that is complete under `root`: the paper's, the user's own, MedMNIST+."""
    own = catalogue_files.own_datasets()
    return (*(name for name in (*PAPER_DATASETS, *own) if is_complete(name, root)), *collection_specs(root))


def describe_presence(name: str, root: Path) -> str:
    """Return how much of a data set is here: `complete`, `incomplete (n of N)`, `no`, `3 of 12`, `built in`.

    Raises CatalogueError for an invalid description in `datasets/`.
    """
    if name == COLLECTION:
        return f"{len(collection_specs(root))} of {len(catalogue.dataset_entry(name).members)}"
    if name in catalogue_files.dataset_names() and catalogue.dataset_entry(name).synthetic:
        return "built in"
    if isinstance(registry("datasets").get(name), type):
        return "at the path given"
    found = presence(name, root)
    return str(found) if found else "unknown"
