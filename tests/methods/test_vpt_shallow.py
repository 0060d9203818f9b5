"""VPT-Shallow against an independent forward pass."""

from __future__ import annotations

from typing import Any, Literal

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from peftbench.errors import RequestError
from peftbench.methods.vpt_shallow import VPTShallow
from peftbench.models.method import NoProbe
from tests.networks import STYLES, batch, network


def tokens_before_the_blocks(vit: VisionTransformer, x: Tensor) -> Tensor:
    tokens: Tensor = vit.patch_drop(vit._pos_embed(vit.patch_embed(x)))
    return tokens


def carried_out(method: VPTShallow, style: str) -> tuple[VisionTransformer, Tensor]:
    """The prompted network and its prompts."""
    vit = network(style)
    tuned = method.plan(vit, NoProbe()).carry_out(vit)
    (prompt,) = tuned.tensors.values()
    return vit.eval(), prompt.detach()


@pytest.mark.parametrize("pool", ["token", "avg"])
@pytest.mark.parametrize("before", [False, True])
@pytest.mark.parametrize("style", STYLES)
def test_the_prompts_go_with_the_tokens_through_all_blocks_and_not_into_the_pooling(
    style: str, pool: Literal["token", "avg"], *, before: bool
) -> None:
    vit, prompt = carried_out(VPTShallow(tokens=3, before_norm_pre=before), style)
    vit.global_pool = pool
    plain, (x, _) = network(style).eval(), batch()
    with torch.no_grad():
        own, prompts = tokens_before_the_blocks(plain, x), prompt.expand(len(x), -1, -1)
        if before:
            tokens = plain.norm_pre(torch.cat([own, prompts], dim=1))
        else:
            tokens = torch.cat([plain.norm_pre(own), prompts], dim=1)
        after = plain.norm(
            plain.blocks(tokens)[:, : own.shape[1]]
        )  # the place of a prompt does not matter to attention
        expected = after[:, 0] if pool == "token" else after[:, 1:].mean(dim=1)
        torch.testing.assert_close(vit(x), expected, rtol=1e-10, atol=1e-10)


def test_prompts_are_inserted_after_the_class_token_and_removed_from_there() -> None:
    vit, prompt = carried_out(VPTShallow(tokens=3), "plain")
    seen: list[Tensor] = []
    vit.blocks[1].register_forward_pre_hook(lambda _module, given: seen.append(given[0]))
    joined: list[Tensor] = []
    vit.get_submodule("blocks.0.base").register_forward_pre_hook(lambda _module, given: joined.append(given[0]))
    x = batch()[0]
    assert vit.forward_features(x).shape == (8, 17, 32)
    assert seen[0].shape == (8, 20, 32)
    assert torch.equal(joined[0][:, 1:4], prompt.expand(8, -1, -1))


def test_a_single_block_lets_them_in_and_out() -> None:
    vit = network()
    vit.blocks = vit.blocks[:1]
    plan = VPTShallow().plan(vit, NoProbe())
    assert plan.count(vit) == 5 * 32
    plan.carry_out(vit)
    assert vit.forward_features(batch()[0]).shape == (8, 17, 32)


def test_prompts_are_drawn_over_the_fan_in_of_a_patch() -> None:
    _, prompt = carried_out(VPTShallow(tokens=200), "plain")
    reach = (6 / (3 * 8 * 8 + 32)) ** 0.5
    assert 0.98 * reach < prompt.abs().max().item() <= reach


def test_dropout_acts_on_prompts_of_each_image_in_training_only() -> None:
    vit, _ = carried_out(VPTShallow(tokens=50, dropout=0.5), "plain")
    x = batch(1)[0].repeat(2, 1, 1, 1)
    one, other = vit.train()(x)
    assert not torch.allclose(one, other)
    one, other = vit.eval()(x)
    torch.testing.assert_close(one, other)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"tokens": 0}, "tokens must be at least 1"),
        ({"tokens": 8193}, "tokens must be at most 8192, got 8193"),
        ({"dropout": 1.0}, "dropout must be below 1"),
    ],
)
def test_what_cannot_be_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        VPTShallow(**fields)
