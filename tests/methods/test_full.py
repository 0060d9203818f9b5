"""Full fine-tuning: layer-wise learning-rate decay and stochastic depth."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from timm.models.vision_transformer import ParallelScalingBlock, VisionTransformer

from peftbench.errors import RequestError
from peftbench.methods.full import Full
from peftbench.models.method import NoProbe
from tests.networks import STYLES, batch, blank, network


@pytest.mark.parametrize("style", STYLES)
def test_layers_learn_slower_the_deeper_they_lie(style: str) -> None:
    """Two blocks: embeddings at d^3, the first block at d^2, the second at d, the last norm at the rate itself."""
    vit = network(style)
    plan = Full(layer_decay=0.5).plan(vit, NoProbe())
    assert plan.tune == plan.lr_multipliers.keys() == {name for name, _ in vit.named_parameters()}
    found = {name: plan.lr_multipliers[name] for name in plan.tune}
    expected = {"blocks.0.": 0.25, "blocks.1.": 0.5, "norm.": 1.0}
    for name, multiplier in found.items():
        assert multiplier == next((v for start, v in expected.items() if name.startswith(start)), 0.125), name
    assert {"cls_token", "pos_embed", "patch_embed.proj.weight"} <= found.keys()


def test_the_multipliers_of_vit_b_are_those_of_mae() -> None:
    """0.75^(13 - layer): layer 0 the embeddings, 1 to 12 the blocks, 13 the norm."""
    multipliers = Full(layer_decay=0.75).plan(blank("vit_base_patch16_224"), NoProbe()).lr_multipliers
    assert multipliers["pos_embed"] == pytest.approx(0.75**13)
    assert multipliers["blocks.0.mlp.fc1.bias"] == pytest.approx(0.75**12)
    assert multipliers["blocks.11.attn.qkv.weight"] == pytest.approx(0.75)
    assert multipliers["norm.weight"] == 1


def test_without_options_the_plan_is_the_tensors_alone() -> None:
    plan = Full().plan(network(), NoProbe())
    assert not plan.lr_multipliers
    assert not plan.grafts


def test_rates_of_stochastic_depth_grow_from_block_to_block() -> None:
    plan = Full(drop_path=0.2).plan(blank("vit_base_patch16_224"), NoProbe())
    rates = {name: sizes["rate"] for name, (_, sizes) in plan.grafts.items()}
    assert rates.keys() == {f"blocks.{i}.drop_path{b}" for i in range(1, 12) for b in (1, 2)}
    assert [rates[f"blocks.{i}.drop_path1"] for i in range(1, 12)] == pytest.approx(
        [0.2 * i / 11 for i in range(1, 12)]
    )
    assert plan.count(blank("vit_base_patch16_224")) == 85_798_656


@pytest.mark.parametrize("style", STYLES)
def test_stochastic_depth_acts_in_training_only_and_leaves_no_trace(style: str) -> None:
    vit, x = network(style), batch(64)[0]
    before = network(style).eval()(x)
    tuned = Full(drop_path=0.9).plan(vit, NoProbe()).carry_out(vit)
    torch.testing.assert_close(vit.eval()(x), before, rtol=0, atol=0)
    assert not torch.allclose(vit.train()(x), before)
    assert tuned.merge()
    assert {n for n, _ in vit.named_modules()} == {n for n, _ in network(style).named_modules()}


def test_an_image_is_dropped_with_the_rate_and_the_others_are_scaled_up() -> None:
    vit: Any = network()
    Full(drop_path=0.75).plan(vit, NoProbe()).carry_out(vit)
    torch.manual_seed(0)
    branch = vit.blocks[1].drop_path1.train()(torch.ones(4000, 1, 1))
    assert set(branch.flatten().tolist()) == {0.0, 4.0}
    assert branch.mean().item() == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"layer_decay": 0.0}, "full: layer_decay must be above 0, got 0"),
        ({"layer_decay": 1.1}, "full: layer_decay must be at most 1"),
        ({"drop_path": 1.0}, "full: drop_path must be below 1"),
    ],
)
def test_what_cannot_be_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        Full(**fields)


def test_blocks_without_branches_to_drop_are_refused() -> None:
    vit = VisionTransformer(
        img_size=32, patch_size=8, embed_dim=32, depth=2, num_heads=2, block_fn=ParallelScalingBlock
    )
    with pytest.raises(RequestError, match="full: drop_path must be 0 for this network"):
        Full(drop_path=0.1).plan(vit, NoProbe())
