"""What training added to a backbone, as safetensors and JSON, bound to the digest of the weights it was added to."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import safe_open
from safetensors.torch import load, save
from torch import Tensor, nn

from peftbench.core.registry import registry
from peftbench.errors import DeltaError, PluginError
from peftbench.models.plan import Graft, Plan, Shared, Sizes, Tuned
from peftbench.storage import files
from peftbench.storage.checked_tensors import DAMAGE

T = TypeVar("T", bound=nn.Module)
FORMAT = 2
MOVED = {"peftbench.grafts": "peftbench.models.peft_tuners"}  # modules of kinds, as deltas of version 0.1.0 name them


def write(folder: Path, plan: Plan, state: Mapping[str, Tensor], about: Mapping[str, Any]) -> int:
    """Save a state of `plan` (and of the head, under `head/`); `about` says base digest, method and head.

    Returns bytes.
    """
    index = {f"index/{name}": chosen.to(torch.int32) for name, chosen in plan.entries.items()}
    lasting = {name: tensor for name, tensor in state.items() if not name.startswith("callback/")}
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in (*lasting.items(), *index.items())}
    told = {"format": FORMAT, "grafts": _told(plan.grafts), "shared": _told(plan.shared), **about}
    content = save(tensors, {"about": _said(told)})  # each file holds the other's digest
    files.write_bytes(folder / "delta.safetensors", content, private=True)
    files.write_json(folder / "delta.json", {**told, "sha256": files.sha256(content)}, private=True)
    return sum((folder / name).stat().st_size for name in ("delta.safetensors", "delta.json"))


def read(folder: Path, base: str) -> tuple[Plan, dict[str, Tensor], dict[str, Any]]:
    """The plan, its state and what was said about it.

    Raises DeltaError when it is damaged or made for weights other than `base`.
    """
    about, file = read_about(folder), folder / "delta.safetensors"
    try:
        tensors, made_by = load(file.read_bytes()), about["method"]["name"]
        told = {"grafts": about["grafts"], "shared": about.get("shared", {})}
    except DAMAGE as error:
        raise DeltaError(f"The delta in {folder} cannot be read ({type(error).__name__}: {error}).") from None
    if about.get("base") != base:
        made_for = str(about.get("base"))[:12]
        raise DeltaError(f"The delta in {folder} was made for weights {made_for}, not for these, {base[:12]}.")
    registry("methods").get(made_by)  # brings the kinds of its grafts
    grafts, shared = _found(told["grafts"], Graft, folder), _found(told["shared"], Shared, folder)
    index = {n.removeprefix("index/"): tensors.pop(n).long() for n in list(tensors) if n.startswith("index/")}
    tune = frozenset(n.removeprefix("tune/") for n in tensors if n.startswith("tune/"))
    return Plan(tune, index, grafts, shared), tensors, about


def read_about(folder: Path) -> dict[str, Any]:
    """What a delta says of itself. Raises DeltaError when that cannot be read, or was changed since it was written."""
    try:
        about: Any = json.loads((folder / "delta.json").read_bytes())
        found: int = about["format"]
        with safe_open(folder / "delta.safetensors", "pt") as opened:
            bound = (opened.metadata() or {}).get("about")
        held = files.sha256_file(folder / "delta.safetensors")
    except (*DAMAGE, RecursionError) as error:
        raise DeltaError(f"The delta in {folder} cannot be read ({type(error).__name__}: {error}).") from None
    if found != FORMAT:
        raise DeltaError(f"The delta in {folder} has the format {found}; this peftbench reads {FORMAT}.")
    if bound != _said(about):
        raise DeltaError(f"The delta in {folder} is damaged: delta.json is not what it was when it was written.")
    if about.get("sha256") != held:
        raise DeltaError(f"The delta in {folder} is damaged: delta.safetensors is not what delta.json was written for.")
    return dict(about)


def restore(vit: nn.Module, folder: Path, base: str) -> tuple[Tuned, dict[str, Tensor]]:
    """Bring a fresh backbone, whose weights have the digest `base`, to the saved state.

    Returns it and the head's tensors. Raises DeltaError.
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


def _said(about: Mapping[str, Any]) -> str:
    """The digest of what delta.json says, but for the digest that it holds."""
    told = {key: value for key, value in about.items() if key != "sha256"}
    return files.sha256_json(told, spaced=True)


Modules = Mapping[str, tuple[type[T], Sizes]]


def _told(modules: Modules[nn.Module]) -> dict[str, dict[str, Any]]:
    """Grafts or shared modules as JSON."""
    return {name: {"kind": _name(kind), "sizes": dict(sizes)} for name, (kind, sizes) in modules.items()}


def _found(told: Mapping[str, Any], parent: type[T], folder: Path) -> dict[str, tuple[type[T], Sizes]]:
    """What `_told` told, its classes found among those that are imported."""
    kinds = {_name(kind): kind for kind in _kinds(parent)}
    named = {name: (_current(one["kind"]), one["sizes"]) for name, one in told.items()}
    if strange := [kind for kind, _ in named.values() if kind not in kinds]:
        raise DeltaError(f"The delta in {folder} needs the module {strange[0]!r}, which no installed method brings.")
    return {name: (kinds[kind], sizes) for name, (kind, sizes) in named.items()}


def _current(kind: str) -> str:
    """The name that a kind has today."""
    module, _, name = kind.partition(":")
    return f"{MOVED.get(module, module)}:{name}"


def _name(kind: type[nn.Module]) -> str:
    return f"{kind.__module__}:{kind.__qualname__}"


def _kinds(kind: type[T]) -> Iterator[type[T]]:
    for child in kind.__subclasses__():
        yield child
        yield from _kinds(child)
