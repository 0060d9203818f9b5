"""VPT-Deep against an independent forward pass."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from peftbench.methods.vpt_deep import VPTDeep
from peftbench.models.method import NoProbe
from tests.methods.test_vpt_shallow import tokens_before_the_blocks
from tests.networks import STYLES, batch, network


@pytest.mark.parametrize("before", [False, True])
@pytest.mark.parametrize("style", STYLES)
def test_fresh_prompts_replace_those_of_the_block_before(style: str, *, before: bool) -> None:
    vit, plain, (x, _) = network(style), network(style).eval(), batch()
    tensors = VPTDeep(tokens=3, before_norm_pre=before).plan(vit, NoProbe()).carry_out(vit).tensors
    first, second = (
        tensors[f"graft/{site}/prompt"].detach().expand(len(x), -1, -1)
        for site in ("norm_pre" if before else "blocks.0", "blocks.1")
    )
    with torch.no_grad():
        own = tokens_before_the_blocks(plain, x)
        count = own.shape[1]
        both = plain.norm_pre(torch.cat([own, first], dim=1)) if before else None
        tokens: Tensor = torch.cat([plain.norm_pre(own), first], dim=1) if both is None else both
        after_first = plain.blocks[0](tokens)[:, :count]
        after_second = plain.blocks[1](torch.cat([after_first, second], dim=1))[:, :count]
        torch.testing.assert_close(vit.eval()(x), plain.norm(after_second)[:, 0], rtol=1e-10, atol=1e-10)


def test_what_lies_between_the_blocks_is_the_images_own() -> None:
    """Intermediate features, as timm offers them, hold no prompts."""
    vit = network()
    VPTDeep().plan(vit, NoProbe()).carry_out(vit)
    maps: Any = vit.forward_intermediates(batch()[0], intermediates_only=True)
    assert [m.shape for m in maps] == [(8, 32, 4, 4)] * 2


def test_gradient_checkpointing_changes_nothing() -> None:
    vit, x = network(), batch()[0]
    VPTDeep().plan(vit, NoProbe()).carry_out(vit)
    before = vit.eval()(x)
    vit.set_grad_checkpointing()
    torch.testing.assert_close(vit(x), before)
