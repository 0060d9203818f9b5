"""Safetensors files with an embedded SHA-256: a file that was modified, cut off or copied to another place is rejected.

The file's metadata hold a text and the SHA-256 of it and of every tensor's name, type, shape and bytes.
`checked_json` does the same for JSON.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from peftbench.storage import files
from peftbench.storage.cache import Hold, building

TEXT = "said"  # key of the text in the metadata since version 0.1.0
DAMAGE = (OSError, SafetensorError, KeyError, TypeError, ValueError, OverflowError, RuntimeError)


def write(file: Path, tensors: Mapping[str, Tensor], text: str) -> None:
    """Write contiguous tensors on the CPU and a text atomically, readable by the owner only.

    Raises OSError.
    """
    files.make_private_folder(file.parent)
    with files.replacing(file, private=True) as draft:
        try:
            save_file(dict(tensors), draft, _metadata(tensors, text))
        except SafetensorError as error:
            raise OSError(f"Cannot write {file}: {error}") from None
        draft.chmod(files.PRIVATE_FILE)  # some versions of safetensors replace the file


def read(file: Path) -> tuple[dict[str, Tensor], str]:
    """Return the tensors and the text. Raises one of DAMAGE if the file is missing or the digest does not match."""
    with safe_open(file, "pt") as stored:
        metadata: dict[str, str] = stored.metadata() or {}
        tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118 - not a dict
    if metadata != _metadata(tensors, metadata[TEXT]):
        raise ValueError(f"{file} was modified after it was written")
    return tensors, metadata[TEXT]


def _metadata(tensors: Mapping[str, Tensor], text: str) -> dict[str, str]:
    return {TEXT: text, "sha256": files.sha256_pieces(_pieces(tensors, text))}


def _pieces(tensors: Mapping[str, Tensor], text: str) -> Iterator[files.Content]:
    yield json.dumps(text).encode()
    for name, tensor in sorted(tensors.items()):
        yield json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode()
        yield tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().data


# --- in the cache ----------------------------------------------------------------------------------------------------


def cached(file: Path | None, make: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
    """Return the tensors in `file`; call `make` and store its result if the file is missing, damaged or misplaced.

    Of processes side by side one makes it and the others wait. None for `file`: call `make` and store nothing.
    """
    if file is None:
        return make()
    with Hold(file.parent):  # keeps the entry in the cache while it is used
        found = _read_cached(file)
        return found if found is not None else _make(file, make)


def _make(file: Path, make: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
    files.make_private_folder(file.parent)
    with building(file):
        if (found := _read_cached(file)) is not None:
            return found
        files.remove_temporaries(file.parent)
        made = {name: tensor.contiguous() for name, tensor in make().items()}
        write(file, made, _place(file))
        return made


def is_whole(file: Path) -> bool:
    """Return whether `cached` would use this file as it is."""
    return _read_cached(file) is not None


def _read_cached(file: Path) -> dict[str, Tensor] | None:
    try:
        tensors, place = read(file)
    except DAMAGE:
        return None
    return tensors if place == _place(file) else None


def _place(file: Path) -> str:
    """Return the entry's key and the file's name, which identify the tensors."""
    return f"{file.parent.name}/{file.name}"
