"""What is common to all backbones."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor
from torch.nn import functional as F

from peftbench.models.backbone import FEW_TOKENS, Network, choose_attention, locate


def network() -> Network:
    return locate("mini@random").build(0)


@pytest.fixture
def fused(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of tokens at each call of torch's fused attention."""
    calls: list[int] = []
    real = F.scaled_dot_product_attention

    def counted(query: Tensor, *others: Any, **options: Any) -> Tensor:
        calls.append(query.shape[2])
        return real(query, *others, **options)

    monkeypatch.setattr(F, "scaled_dot_product_attention", counted)
    return calls


def test_attention_in_steps_computes_the_same(fused: list[int]) -> None:
    torch.manual_seed(0)
    vit, images = network(), torch.randn(2, 3, 64, 64)
    before = vit(images)
    assert len(fused) == len(vit.blocks)
    choose_attention(vit, "cpu", torch.bfloat16)
    torch.testing.assert_close(vit(images), before, rtol=1e-5, atol=1e-5)
    assert len(fused) == len(vit.blocks)


@pytest.mark.parametrize(("device", "autocast"), [("cpu", None), ("cuda", torch.bfloat16)])
def test_attention_stays_fused_where_that_is_faster(
    fused: list[int], device: str, autocast: torch.dtype | None
) -> None:
    vit = network()
    choose_attention(vit, device, autocast)
    vit(torch.zeros(1, 3, 64, 64))
    assert len(fused) == len(vit.blocks)


def test_attention_of_many_tokens_stays_fused(fused: list[int]) -> None:
    vit = VisionTransformer(img_size=96, patch_size=8, embed_dim=16, depth=1, num_heads=2, num_classes=0)
    assert vit.patch_embed.num_patches > FEW_TOKENS
    choose_attention(vit, "cpu", torch.bfloat16)
    vit(torch.zeros(1, 3, 96, 96))
    assert fused == [145]
