"""Tensors that are worth keeping between jobs: read from the cache, or made and put there."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from peftbench.cache import Hold


def kept(file: Path | None, make: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
    """The tensors in `file`; made anew where it is missing or damaged, and written in one piece. None keeps nothing."""
    if file is None:
        return make()
    with Hold(file.parent):  # against being dropped from the cache while in use
        return _kept(file, make)


def _kept(file: Path, make: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
    try:
        return load_file(file)
    except (SafetensorError, OSError):
        made = make()
    file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    draft = file.with_name(f"{file.name}.{uuid.uuid4().hex}")
    save_file({name: tensor.contiguous() for name, tensor in made.items()}, draft)
    draft.replace(file)
    return made
