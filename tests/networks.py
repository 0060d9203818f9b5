"""Tiny vision transformers of the three kinds that matter, their data, and a plain training loop to compare with.

All have 32 px images, patches of 8, width 32, 2 blocks of 2 heads: 17 tokens.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any, cast

import numpy as np
import torch
from timm.layers.norm import LayerNorm
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from peftbench.models.head import Classifier, Head
from peftbench.models.method import Method, NoProbe
from peftbench.models.plan import Tuned

CLASSES = 3
STYLES = ("plain", "clip", "dinov2")
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    # a norm before the first block, no bias in the patch convolution, quick GELU
    "clip": {"pre_norm": True, "norm_layer": partial(LayerNorm, eps=1e-5), "act_layer": "quick_gelu"},
    "dinov2": {"init_values": 0.5},  # layer scale
}


def network(style: str = "plain", dtype: torch.dtype = torch.float64, seed: int = 0) -> VisionTransformer:
    """A network without head whose tensors are all different from zero and from one."""
    size: dict[str, Any] = {
        "img_size": 32,
        "patch_size": 8,
        "embed_dim": 32,
        "depth": 2,
        "num_heads": 2,
        "num_classes": 0,
    }
    vit = VisionTransformer(**size, **OPTIONS[style])
    draw = np.random.default_rng(seed)
    for name, parameter in vit.named_parameters():
        offset = 1.0 if name.endswith("weight") and parameter.dim() == 1 else 0.0
        values = offset + 0.15 * draw.standard_normal(tuple(parameter.shape))
        parameter.data = torch.from_numpy(values.astype(np.float32)).to(dtype)
    return vit


def classifier(style: str = "plain", dtype: torch.dtype = torch.float64, kind: str = "plain") -> Classifier:
    """The network with a head of three classes."""
    return Classifier(network(style, dtype), Head(32, CLASSES, kind, 1.0, seed=0).to(dtype))


def batch(images: int = 8, dtype: torch.dtype = torch.float64, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Images (n, 3, 32, 32) and labels (n,)."""
    draw = np.random.default_rng([seed, images])
    x = torch.from_numpy(draw.standard_normal((images, 3, 32, 32))).to(dtype)
    return x, torch.from_numpy(draw.integers(CLASSES, size=images))


def batches(dtype: torch.dtype = torch.float64) -> Iterator[tuple[Tensor, Tensor]]:
    """Four batches of 8, 8, 8 and 5 images."""
    return (batch(images, dtype, seed) for seed, images in enumerate((8, 8, 8, 5), start=1))


def values(module: nn.Module) -> dict[str, Tensor]:
    """A copy of every tensor by name."""
    return {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}


def blank(name: str) -> VisionTransformer:
    """A network of timm on the meta device: shapes without values."""
    import timm  # noqa: PLC0415 - a second that most tests need not wait for

    with torch.device("meta"):
        return cast("VisionTransformer", timm.create_model(name, num_classes=0))


def randomly_tuned(method: Method, style: str = "plain") -> tuple[Any, Tuned, dict[str, Tensor]]:
    """A network with the method's adapters, all their tensors random; its tensors by name."""
    vit = network(style)
    tuned = method.plan(vit, NoProbe()).carry_out(vit)
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for tensor in tuned.tensors.values():
            tensor.copy_(0.3 * torch.randn(tensor.shape, generator=draw, dtype=tensor.dtype))
    return vit.eval(), tuned, dict(tuned.tensors)


def assert_merges_exactly(method: Method, style: str) -> None:
    """A randomly tuned network computes the same before and after it is merged into plain weights."""
    vit, tuned, _ = randomly_tuned(method, style)
    x = batch()[0]
    unmerged = vit(x)
    assert not torch.allclose(unmerged, network(style).eval()(x), atol=1e-3)
    assert tuned.merge()
    torch.testing.assert_close(vit(x), unmerged, rtol=1e-10, atol=1e-10)
    network(style).load_state_dict(vit.state_dict(), strict=True)
