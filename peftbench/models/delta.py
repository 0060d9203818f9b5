"""Deltas: what training added to a backbone, as safetensors and JSON, bound to the digest of the pretrained weights."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load, save
from torch import Tensor, nn

from peftbench.core.registry import registry
from peftbench.errors import DeltaError, PluginError
from peftbench.models.head import Head
from peftbench.models.plan import Graft, Plan, Shared, Sizes, Tuned
from peftbench.storage.checked_tensors import DAMAGE
from peftbench.storage.files import sha256, sha256_file, sha256_json, write_bytes, write_json

T = TypeVar("T", bound=nn.Module)
FORMAT = 2
MOVED = {"peftbench.grafts": "peftbench.models.peft_tuners"}  # modules of classes, as deltas of version 0.1.0 name them


def write(folder: Path, plan: Plan, state: Mapping[str, Tensor], about: Mapping[str, Any]) -> int:
    """Save a state of `plan` and of the head (under `head/`) with the facts `about`: base digest, method and head.

    Returns the size in bytes.
    """
    index = {f"index/{name}": chosen.to(torch.int32) for name, chosen in plan.entries.items()}
    trained = {name: tensor for name, tensor in state.items() if not name.startswith("callback/")}
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in (*trained.items(), *index.items())}
    facts = {"format": FORMAT, "grafts": _described(plan.grafts), "shared": _described(plan.shared), **about}
    content = save(tensors, {"about": _seal(facts)})  # each file holds the digest of the other
    write_bytes(folder / "delta.safetensors", content, private=True)
    write_json(folder / "delta.json", {**facts, "sha256": sha256(content)}, private=True)
    return sum((folder / name).stat().st_size for name in ("delta.safetensors", "delta.json"))


def read(folder: Path, base: str) -> tuple[Plan, dict[str, Tensor], dict[str, Any]]:
    """Return the plan, the state and the facts of a delta.

    Raises DeltaError if it is damaged or was made for weights with another digest than `base`.
    """
    about, file = read_about(folder), folder / "delta.safetensors"
    try:
        tensors, method = load(file.read_bytes()), about["method"]["name"]
        described = {"grafts": about["grafts"], "shared": about.get("shared", {})}
    except DAMAGE as error:
        raise DeltaError(f"Cannot read the delta in {folder} ({type(error).__name__}: {error}).") from None
    _check_base(folder, about, base)
    registry("methods").get(method)  # imports the classes of its adapters
    grafts, shared = _resolved(described["grafts"], Graft, folder), _resolved(described["shared"], Shared, folder)
    index = {n.removeprefix("index/"): tensors.pop(n).long() for n in list(tensors) if n.startswith("index/")}
    tune = frozenset(n.removeprefix("tune/") for n in tensors if n.startswith("tune/"))
    return Plan(tune, index, grafts, shared), tensors, about


def read_about(folder: Path) -> dict[str, Any]:
    """Return the facts of a delta. Raises DeltaError if they cannot be read or were modified after writing."""
    try:
        about: Any = json.loads((folder / "delta.json").read_bytes())
        found: int = about["format"]
        with safe_open(folder / "delta.safetensors", "pt") as opened:
            bound = (opened.metadata() or {}).get("about")
        held = sha256_file(folder / "delta.safetensors")
    except (*DAMAGE, RecursionError) as error:
        raise DeltaError(f"Cannot read the delta in {folder} ({type(error).__name__}: {error}).") from None
    if found != FORMAT:
        raise DeltaError(f"The delta in {folder} has the format {found}; this version of peftbench reads {FORMAT}.")
    if bound != _seal(about):
        raise DeltaError(f"The delta in {folder} is damaged: delta.json was modified after it was written.")
    if about.get("sha256") != held:
        raise DeltaError(f"The delta in {folder} is damaged: delta.safetensors does not match delta.json.")
    return dict(about)


@contextmanager
def open_tuned(folder: Path, base: str) -> Iterator[Callable[[str], Tensor]]:
    """Yield a function that reads one stored tensor by its name, such as `tune/norm.weight` or `head/linear.weight`.

    No more than that tensor is in memory. Raises DeltaError.
    """
    _check_base(folder, read_about(folder), base)
    with safe_open(folder / "delta.safetensors", "pt") as stored:

        def read_tensor(name: str) -> Tensor:
            try:
                tensor: Tensor = stored.get_tensor(name)
            except SafetensorError:
                raise DeltaError(f"The delta in {folder} holds no tensor {name}.") from None
            return tensor

        yield read_tensor


def _check_base(folder: Path, about: Mapping[str, Any], base: str) -> None:
    if about.get("base") != base:
        made_for = str(about.get("base"))[:12]
        raise DeltaError(
            f"The delta in {folder} was made for the weights {made_for}, not for {base[:12]}; pass its weights."
        )


def restore(vit: nn.Module, folder: Path, base: str) -> tuple[Tuned, dict[str, Tensor]]:
    """Apply a delta to a fresh backbone whose weights have the digest `base`; return it and the head's tensors.

    Raises DeltaError.
    """
    plan, tensors, _ = read(folder, base)
    try:
        with torch.random.fork_rng(devices=[]):
            tuned = plan.carry_out(vit)
    except (PluginError, TypeError, ValueError) as error:
        raise DeltaError(f"The delta in {folder} does not fit this network: {error}") from None
    head = {n.removeprefix("head/"): t for n, t in tensors.items() if n.startswith("head/")}
    tuned.load({n: t for n, t in tensors.items() if not n.startswith("head/")})
    return tuned, head


def restore_head(width: int, about: Mapping[str, Any], read_tensor: Callable[[str], Tensor]) -> Head:
    """Return the head that the facts of a delta describe; `read_tensor` returns a tensor by its name in the head."""
    stored = about["head"]
    head = Head(width, len(stored["classes"]), stored["kind"], stored["scale"], 0)
    head.load_state_dict({name: read_tensor(name) for name in head.state_dict()})
    return head


def _seal(about: Mapping[str, Any]) -> str:
    """Return the digest of the facts, without the digest that they hold."""
    facts = {key: value for key, value in about.items() if key != "sha256"}
    return sha256_json(facts, spaced=True)


Modules = Mapping[str, tuple[type[T], Sizes]]


def _described(modules: Modules[nn.Module]) -> dict[str, dict[str, Any]]:
    """Return adapters or shared modules as JSON values."""
    return {name: {"kind": _name(kind), "sizes": dict(sizes)} for name, (kind, sizes) in modules.items()}


def _resolved(described: Mapping[str, Any], parent: type[T], folder: Path) -> dict[str, tuple[type[T], Sizes]]:
    """Return the inverse of `_described`, with classes looked up among the imported subclasses of `parent`."""
    kinds = {_name(kind): kind for kind in _subclasses(parent)}
    named = {name: (_current(one["kind"]), one["sizes"]) for name, one in described.items()}
    if unknown := [kind for kind, _ in named.values() if kind not in kinds]:
        raise DeltaError(
            f"The delta in {folder} needs {unknown[0]!r}, which no installed method provides; install its package."
        )
    return {name: (kinds[kind], sizes) for name, (kind, sizes) in named.items()}


def _current(kind: str) -> str:
    """Return the current name of a class."""
    module, _, name = kind.partition(":")
    return f"{MOVED.get(module, module)}:{name}"


def _name(kind: type[nn.Module]) -> str:
    return f"{kind.__module__}:{kind.__qualname__}"


def _subclasses(kind: type[T]) -> Iterator[type[T]]:
    for child in kind.__subclasses__():
        yield child
        yield from _subclasses(child)
