"""The files of the catalogue, unchecked: enough to list names and single values without importing pydantic.

Every method, data set and named study has one TOML file, in the folders `methods/`, `datasets/` and `studies/` of a
source checkout or in their copies in `peftbench/_data` of an installed wheel. The presets of backbones are in
`peftbench/backbones/`. A user's working folder may hold more methods, data sets and backbones.
"""

from __future__ import annotations

import tomllib
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, TypeAlias

from peftbench.errors import CatalogueError, UnknownNameError

Kind: TypeAlias = Literal["methods", "datasets", "studies", "backbones"]
SINGULAR = {"methods": "method", "datasets": "data set", "studies": "study", "backbones": "backbone"}


def method_names() -> tuple[str, ...]:
    """Return the methods that have a file, sorted."""
    return _names("methods")


def dataset_names() -> tuple[str, ...]:
    """Return the data sets that have a file, the user's own included, sorted."""
    return tuple(sorted({*_names("datasets"), *own_datasets()}))


def study_names() -> tuple[str, ...]:
    """Return the studies that have a file, sorted."""
    return _names("studies")


def backbone_names() -> tuple[str, ...]:
    """Return the built-in presets of backbones, sorted."""
    return _names("backbones")


def own_backbones() -> dict[str, Path]:
    """Return the user's files of `backbones/` in the working folder by name: those with the key `title`.

    Raises CatalogueError.
    """
    return _own("backbones", "title")


def own_datasets() -> dict[str, Path]:
    """Return the user's files of `datasets/` in the working folder by name: those with the key `path`.

    Raises CatalogueError.
    """
    return _own("datasets", "path")


def own_methods() -> dict[str, Path]:
    """Return the user's files of `methods/` in the working folder by name: those with the key `base`.

    Raises CatalogueError.
    """
    return _own("methods", "base")


def _own(kind: Kind, mark: str) -> dict[str, Path]:
    """Return the files of the working folder, without copies of the built-in ones, which lack the key `mark`."""
    folder, built_in = Path(kind).absolute(), folder_of(kind)
    if not folder.is_dir() or folder.resolve() == built_in.resolve():
        return {}
    files = {file.stem: file for file in sorted(folder.glob("*.toml"))}
    taken = [name for name in files if name in _names(kind)]
    if clash := [files[name] for name in taken if mark in read(files[name])]:
        name = clash[0].stem
        raise CatalogueError(f"{clash[0]}: {name!r} is the name of a built-in {SINGULAR[kind]}; rename the file.")
    return {name: file for name, file in files.items() if name not in taken}


def method_variant(name: str) -> tuple[str, dict[str, Any]]:
    """Return the method that a user's variant is based on, through other variants too, and the fields it sets.

    Raises CatalogueError.
    """
    own, base, values, passed = own_methods(), name, dict[str, Any](), list[str]()
    while base in own:
        if base in passed:
            raise CatalogueError(f"{own[name]}: its base leads back to {base!r}; a variant must end at a method.")
        passed.append(base)
        base, fields = _variant(own[base])
        values = {**fields, **values}
    return base, values


def _variant(file: Path) -> tuple[str, dict[str, Any]]:
    fields = {key: value for key, value in read(file).items() if key != "title"}
    base = fields.pop("base", None)
    if not isinstance(base, str):
        raise CatalogueError(f"{file}: key 'base' must name the method that this is a variant of, such as \"lora\".")
    return base, {key: tuple(value) if isinstance(value, list) else value for key, value in fields.items()}


def built_in(kind: Kind, name: str) -> Path:
    """Return the file of a built-in method, data set or study. Raises UnknownNameError."""
    if name not in _names(kind):
        raise UnknownNameError(SINGULAR[kind], name, dataset_names() if kind == "datasets" else _names(kind))
    return folder_of(kind) / f"{name}.toml"


def folder_of(kind: Kind) -> Path:
    """Return the folder that holds the built-in files."""
    return Path(__file__).parents[1] / kind if kind == "backbones" else data_file(kind, kind)


def data_file(checkout: str, installed: str) -> Path:
    """Return the path of shipped data: in a source checkout, or in `peftbench/_data` of an installed wheel."""
    package = Path(__file__).parents[1]
    source = package.parent / checkout
    is_checkout = (package.parent / "pyproject.toml").is_file() and source.exists()
    return source if is_checkout else package / "_data" / installed


@lru_cache
def _names_in(folder: Path) -> tuple[str, ...]:
    return tuple(sorted(file.stem for file in folder.glob("*.toml")))


def _names(kind: Kind) -> tuple[str, ...]:
    folder = folder_of(kind)
    if not folder.is_dir():
        raise CatalogueError(f"The catalogue folder {folder} is missing; install peftbench again.")
    return _names_in(folder)


def read(file: Path) -> dict[str, Any]:
    """Return the content of a TOML file. Raises CatalogueError."""
    try:
        return tomllib.loads(file.read_text(encoding="utf-8-sig"))  # editors may add a byte-order mark
    except OSError as error:
        raise CatalogueError(f"Cannot read {file}: {error.strerror}.") from None
    except (ValueError, RecursionError) as error:
        raise CatalogueError(f"{file} is not valid TOML: {error}.") from None
