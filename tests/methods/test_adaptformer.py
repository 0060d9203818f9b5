"""AdaptFormer: its branch in blocks of every kind, and what it refuses."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from timm.models.vision_transformer import ParallelScalingBlock, VisionTransformer
from torch import nn

from peftbench.errors import PluginError, RequestError
from peftbench.methods.adaptformer import AdaptFormer
from peftbench.models.method import NoProbe
from tests.networks import STYLES, batch, network


@pytest.mark.parametrize("style", STYLES)
def test_step_0_is_the_pretrained_model(style: str) -> None:
    vit, x = network(style), batch()[0]
    before = vit(x)
    AdaptFormer().plan(vit, NoProbe()).carry_out(vit)
    torch.testing.assert_close(vit(x), before, rtol=0, atol=1e-14)


@pytest.mark.parametrize("style", STYLES)
def test_the_branch_sees_the_sum_ahead_of_the_second_norm_and_passes_no_layer_scale(style: str) -> None:
    vit, plain = network(style), network(style).eval()
    tensors = AdaptFormer(bottleneck=4, scale=0.3).plan(vit, NoProbe()).carry_out(vit).tensors
    with torch.no_grad():
        for tensor in tensors.values():
            tensor.normal_()
        x = torch.randn(2, 17, 32, dtype=torch.float64)
        block: Any = plain.blocks[1]
        middle = x + block.ls1(block.attn(block.norm1(x)))
        down, up = (
            partial(
                torch.nn.functional.linear,
                weight=tensors[f"graft/blocks.1/{name}.weight"],
                bias=tensors[f"graft/blocks.1/{name}.bias"],
            )
            for name in ("down", "up")
        )
        expected = middle + block.ls2(block.mlp(block.norm2(middle))) + 0.3 * up(down(middle).relu())
        torch.testing.assert_close(vit.eval().get_submodule("blocks.1")(x), expected, rtol=1e-12, atol=1e-12)


def test_drop_path_spares_the_branch() -> None:
    vit = VisionTransformer(img_size=32, patch_size=8, embed_dim=32, depth=1, num_heads=2, drop_path_rate=0.0)
    tensors = AdaptFormer(bottleneck=4, dropout=0).plan(vit, NoProbe()).carry_out(vit).tensors
    with torch.no_grad():
        for tensor in tensors.values():
            tensor.normal_()
    block: Any = vit.blocks[0]
    block.base.drop_path1 = block.base.drop_path2 = nn.Dropout(1.0)  # as if every branch were dropped
    x = torch.randn(2, 17, 32)
    torch.testing.assert_close(block(x), x + 0.1 * block.up(block.down(x).relu()))


def test_dropout_acts_in_training_only() -> None:
    vit, x = network(), batch()[0]
    tensors = AdaptFormer(dropout=0.5).plan(vit, NoProbe()).carry_out(vit).tensors
    with torch.no_grad():
        for tensor in tensors.values():
            tensor.normal_()
    assert not torch.allclose(vit.train()(x), vit(x))
    torch.testing.assert_close(vit.eval()(x), vit(x))


def test_a_mask_reaches_attention() -> None:
    vit, x = network().eval(), batch()[0]
    mask = torch.zeros(17, 17, dtype=torch.float64).masked_fill_(torch.ones(17, 17).triu(1).bool(), -1e9)
    before = vit.forward_features(x, attn_mask=mask)
    assert not torch.allclose(before, vit.forward_features(x))
    AdaptFormer().plan(vit, NoProbe()).carry_out(vit)
    torch.testing.assert_close(vit.forward_features(x, attn_mask=mask), before)


def test_a_block_of_another_kind_is_refused() -> None:
    vit = VisionTransformer(
        img_size=32, patch_size=8, embed_dim=32, depth=1, num_heads=2, block_fn=ParallelScalingBlock
    )
    with pytest.raises(PluginError, match="adaptformer supports timm's Block and EvaBlock, not Par"):
        AdaptFormer().plan(vit, NoProbe()).carry_out(vit)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"bottleneck": 0}, "bottleneck must be at least 1"),
        ({"scale": 0.0}, "scale must not be 0"),
        ({"scale": float("nan")}, "scale must be a finite number"),
        ({"dropout": 1.0}, "dropout must be below 1"),
    ],
)
def test_what_cannot_be_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        AdaptFormer(**fields)
