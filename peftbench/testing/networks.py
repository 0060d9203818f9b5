"""Three tiny vision transformers of timm, of the kinds that matter to methods, and images for them.

All have 32 px images, patches of 8 px, width 32, 2 blocks of 2 heads: 17 tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from copy import deepcopy
from functools import lru_cache, partial
from io import BytesIO
from pickle import HIGHEST_PROTOCOL, Pickler, Unpickler
from typing import Any

import numpy as np
import torch
from timm.layers.norm import LayerNorm
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from peftbench.head import Classifier, Head

CLASSES = 3
STYLES: dict[str, dict[str, Any]] = {
    "plain": {},
    # a norm before the first block, no bias in the patch convolution, quick GELU
    "clip": {"pre_norm": True, "norm_layer": partial(LayerNorm, eps=1e-5), "act_layer": "quick_gelu"},
    "dinov2": {"init_values": 0.5},  # layer scale
}


def classifier(style: str) -> Classifier:
    """A new one in float32, the same each time, no tensor of its backbone all zeros or ones."""
    model: Classifier = _mould(style).cast()
    return model


class Mould:
    """A module to make copies of: seven times as fast as `deepcopy`, and a check of one method takes sixty."""

    def __init__(self, module: nn.Module) -> None:
        file = BytesIO()
        writer = _Writer(file, HIGHEST_PROTOCOL)
        writer.dump(module)
        self._rest, self._tensors = file.getvalue(), writer.tensors

    def cast(self) -> Any:  # noqa: ANN401 - what it was made from
        """A copy that shares no tensor with it."""
        reader = _Reader(BytesIO(self._rest))
        reader.tensors = self._tensors
        return reader.load()


class _Writer(Pickler):
    """Leaves tensors out, of which pickle makes files of their own."""

    def __init__(self, file: BytesIO, protocol: int) -> None:
        super().__init__(file, protocol)
        self.tensors: list[Tensor] = []

    def persistent_id(self, obj: object) -> int | None:
        """A tensor's number."""
        if not isinstance(obj, Tensor):
            return None
        self.tensors.append(obj)
        return len(self.tensors) - 1


class _Reader(Unpickler):
    """Puts copies of them in again."""

    tensors: Sequence[Tensor] = ()

    def persistent_load(self, pid: int) -> Tensor:
        """A copy of the tensor of this number."""
        return deepcopy(self.tensors[pid])


@lru_cache
def _mould(style: str) -> Mould:
    return Mould(_classifier(style))


def _classifier(style: str) -> Classifier:
    with torch.random.fork_rng(devices=[]):
        vit = VisionTransformer(
            img_size=32, patch_size=8, embed_dim=32, depth=2, num_heads=2, num_classes=0, **STYLES[style]
        )
    draw = np.random.default_rng(0)
    for name, parameter in vit.named_parameters():
        offset = 1.0 if name.endswith("weight") and parameter.dim() == 1 else 0.0
        values = offset + 0.15 * draw.standard_normal(tuple(parameter.shape))
        parameter.data = torch.from_numpy(values.astype(np.float32))
    return Classifier(vit, Head(32, CLASSES, "plain", 1.0, seed=0))


def batch(images: int = 8, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Images (n, 3, 32, 32) in float32 and labels (n,)."""
    draw = np.random.default_rng([seed, images])
    x = torch.from_numpy(draw.standard_normal((images, 3, 32, 32)).astype(np.float32))
    return x, torch.from_numpy(draw.integers(CLASSES, size=images))


def batches() -> Iterator[tuple[Tensor, Tensor]]:
    """What a probe sees: three batches, the last one smaller."""
    return (batch(images, seed) for seed, images in enumerate((8, 8, 5), start=1))
