"""What the backbones share: reading a file of weights safely, filling a network strictly, saying what is missing."""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, cast

import torch
from platformdirs import user_data_path
from safetensors import SafetensorError
from safetensors.torch import load_file
from timm.models.vision_transformer import VisionTransformer, checkpoint_filter_fn
from torch import Tensor

from peftbench.core.contract import Preprocessing
from peftbench.errors import RequestError, WeightsError

LARGEST = 4096  # pixels; above, the position embedding alone is gigabytes
KERNELS = ("patch_embed.proj.weight", "visual.conv1.weight")  # as timm and open_clip call it


def own_file(name: str) -> Path:
    """Where a backbone's weights are looked for when no file is given: the user's data folder of this platform."""
    return user_data_path("peftbench") / "weights" / f"{name.replace('/', '-')}.safetensors"


def find_weights(given: Path | None, own: Path, advice: str) -> Path:
    """`given`, or else `own`. Raises WeightsError if that is no file, with `advice` on how to get `own`."""
    if given is not None and not given.is_file():
        raise WeightsError(f"There are no weights at {given} (--weights): no such file.")
    if given is None and not own.is_file():
        raise WeightsError(
            f"There are no weights at {own}. {advice} Put the file there or name it with --weights FILE."
        )
    return given or own


def image_side(asked: int | None, written: int | None, usual: int, patch: int) -> int:
    """The image size in pixels: --image-size, else `img_size` in the backbone's brackets, else its pretraining's.

    Raises RequestError where the two contradict each other, or patches of `patch` pixels do not fill the image.
    """
    if asked and written and asked != written:
        raise RequestError(
            f"--image-size says {asked} and the backbone's brackets say img_size={written}; leave one out."
        )
    side = asked or written or usual
    if side > LARGEST:
        raise RequestError(f"An image size of {side} px is too large; the largest is {LARGEST} px.")
    if side < patch or side % patch:
        low, high = side // patch * patch, (side // patch + 1) * patch
        near = f"{low} or {high}" if low else str(high)
        raise RequestError(f"An image size of {side} px is no multiple of the patch size {patch} px; take {near}.")
    return side


def refuse_depth(spec: str, depth: int | None) -> None:
    """Raises RequestError for a number of blocks below 1."""
    if depth is not None and depth < 1:
        raise RequestError(f"{spec} cannot have depth={depth}; the least is 1 block.")


def preprocessing(side: int, mean: Iterable[float], std: Iterable[float], interpolation: str) -> Preprocessing:
    """The preprocessing of somebody's configuration, at `side` px. What is not bilinear becomes bicubic."""
    return Preprocessing(side, _triple(mean), _triple(std), "bilinear" if interpolation == "bilinear" else "bicubic")


def _triple(values: Iterable[float]) -> tuple[float, float, float]:
    red, green, blue = (float(value) for value in values)
    return red, green, blue


def fill(vit: VisionTransformer, file: Path, depth: int | None = None) -> None:
    """Load the weights in `file` into `vit`: strictly, in float32, position embedding resampled, heads left out.

    The file is one of timm's layout or of a whole open_clip model (timm's own filter converts it). With `depth`, the
    blocks of a deeper file from there on are left out too. Raises WeightsError.
    """
    content = _read(file)
    _refuse_other_patches(file, content, vit)
    try:
        tensors = checkpoint_filter_fn(content, vit)
    except (KeyError, RuntimeError, ValueError, AttributeError, AssertionError) as error:
        raise WeightsError(f"{file} holds no weights of a vision transformer: {error}.") from error
    wanted = {n: t for n, t in tensors.items() if not (n.startswith("head.") or _beyond(n, depth))}
    _refuse_misfit(file, vit.state_dict(), wanted)
    vit.load_state_dict(wanted, strict=True)


def _refuse_other_patches(file: Path, content: Mapping[str, Any], vit: VisionTransformer) -> None:
    """Raises WeightsError for a patch kernel of another size, which timm's filter would resample without a word."""
    wanted = tuple(vit.patch_embed.proj.weight.shape[2:])
    for name, tensor in content.items():
        found = tuple(tensor.shape[2:])
        if name.endswith(KERNELS) and len(found) == len(wanted) and found != wanted:
            sizes = " and the network of ".join(f"{high} x {wide} px" for high, wide in (found, wanted))
            raise WeightsError(f"{file} is of another network: it cuts images into patches of {sizes}.")


def _beyond(name: str, depth: int | None) -> bool:
    kind, _, rest = name.partition(".")
    return depth is not None and kind == "blocks" and int(rest.partition(".")[0]) >= depth


def _read(file: Path) -> dict[str, Any]:
    """The tensors of a file in float32. Runs no code: safetensors, or torch's loader for weights only."""
    try:
        content = load_file(file) if file.suffix == ".safetensors" else _load_torch(file)
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"{file} cannot be read as safetensors: {error}.") from error
    except (pickle.UnpicklingError, RuntimeError, EOFError, KeyError) as error:
        raise WeightsError(
            f"{file} is refused: it is no plain file of weights, and opening it could run somebody's code. "
            "Save its state_dict as .safetensors and give that."
        ) from error
    return _float32(_state_dict(content, file))


def _load_torch(file: Path) -> object:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch wonders aloud about files that it then refuses
        return torch.load(file, "cpu", weights_only=True)


def _state_dict(content: object, file: Path) -> Mapping[str, Any]:
    """The state dict itself, from under the names that training scripts store it with."""
    for key in ("model", "state_dict"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping) or not content:
        raise WeightsError(f"{file} holds no weights; it should map tensor names to tensors.")
    return cast("Mapping[str, Any]", content)


def _float32(content: Mapping[str, Any]) -> dict[str, Any]:
    tensors = {str(name): value for name, value in content.items() if isinstance(value, Tensor)}
    return {name: value.float() if value.is_floating_point() else value for name, value in tensors.items()}


def _refuse_misfit(file: Path, wanted: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> None:
    """Raises WeightsError with the first name of each kind of misfit."""
    shapes = [n for n, t in wanted.items() if n in found and found[n].shape != t.shape]
    faults = [
        _fault("it lacks", [n for n in wanted if n not in found]),
        _fault("it has, and the network has not,", [n for n in found if n not in wanted]),
        *(f"{n} is {tuple(found[n].shape)} there and {tuple(wanted[n].shape)} in the network" for n in shapes[:1]),
    ]
    if any(faults):
        raise WeightsError(f"{file} is of another network: {'; '.join(filter(None, faults))}.")


def _fault(what: str, names: list[str]) -> str:
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return f"{what} {names[0]}{more}" if names else ""
