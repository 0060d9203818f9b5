"""Count what a training step holds and computes: bytes by kind, and floating-point operations per image.

The counted pass runs on fake tensors, which have shapes and storages but no values. It takes no memory, reads no weight
and draws no random number, so a job's bits do not depend on whether its cost is counted.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import psutil
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from peftbench.core.recipe import Recipe
from peftbench.core.record import Memory
from peftbench.models import sparse_product


def _attention(query: torch.Size, key: torch.Size, value: torch.Size, *_: object, **__: object) -> int:
    return int(sdpa_flop_count(query, key, value))


def _attention_backward(
    out: torch.Size, query: torch.Size, key: torch.Size, value: torch.Size, *_: object, **__: object
) -> int:
    return int(sdpa_backward_flop_count(out, query, key, value))


_FLOPS = MappingProxyType(
    {
        torch.ops.peftbench.sampled: sparse_product.sampled_flops,
        # These two are not counted by torch 2.11 itself.
        torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention,  # noqa: SLF001
        torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,  # noqa: SLF001
    }
)
_STEP_COUNTER = 4  # bytes: AdamW counts the steps of each tensor in a float32


@dataclass(frozen=True)
class Passes:
    """One forward and backward pass over a batch, counted.

    A multiply-add is two operations. Matrix products, convolutions and attention are counted (fused attention with what
    its backward recomputes), sums and activation functions are not: see torch.utils.flop_counter.
    """

    images: int
    activations: int  # bytes that forward keeps for backward, with casts of weights, without weights and input
    forward: float  # FLOPs an image
    both: float  # FLOPs an image, backward included


@dataclass(frozen=True)
class Alone:
    """A head that trains on stored features, without the backbone."""

    head: nn.Module
    batch: tuple[int, ...]  # shape of its input: (B, D)


@dataclass(frozen=True)
class Counted:
    """The counted cost of a training step."""

    memory: Memory
    forward: float  # FLOPs of an image through the whole network, as in prediction
    training: float  # FLOPs of an image in a training step, forward and backward
    stored: bool = False  # the step runs on stored features


def count(
    model: nn.Module,
    images: Sequence[int],
    recipe: Recipe,
    device: str = "cpu",
    autocast: torch.dtype | None = None,
    pixels: int = 0,
    alone: Alone | None = None,
) -> Counted:
    """Count the cost of a step on a batch of the shape `images` (B, 3, H, W); `pixels` are the images' own bytes.

    The model may be on the meta device; nothing is allocated then.
    """
    learner = alone.head if alone else model
    trained = [p for p in learner.parameters() if p.requires_grad]
    whole = passes(model, images, device, autocast)
    step = passes(alone.head, alone.batch, device, autocast) if alone else whole
    memory = Memory(
        weights=storage_bytes(_tensors(model).values()),
        gradients=sum(p.nbytes for p in trained),
        optimizer=optimizer_bytes(trained, recipe),
        activations=step.activations,
        pixels=pixels,
    )
    return Counted(memory, whole.forward, step.both, alone is not None)


def passes(model: nn.Module, batch: Sequence[int], device: str = "cpu", autocast: torch.dtype | None = None) -> Passes:
    """Count one pass in training mode; the model does not change.

    A method whose forward depends on values cannot run on fake tensors; it runs on a few random images instead.
    """
    was_training = model.training
    model.train()
    try:
        return _on_fake_tensors(model, batch, device, autocast)
    except Exception:
        if any(p.is_meta for p in model.parameters()):
            raise
        return _on_random_images(model, batch, device, autocast)
    finally:
        model.train(was_training)


def _on_fake_tensors(model: nn.Module, batch: Sequence[int], device: str, autocast: torch.dtype | None) -> Passes:
    with FakeTensorMode(allow_non_fake_inputs=True):
        fakes = {name: _like(tensor, device) for name, tensor in _tensors(model).items()}
        return _run(model, fakes, torch.empty(tuple(batch), device=device), autocast)


def _like(tensor: Tensor, device: str) -> Tensor:
    fake = torch.empty_strided(tensor.size(), tensor.stride(), dtype=tensor.dtype, device=device)
    return fake.requires_grad_(tensor.requires_grad)


def _on_random_images(model: nn.Module, batch: Sequence[int], device: str, autocast: torch.dtype | None) -> Passes:
    """Extrapolate from passes over two and over three images, as costs are linear in the number of images."""
    images, *shape = batch
    with torch.random.fork_rng(range(torch.cuda.device_count()) if device == "cuda" else ()):
        two, three = (_pass_on_copies(model, (few, *shape), device, autocast) for few in (2, 3))

    def extrapolated(get: Callable[[Passes], float]) -> float:
        return get(two) + (images - 2) * (get(three) - get(two))

    whole = (
        extrapolated(lambda found: found.forward * found.images),
        extrapolated(lambda found: found.both * found.images),
    )
    return Passes(images, round(extrapolated(lambda found: found.activations)), *(flops / images for flops in whole))


def _pass_on_copies(model: nn.Module, batch: Sequence[int], device: str, autocast: torch.dtype | None) -> Passes:
    trainable = dict(model.named_parameters())
    copies = {name: t if name in trainable else t.clone() for name, t in _tensors(model).items()}
    return _run(model, copies, torch.randn(tuple(batch), device=device), autocast)


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def _run(model: nn.Module, tensors: Mapping[str, Tensor], inputs: Tensor, autocast: torch.dtype | None) -> Passes:
    """Run forward and backward of the summed output, with `tensors` in place of the model's own."""
    trained = [t for t in tensors.values() if t.requires_grad]
    amp = torch.autocast(inputs.device.type, autocast) if autocast else nullcontext()
    with (
        FlopCounterMode(display=False, custom_mapping=dict(_FLOPS)) as flops,
        _saved([inputs, *tensors.values()]) as saved,
    ):
        with amp:
            out: Tensor = torch.func.functional_call(model, dict(tensors), (inputs,))
        forward = flops.get_total_flops()
        if out.requires_grad:
            torch.autograd.grad(out.float().sum(), trained, allow_unused=True)
        both = flops.get_total_flops()
    return Passes(len(inputs), sum(saved.values()), forward / len(inputs), both / len(inputs))


@contextmanager
def _saved(known: Iterable[Tensor]) -> Iterator[dict[StorageWeakRef, int]]:
    """Yield a dict that fills with the bytes of every storage kept for backward, each once, without `known`."""
    others = {StorageWeakRef(tensor.untyped_storage()) for tensor in known}
    saved: dict[StorageWeakRef, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if (key := StorageWeakRef(storage)) not in others:
            saved[key] = storage.nbytes()
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        yield saved


# --- bytes -----------------------------------------------------------------------------------------------------------


def storage_bytes(tensors: Iterable[Tensor]) -> int:
    """Return the bytes of the storages of some tensors, each once; on the meta device, as if they were allocated."""
    storages = {StorageWeakRef(s): s.nbytes() for s in (tensor.untyped_storage() for tensor in tensors)}
    return sum(storages.values())


def optimizer_bytes(trained: Iterable[Tensor], recipe: Recipe) -> int:
    """Return the bytes of AdamW's two moments and its step counter per tensor, or of SGD's momentum, if any."""
    sizes = [tensor.nbytes for tensor in trained]
    if recipe.optimizer == "adamw":
        return 2 * sum(sizes) + _STEP_COUNTER * len(sizes)
    return sum(sizes) if recipe.momentum else 0


def batch_bytes(batch: Sequence[int]) -> int:
    """Return the bytes of a float32 batch and, for images (B, 3, H, W), of the uint8 batch that it is made from."""
    images = len(batch) == 4  # noqa: PLR2004
    return math.prod(batch) * (5 if images else 4)


def mapped_bytes(file: Path) -> int:
    """Return the bytes of a memory-mapped file in this process's memory; all of it where the system has no maps.

    Several mappings of one file share their pages, so it is at most the size of the file.
    """
    size = file.stat().st_size
    try:
        maps = psutil.Process().memory_maps()
    except (AttributeError, OSError, psutil.Error):  # AttributeError: macOS has none
        return size
    return min(size, sum(int(found.rss) for found in maps if found.path == str(file.resolve())))
