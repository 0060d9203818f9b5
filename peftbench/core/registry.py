"""Plug-ins by name: files of six folders here, entry points of installed packages. Loaded when they are needed.

Those of other packages are guarded, so that a faulty one is named and never ends the program.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from pkgutil import iter_modules
from types import MappingProxyType
from typing import Any

from peftbench.core.catalogue_files import (
    backbone_names,
    method_variant,
    own_backbones,
    own_datasets,
    own_methods,
)
from peftbench.core.constants import METHOD_GROUPS
from peftbench.core.guarded import guard, guarded
from peftbench.errors import CatalogueError, PluginError, UnknownNameError

CONTRACTS: Mapping[str, tuple[str, ...]] = MappingProxyType(  # the attributes that a plug-in of each kind must have
    {
        "methods": ("plan", "knob", "trains"),
        "datasets": ("load",),
        "backbones": ("network", "weights", "preprocessing"),
        "metrics": ("__call__",),
        "reports": ("suffix", "write"),
        "executors": ("run_study", "elsewhere", "wants_gpu"),
        "trackers": ("track", "close"),
    }
)
FOLDERS = ("methods", "datasets", "backbones", "metrics", "reports")  # what `peftbench check` knows rules for
EXECUTORS = frozenset({"local", "ray", "slurm"})  # modules of the folder `execution`, among others


@dataclass(frozen=True)
class Registry:
    """All plug-ins of one kind, from the folder and the entry point group `peftbench.<folder>`."""

    folder: str

    @property
    def kind(self) -> str:
        """The word for one of them in a message."""
        return {"datasets": "data set"}.get(self.folder, self.folder.removesuffix("s"))

    @property
    def room(self) -> str:
        """The folder of the package that holds the built-in ones."""
        return "execution" if self.folder == "executors" else self.folder

    def built_in(self) -> frozenset[str]:
        """Return the built-in names: the stems of the files, presets of backbones included. Imports nothing."""
        return _built_in(self.folder)

    def others(self) -> dict[str, EntryPoint]:
        """Return the entry points of installed packages by name. Raises PluginError when a name is taken."""
        found: dict[str, EntryPoint] = {}
        for point in _points(f"peftbench.{self.folder}", tuple(sys.path)):
            rival = (
                "peftbench itself"
                if point.name in self.built_in()
                else found[point.name].value
                if point.name in found
                else None
            )
            if rival is not None:
                message = f"Two plug-ins call a {self.kind} {point.name!r}: {rival} and {point.value}; uninstall one."
                raise PluginError(message)
            found[point.name] = point
        return found

    def names(self) -> tuple[str, ...]:
        """Return every name, sorted. Imports no plug-in."""
        return tuple(sorted(self.built_in() | self.others().keys() | self.described()))

    def described(self) -> frozenset[str]:
        """Return the data sets or backbones that files of the working folder describe.

        Raises PluginError for a taken name.
        """
        own = {"datasets": own_datasets, "backbones": own_backbones}.get(self.folder)
        found = frozenset(own()) if own else frozenset()
        if twice := sorted(found & (self.built_in() | self.others().keys()) if found else ()):
            file = f"{self.folder}/{twice[0]}.toml"
            raise PluginError(f"A plug-in is called {twice[0]!r} already; rename the file {file}.")
        return found

    def get(self, name: str) -> Any:  # noqa: ANN401 - its kind's contract describes it
        """Return the plug-in called `name`.

        Raises UnknownNameError, or PluginError if it cannot be loaded or lacks an attribute of its contract.
        """
        others = self.others()
        if name in self.described():
            return self._described(name)
        if name not in self.built_in() and name not in others:
            raise UnknownNameError(self.kind, name, self.names())
        with guard(f"{self.describe(name)} cannot be loaded"):
            if name in others:
                plugin = _load(others[name], self.describe(name), self.folder)
            elif self.folder == "backbones" and name in backbone_names():
                plugin = self._described(name)
            else:
                plugin = import_module(f"peftbench.{self.room}.{name}").plugin
        if name in others and (lacking := [a for a in CONTRACTS[self.folder] if not hasattr(plugin, a)]):
            raise PluginError(f"{self.describe(name)} has no {lacking[0]!r}; a {self.kind} must have it.")
        if self.folder == "methods" and type(version := getattr(plugin, "version", 1)) is not int:
            raise PluginError(f"{self.describe(name)} has the version {version!r}; it must be a whole number.")
        return plugin

    def _described(self, name: str) -> Any:  # noqa: ANN401 - its kind's contract describes it
        """Return the plug-in of a TOML file: a data set of the user's, or a preset of a backbone."""
        if self.folder == "backbones":
            return import_module("peftbench.backbones._preset").preset_class(name)
        return import_module("peftbench.datasets._described").Described(name)

    def describe(self, name: str) -> str:
        """Return a plug-in as errors name it: `The metric 'auc' (package.module:function)`."""
        point = self.others().get(name.partition("[")[0].partition(":")[0])
        return f"The {self.kind} {name!r}" + (f" ({point.value})" if point else "")

    @contextmanager
    def calling(self, name: str) -> Iterator[None]:
        """Call the plug-in `name` in this block; whatever it raises becomes a PluginError that names it."""
        with guard(f"{self.describe(name)} failed"):
            yield


def variant(name: str) -> tuple[str, dict[str, Any]]:
    """Return the method that a name refers to, and the fields that a user's file of `methods/` sets for it.

    Raises CatalogueError for a file whose base is no method.
    """
    own = own_methods()
    if name not in own:
        return name, {}
    base, fields = method_variant(name)
    if base not in registry("methods").names():
        raise CatalogueError(f"{own[name]}: base = {base!r} is no method; `peftbench list methods` names them.")
    return base, fields


@lru_cache
def _load(point: EntryPoint, who: str, folder: str) -> Any:  # noqa: ANN401 - its kind's contract describes it
    """Return the plug-in of another package, guarded."""
    return guarded(point.load(), who, folder)


@lru_cache
def _built_in(folder: str) -> frozenset[str]:
    """Return the names of the modules in a folder of this package."""
    if folder == "executors":
        return EXECUTORS
    here = Path(__file__).parents[1] / folder
    modules = {m.name for m in iter_modules([str(here)]) if not m.name.startswith("_")}
    return frozenset(modules | set(backbone_names()) if folder == "backbones" else modules)


@lru_cache
def _points(group: str, path: tuple[str, ...]) -> tuple[EntryPoint, ...]:  # noqa: ARG001 - other packages on another path
    """Return the entry points of a group, cached, since searching all installed packages takes milliseconds."""
    return tuple(entry_points(group=group))


def refuse_unknown_methods(names: Iterable[str]) -> None:
    """Raise UnknownNameError for a name that is no method, variant or group of methods, without importing a plug-in."""
    known = {*registry("methods").names(), *own_methods(), *METHOD_GROUPS}
    for name in names:
        if name not in known:
            raise UnknownNameError("method", name, known - set(METHOD_GROUPS))


@lru_cache
def registry(folder: str) -> Registry:
    """Return the registry of a kind of plug-ins: one of FOLDERS, `executors` or `trackers`."""
    return Registry(folder)
