"""What a training step holds and computes, counted: bytes by kind, and floating-point operations an image.

The pass that is counted runs on fake tensors: shapes, storages and kernels without values. It takes no memory, reads no
weight and draws no random number, so a job's bits are the same whether its cost is counted or not.
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
from peftbench.models import sparse


def _attention(query: torch.Size, key: torch.Size, value: torch.Size, *_: object, **__: object) -> int:
    return int(sdpa_flop_count(query, key, value))


def _attention_backward(
    out: torch.Size, query: torch.Size, key: torch.Size, value: torch.Size, *_: object, **__: object
) -> int:
    return int(sdpa_backward_flop_count(out, query, key, value))


_OURS = MappingProxyType(
    {
        torch.ops.peftbench.sampled: sparse.sampled_flops,
        # These two are not counted by torch 2.11 itself.
        torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention,  # noqa: SLF001
        torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,  # noqa: SLF001
    }
)
_STEP_COUNTER = 4  # bytes: AdamW counts the steps of each tensor in a float32


@dataclass(frozen=True)
class Passes:
    """One forward and backward pass over a batch, counted.

    A multiply-add is two operations; matrix products, convolutions and attention are counted (fused attention with what
    its backward computes anew), sums and activation functions are not: torch.utils.flop_counter.
    """

    images: int
    activations: int  # bytes that forward keeps for backward, casts of weights among them, weights and input not
    forward: float  # FLOPs an image
    both: float  # FLOPs an image, backward included


@dataclass(frozen=True)
class Alone:
    """A head that trains on stored features while the network rests."""

    head: nn.Module
    batch: tuple[int, ...]  # shape of its input: (B, D)


@dataclass(frozen=True)
class Counted:
    """What the record of a job says of its training step."""

    memory: Memory
    forward: float  # FLOPs of an image through the whole network, as when predicting
    training: float  # FLOPs of an image in a training step, forward and backward
    stored: bool = False  # the step saw stored features


def count(
    model: nn.Module,
    images: Sequence[int],
    recipe: Recipe,
    device: str = "cpu",
    autocast: torch.dtype | None = None,
    pixels: int = 0,
    alone: Alone | None = None,
) -> Counted:
    """The cost of a step on a batch of the shape `images` (B, 3, H, W); `pixels`: bytes of the images themselves.

    The model may lie on the meta device; then nothing is allocated.
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
    """Count one pass in training mode; nothing of the model changes.

    A method whose forward looks at values cannot be faked: it computes in earnest, on a few random images.
    """
    was = model.training
    model.train()
    try:
        return _faked(model, batch, device, autocast)
    except Exception:
        if any(p.is_meta for p in model.parameters()):
            raise
        return _in_earnest(model, batch, device, autocast)
    finally:
        model.train(was)


def _faked(model: nn.Module, batch: Sequence[int], device: str, autocast: torch.dtype | None) -> Passes:
    with FakeTensorMode(allow_non_fake_inputs=True):
        fakes = {name: _like(tensor, device) for name, tensor in _tensors(model).items()}
        return _run(model, fakes, torch.empty(tuple(batch), device=device), autocast)


def _like(tensor: Tensor, device: str) -> Tensor:
    fake = torch.empty_strided(tensor.size(), tensor.stride(), dtype=tensor.dtype, device=device)
    return fake.requires_grad_(tensor.requires_grad)


def _in_earnest(model: nn.Module, batch: Sequence[int], device: str, autocast: torch.dtype | None) -> Passes:
    """From passes over two and over three images: what a batch costs grows by the same with each image."""
    images, *shape = batch
    with torch.random.fork_rng(range(torch.cuda.device_count()) if device == "cuda" else ()):
        two, three = (_real(model, (few, *shape), device, autocast) for few in (2, 3))

    def grown(get: Callable[[Passes], float]) -> float:
        return get(two) + (images - 2) * (get(three) - get(two))

    whole = (grown(lambda found: found.forward * found.images), grown(lambda found: found.both * found.images))
    return Passes(images, round(grown(lambda found: found.activations)), *(flops / images for flops in whole))


def _real(model: nn.Module, batch: Sequence[int], device: str, autocast: torch.dtype | None) -> Passes:
    trainable = dict(model.named_parameters())
    copies = {name: t if name in trainable else t.clone() for name, t in _tensors(model).items()}
    return _run(model, copies, torch.randn(tuple(batch), device=device), autocast)


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def _run(model: nn.Module, tensors: Mapping[str, Tensor], inputs: Tensor, autocast: torch.dtype | None) -> Passes:
    """Forward and backward of the summed output, with `tensors` in the places of the model's own."""
    trained = [t for t in tensors.values() if t.requires_grad]
    amp = torch.autocast(inputs.device.type, autocast) if autocast else nullcontext()
    with (
        FlopCounterMode(display=False, custom_mapping=dict(_OURS)) as flops,
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
    """Fills with the bytes of every storage, but those of `known`, that is kept for backward, each once."""
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
    """Of all storages behind some tensors, each once; on the meta device, those it would have."""
    storages = {StorageWeakRef(s): s.nbytes() for s in (tensor.untyped_storage() for tensor in tensors)}
    return sum(storages.values())


def optimizer_bytes(trained: Iterable[Tensor], recipe: Recipe) -> int:
    """AdamW: two moments and a step counter a tensor; SGD: the momentum, if it has one."""
    sizes = [tensor.nbytes for tensor in trained]
    if recipe.optimizer == "adamw":
        return 2 * sum(sizes) + _STEP_COUNTER * len(sizes)
    return sum(sizes) if recipe.momentum else 0


def batch_bytes(batch: Sequence[int]) -> int:
    """A float32 batch and, of images (B, 3, H, W), the uint8 batch that it was made from."""
    images = len(batch) == 4  # noqa: PLR2004
    return math.prod(batch) * (5 if images else 4)


def mapped_bytes(file: Path) -> int:
    """How much of a memory-mapped file lies in this process's memory; all of it where the system does not tell.

    Several mappings of one file share their pages, so it is never more than the file.
    """
    size = file.stat().st_size
    try:
        maps = psutil.Process().memory_maps()
    except (AttributeError, OSError, psutil.Error):  # AttributeError: macOS has none
        return size
    return min(size, sum(int(found.rss) for found in maps if found.path == str(file.resolve())))
