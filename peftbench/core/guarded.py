"""Plug-ins of other packages: each of their calls is guarded, so that a faulty one is named and ends no program.

`guarded` returns a plug-in whose methods and properties raise PluginError in place of whatever they raise, `sys.exit`
included, and whose results have the types of the contract.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cached_property, wraps
from numbers import Integral
from types import FunctionType, MappingProxyType
from typing import Any

from peftbench.errors import PeftbenchError, PluginError, is_out_of_memory
from peftbench.storage.files import is_disk_full

LONGEST = 300  # characters of a foreign message
RETURNS: Mapping[str, Mapping[str, type | str]] = MappingProxyType(  # kind -> member -> the class of what it returns
    {
        "methods": {"plan": "peftbench.models.plan.Plan", "within": "peftbench.models.method.Match", "count": int},
        "datasets": {"card": "peftbench.core.contract.DatasetCard", "load": "peftbench.core.contract.Splits"},
        "backbones": {
            "network": "torch.nn.modules.module.Module",
            "preprocessing": "peftbench.core.contract.Preprocessing",
        },
        "reports": {"suffix": str, "write": list},
    }
)  # a name stands for a class whose import is slow, or forbidden in this layer


@contextmanager
def guard(problem: str, passed: tuple[type[Exception], ...] = ()) -> Iterator[None]:
    """Turn what a plug-in raises in this block, `sys.exit` included, into a PluginError that begins with `problem`.

    Errors of peftbench and Ctrl-C pass, and so do the `passed` ones and those of a full disk or memory, which are not
    the plug-in's fault.
    """
    try:
        yield
    except (PeftbenchError, KeyboardInterrupt):
        raise
    except BaseException as error:  # such as that of a panic in a library written in Rust
        if isinstance(error, passed) or is_disk_full(error) or is_out_of_memory(error):
            raise
        raise PluginError(f"{problem}: {first_line(error)}") from error


@contextmanager
def named(who: str) -> Iterator[None]:
    """Begin the message of a PluginError with the plug-in's name, as checks of what it returned do not know it."""
    try:
        yield
    except PluginError as error:
        raise error if who in str(error) else PluginError(f"{who} failed: {error}") from None


def first_line(error: BaseException) -> str:
    """Return the type and the first line of a foreign error, without the stack frames that some messages hold."""
    first = next((line for line in str(error).splitlines() if line.strip()), "")
    return f"{type(error).__name__}: {first[:LONGEST]}"


def guarded(plugin: Any, who: str, kind: str) -> Any:  # noqa: ANN401 - a class, an instance or a function
    """Return a plug-in of a kind (`methods`) with guarded members; `who` begins the message of a PluginError."""
    returns = RETURNS.get(kind, {})
    if isinstance(plugin, type):
        return _guarded_class(plugin, who, returns)
    if isinstance(plugin, FunctionType):
        return _guarded_call(plugin, who, "")
    with suppress(TypeError):  # an instance of a built-in type
        object.__setattr__(plugin, "__class__", _guarded_class(type(plugin), who, returns))
    return plugin


def _guarded_class(kind: type, who: str, returns: Mapping[str, type | str]) -> type:
    """Return a subclass with the same layout, whose public members are guarded."""
    names = [name for name in dir(kind) if not name.startswith("_") or name in {"__call__", "__post_init__"}]
    members = {name: _guarded_member(inspect.getattr_static(kind, name), who, returns.get(name, "")) for name in names}
    own = {name: member for name, member in members.items() if member is not None}
    about = {"__module__": kind.__module__, "__qualname__": kind.__qualname__, "__doc__": kind.__doc__}
    return type(kind)(kind.__name__, (kind,), {"__slots__": (), **about, **own})


def _guarded_member(member: Any, who: str, returns: type | str) -> Any:  # noqa: ANN401 - what a class may hold
    """Return a guarded method or property, None for other members."""
    if isinstance(member, FunctionType):
        return _guarded_call(member, who, returns)
    if isinstance(member, property) and member.fget is not None:
        return property(_guarded_call(member.fget, who, returns), member.fset, member.fdel)
    if isinstance(member, cached_property):
        return cached_property(_guarded_call(member.func, who, returns))
    if isinstance(member, classmethod | staticmethod):
        return type(member)(_guarded_call(member.__func__, who, returns))
    return None


def _guarded_call(function: Callable[..., Any], who: str, returns: type | str) -> Callable[..., Any]:
    name = function.__name__
    passed = (ValueError,) if name == "__post_init__" else ()  # becomes a sentence on the user's value

    @wraps(function)
    def call(*args: Any, **values: Any) -> Any:  # noqa: ANN401
        with guard(f"{who} failed", passed), named(who):
            value = function(*args, **values)
        if returns and not _is_a(value, returns):
            wanted = returns.rpartition(".")[2] if isinstance(returns, str) else returns.__name__
            raise PluginError(f"{who} failed: {name} returned {type(value).__name__} instead of {wanted}.")
        return _guarded_items(value, who) if inspect.isgenerator(value) else value

    return call


def _is_a(value: object, wanted: type | str) -> bool:
    """Return whether a value has a class, or one of that qualified name."""
    if isinstance(wanted, str):
        return wanted in (f"{one.__module__}.{one.__qualname__}" for one in type(value).__mro__)
    return isinstance(value, Integral if wanted is int else wanted)


def _guarded_items(items: Iterator[Any], who: str) -> Iterator[Any]:
    """Yield what a plug-in's generator yields."""
    while True:
        with guard(f"{who} failed"):
            try:
                item = next(items)
            except StopIteration:
                return
        yield item
