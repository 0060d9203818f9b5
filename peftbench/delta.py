"""What training added to a backbone, as safetensors and JSON, bound to the digest of the weights it was added to."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from peftbench.errors import DeltaError, PluginError
from peftbench.plan import Graft, Plan, Tuned
from peftbench.registry import registry
from peftbench.store import write_bytes, write_json

FORMAT = 1


def write(folder: Path, plan: Plan, state: Mapping[str, Tensor], about: Mapping[str, Any]) -> int:
    """Save a state of `plan` (and of the head, under `head/`); `about` says base digest, method and head.

    Returns bytes.
    """
    index = {f"index/{name}": chosen.to(torch.int32) for name, chosen in plan.entries.items()}
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in (*state.items(), *index.items())}
    grafts = {site: {"kind": _name(kind), "sizes": dict(sizes)} for site, (kind, sizes) in plan.grafts.items()}
    content = save(tensors)
    write_bytes(folder / "delta.safetensors", content)
    write_json(folder / "delta.json", {"format": FORMAT, "sha256": _digest(content), "grafts": grafts, **about})
    return sum((folder / name).stat().st_size for name in ("delta.safetensors", "delta.json"))


def read(folder: Path, base: str) -> tuple[Plan, dict[str, Tensor], dict[str, Any]]:
    """The plan, its state and what was said about it.

    Raises DeltaError when it is damaged or made for weights other than `base`.
    """
    try:
        about: Any = json.loads((folder / "delta.json").read_bytes())
        content = (folder / "delta.safetensors").read_bytes()
        tensors, made_by, theirs = load(content), about["method"]["name"], about["grafts"]
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise DeltaError(f"The delta in {folder} cannot be read ({type(error).__name__}: {error}).") from None
    if about.get("format") != FORMAT:
        raise DeltaError(f"The delta in {folder} has the format {about.get('format')}; this peftbench reads {FORMAT}.")
    if about.get("base") != base:
        made_for = str(about.get("base"))[:12]
        raise DeltaError(f"The delta in {folder} was made for weights {made_for}, not for these, {base[:12]}.")
    if about.get("sha256") != _digest(content):
        raise DeltaError(f"The delta in {folder} is damaged: delta.safetensors is not what delta.json was written for.")
    registry("methods").get(made_by)  # brings the kinds of its grafts
    kinds = {_name(kind): kind for kind in _kinds(Graft)}
    if strange := [g["kind"] for g in theirs.values() if g["kind"] not in kinds]:
        raise DeltaError(f"The delta in {folder} needs the graft {strange[0]!r}, which no installed method brings.")
    grafts = {site: (kinds[g["kind"]], g["sizes"]) for site, g in theirs.items()}
    index = {n.removeprefix("index/"): tensors.pop(n).long() for n in list(tensors) if n.startswith("index/")}
    tune = frozenset(n.removeprefix("tune/") for n in tensors if n.startswith("tune/"))
    return Plan(tune, index, grafts), tensors, about


def restore(vit: nn.Module, folder: Path, base: str) -> tuple[Tuned, dict[str, Tensor]]:
    """Bring a fresh backbone, whose weights have the digest `base`, to the saved state.

    Returns it and the head's tensors. Raises DeltaError.
    """
    plan, tensors, _ = read(folder, base)
    try:
        with torch.random.fork_rng():
            tuned = plan.carry_out(vit)
    except (PluginError, TypeError, ValueError) as error:
        raise DeltaError(f"The delta in {folder} does not fit this network: {error}") from None
    head = {n.removeprefix("head/"): t for n, t in tensors.items() if n.startswith("head/")}
    tuned.load({n: t for n, t in tensors.items() if not n.startswith("head/")})
    return tuned, head


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _name(kind: type[Graft]) -> str:
    return f"{kind.__module__}:{kind.__qualname__}"


def _kinds(kind: type[Graft]) -> Iterator[type[Graft]]:
    for child in kind.__subclasses__():
        yield child
        yield from _kinds(child)
