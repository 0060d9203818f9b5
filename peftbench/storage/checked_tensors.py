"""Tensors kept on disk with the digest of what was written: cached between jobs, or a job's own checkpoint."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save, save_file
from torch import Tensor

from peftbench.storage.cache import Hold, building

DAMAGE = (OSError, SafetensorError, KeyError, TypeError, ValueError, OverflowError, RuntimeError)


def kept(file: Path | None, make: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
    """The tensors in `file`; made anew where it is missing, damaged or another entry's. None keeps nothing."""
    if file is None:
        return make()
    with Hold(file.parent):  # against being dropped from the cache while in use
        return _kept(file, make)


def _kept(file: Path, make: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
    if (found := _found(file)) is not None:
        return found
    file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with building(file):  # of jobs that run side by side one makes it, and the others wait for it
        if (found := _found(file)) is not None:
            return found
        made = {name: tensor.contiguous() for name, tensor in make().items()}
        draft = file.with_name(f".{file.name}.draft")  # one that a killed process left is written over
        try:
            save_file(made, draft, _metadata(made, _place(file)))
            draft.replace(file)
        finally:
            draft.unlink(missing_ok=True)
        return made


def _place(file: Path) -> str:
    return f"{file.parent.name}/{file.name}"  # names everything that decides the tensors


def _found(file: Path) -> dict[str, Tensor] | None:
    try:
        tensors, said = unpack(file)
    except DAMAGE:
        return None
    return tensors if said == _place(file) else None


def is_whole(file: Path) -> bool:
    """Whether a file holds what was kept there."""
    return _found(file) is not None


def pack(tensors: Mapping[str, Tensor], said: str) -> bytes:
    """A safetensors file of contiguous tensors on the CPU and a text, with the digest of both."""
    return save(dict(tensors), _metadata(tensors, said))


def unpack(file: Path) -> tuple[dict[str, Tensor], str]:
    """What was packed. Raises one of DAMAGE where the file is missing, or is not what was written."""
    with safe_open(file, "pt") as stored:
        about: dict[str, str] = stored.metadata() or {}
        tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118 - not a dict
    if about != _metadata(tensors, about["said"]):
        raise ValueError(f"{file} was changed")
    return tensors, about["said"]


def _metadata(tensors: Mapping[str, Tensor], said: str) -> dict[str, str]:
    """The text, and one sha256 over it and every tensor's name, type, shape and bytes."""
    found = hashlib.sha256(json.dumps(said).encode())
    for name, tensor in sorted(tensors.items()):
        found.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        found.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().data)
    return {"said": said, "sha256": found.hexdigest()}
