"""Three tiny vision transformers of timm, with the differences that matter to methods, and images for them.

All have 32 px images, patches of 8 px, width 32, 2 blocks of 2 heads: 17 tokens.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from timm.layers.norm import LayerNorm
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from peftbench.models.head import Classifier, Head

CLASSES = 3
STYLES: dict[str, dict[str, Any]] = {
    "plain": {},
    # a norm before the first block, no bias in the patch convolution, quick GELU
    "clip": {"pre_norm": True, "norm_layer": partial(LayerNorm, eps=1e-5), "act_layer": "quick_gelu"},
    "dinov2": {"init_values": 0.5},  # layer scale
}


def classifier(style: str) -> Classifier:
    """Return a new classifier in float32, the same at each call; no backbone tensor is all zeros or ones."""
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
    """Return images (n, 3, 32, 32) in float32 and labels (n,)."""
    draw = np.random.default_rng([seed, images])
    x = torch.from_numpy(draw.standard_normal((images, 3, 32, 32)).astype(np.float32))
    return x, torch.from_numpy(draw.integers(CLASSES, size=images))


def batches() -> Iterator[tuple[Tensor, Tensor]]:
    """Yield three batches for a probe, the last one smaller."""
    return (batch(images, seed) for seed, images in enumerate((8, 8, 5), start=1))
