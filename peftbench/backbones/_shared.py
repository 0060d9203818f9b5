"""Shared code of the backbones: read weight files safely, load them strictly, report missing files."""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import load_file
from timm.models.eva import Eva, EvaAttention
from timm.models.eva import checkpoint_filter_fn as eva_filter
from timm.models.vision_transformer import checkpoint_filter_fn as vit_filter
from torch import Tensor, nn

from peftbench.backbones._checkpoint import find_backbone
from peftbench.core.contract import Preprocessing
from peftbench.errors import RequestError, WeightsError
from peftbench.models.backbone import Network
from peftbench.storage.contents import describe_content

MAX_SIDE = 4096  # pixels; above, the position embedding alone takes gigabytes
LONGEST = 200  # characters of a loader's own message
UNSAFE = "Weights only load failed"  # in what torch raises for a file that would run code
KERNELS = ("patch_embed.proj.weight", "visual.conv1.weight")  # in timm and open_clip


def image_side(asked: int | None, written: int | None, usual: int, patch: int) -> int:
    """Return the image size in pixels: `asked` (--image-size), else `written` (`img_size` in brackets), else `usual`.

    Raises RequestError if both are given and differ, or if the size is not a multiple of `patch`.
    """
    if asked and written and asked != written:
        raise RequestError(f"--image-size {asked} contradicts img_size={written} in --backbone. Remove one of them.")
    side = asked or written or usual
    if side > MAX_SIDE:
        raise RequestError(f"--image-size must be at most {MAX_SIDE} px, got {side}.")
    if side < patch or side % patch:
        low, high = side // patch * patch, (side // patch + 1) * patch
        near = f"{low} or {high}" if low else str(high)
        raise RequestError(f"--image-size must be a multiple of the patch size {patch} px, got {side}. Use {near}.")
    return side


def refuse_depth(spec: str, depth: int | None) -> None:
    """Raise RequestError for fewer than one block."""
    if depth is not None and depth < 1:
        raise RequestError(f"{spec}: depth must be at least 1, got depth={depth}.")


def preprocessing(side: int, mean: Iterable[float], std: Iterable[float], interpolation: str) -> Preprocessing:
    """Return the preprocessing of a timm or open_clip configuration at `side` px; non-bilinear becomes bicubic."""
    return Preprocessing(side, _triple(mean), _triple(std), "bilinear" if interpolation == "bilinear" else "bicubic")


def _triple(values: Iterable[float]) -> tuple[float, float, float]:
    red, green, blue = (float(value) for value in values)
    return red, green, blue


def fill(vit: Network, file: Path, depth: int | None = None, prefix: str = "") -> list[str]:
    """Load the weights in `file` into `vit`: strictly, in float32, with the position embedding resampled and no head.

    The file may be a checkpoint of a training program or have the names of open_clip, DINOv2 or transformers. With
    `depth`, later blocks in the file are ignored; `prefix` is that of the tensors' names in the file. Returns what was
    chosen and left out, in sentences. Raises WeightsError.
    """
    content, notes = _read(file, prefix)
    _refuse_other_patches(file, content, vit)
    try:
        tensors = _fused(eva_filter(content, vit)) if isinstance(vit, Eva) else vit_filter(content, vit)
    except Exception as error:
        raise WeightsError(f"{file} does not hold the weights of a vision transformer: {_one_line(error)}.") from error
    wanted = {n: t for n, t in tensors.items() if not (n.startswith("head.") or _beyond(n, depth))}
    _refuse_misfit(file, vit.state_dict(), wanted)
    _refuse_values(file, wanted)
    vit.load_state_dict(wanted, strict=True)
    return notes


def create_network(name: str, **options: Any) -> nn.Module:  # noqa: ANN401 - timm's
    """Return a network of timm; one of its Eva networks with queries, keys and values in one layer that is called.

    Then methods find `attn.qkv` as in a VisionTransformer. Features are the same: the bias is added after the layer.
    """
    vit: nn.Module = timm.create_model(name, **options)
    layers = [module for module in vit.modules() if isinstance(module, EvaAttention)]
    if any(layer.qkv is None for layer in layers):
        return create_network(name, **options, qkv_fused=True)
    for layer in layers:
        layer.qkv_bias_separate = layer.q_bias is not None
    return vit


def _fused(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of an Eva network with separate queries, keys and values in one layer, as its file may be."""
    found = dict[str, Tensor]()
    for name, tensor in tensors.items():
        if name.endswith(".attn.q_proj.weight"):
            parts = [name.replace("q_proj", f"{part}_proj") for part in "qkv"]
            found[name.replace("q_proj", "qkv")] = torch.cat([tensors[part] for part in parts if part in tensors])
        elif name.endswith((".attn.q_proj.bias", ".attn.v_proj.bias")):
            found[name.replace("_proj.bias", "_bias")] = tensor
        elif not name.endswith((".attn.k_proj.weight", ".attn.v_proj.weight")):
            found[name] = tensor
    return found


def _refuse_other_patches(file: Path, content: Mapping[str, Tensor], vit: Network) -> None:
    """Raise WeightsError for a patch kernel of another size, which timm's filter would silently resample."""
    wanted = tuple(vit.patch_embed.proj.weight.shape[2:])
    for name, tensor in content.items():
        found = tuple(tensor.shape[2:])
        if name.endswith(KERNELS) and len(found) == len(wanted) and found != wanted:
            theirs, needed = (f"{high} x {wide} px" for high, wide in (found, wanted))
            raise WeightsError(f"{file} is for another network: its patches are {theirs}, but {needed} are needed.")


def _beyond(name: str, depth: int | None) -> bool:
    kind, _, rest = name.partition(".")
    return depth is not None and kind == "blocks" and int(rest.partition(".")[0]) >= depth


def _read(file: Path, prefix: str) -> tuple[dict[str, Tensor], list[str]]:
    """Return the backbone's tensors of a file in float32, and notes on the choice.

    Runs no code from it: safetensors, or torch.load with weights_only.
    """
    try:
        _refuse_other_content(file)
        return find_backbone(load_file(file) if _is_safetensors(file) else _load_torch(file), file, prefix)
    except (WeightsError, MemoryError):
        raise
    except pickle.UnpicklingError as error:
        if UNSAFE not in str(error):
            raise _damaged(file, error) from error
        raise WeightsError(
            f"{file} is refused: it holds more than weights, and opening it could run its code. "
            "Save its state_dict as .safetensors and pass that."
        ) from error
    except Exception as error:
        raise _damaged(file, error) from error


def _damaged(file: Path, error: Exception) -> WeightsError:
    return WeightsError(f"Cannot read {file}: {_one_line(error)}. It is damaged or not a file of weights.")


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split())[:LONGEST].rstrip(".")
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _refuse_other_content(file: Path) -> None:
    """Raise WeightsError if the first bytes are not those of weights; torch's own files are ZIP archives."""
    if not file.is_file():
        raise WeightsError(f"{file} is not a regular file. Give a file of weights.")
    found = describe_content(file)
    if found and not (found == "a ZIP archive" and not _is_safetensors(file)):
        raise WeightsError(f"{file} is not a file of weights but holds {found}.")


def _load_torch(file: Path) -> object:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about files that torch then refuses
        return torch.load(file, "cpu", weights_only=True)


def _is_safetensors(file: Path) -> bool:
    return file.suffix.lower() == ".safetensors"


def _refuse_values(file: Path, tensors: Mapping[str, Tensor]) -> None:
    """Raise WeightsError for integers, as quantized weights have, sparse and missing values, NaN and infinity."""
    for name, tensor in tensors.items():
        if tensor.is_meta or tensor.layout != torch.strided:
            lack = "no values" if tensor.is_meta else "a sparse layout"
            raise WeightsError(f"{file}: {name} has {lack}. Give weights that are stored in full.")
        if not tensor.is_floating_point():
            kind = str(tensor.dtype).removeprefix("torch.")
            raise WeightsError(f"{file}: {name} has type {kind}. Give weights in floating point, not quantized ones.")
        if not tensor.isfinite().all():
            raise WeightsError(f"{file}: {name} holds NaN or infinite values. Download the weights again.")


def _refuse_misfit(file: Path, wanted: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> None:
    """Raise WeightsError with the first name of each kind of mismatch."""
    shapes = [n for n, t in wanted.items() if n in found and found[n].shape != t.shape]
    faults = [
        _list("missing", [n for n in wanted if n not in found]),
        _list("unexpected", [n for n in found if n not in wanted]),
        *(f"{n} has shape {tuple(found[n].shape)} instead of {tuple(wanted[n].shape)}" for n in shapes[:1]),
    ]
    if any(faults):
        raise WeightsError(f"{file} is for another network: {'; '.join(filter(None, faults))}.")


def _list(what: str, names: list[str]) -> str:
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return f"{what}: {names[0]}{more}" if names else ""
