"""Prefix tuning and attention pooling against attention written out."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from peftbench.errors import PluginError, RequestError
from peftbench.methods.attention_pooling import AttentionPooling
from peftbench.methods.prefix_tuning import PrefixTuning
from peftbench.models.method import NoProbe
from tests.networks import STYLES, batch, network

EXACT: dict[str, Any] = {"rtol": 1e-10, "atol": 1e-10}
HEADS, OF_HEAD = 2, 16


def heads(x: Tensor) -> Tensor:
    """(..., N, D) -> (..., H, N, d)."""
    split: Tensor = x.unflatten(-1, (HEADS, OF_HEAD))
    return split.transpose(-2, -3)


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Queries, keys and values (..., N, D) -> (..., N, D)."""
    weights = (heads(q) @ heads(k).transpose(-1, -2) / OF_HEAD**0.5).softmax(-1)
    mixed: Tensor = weights @ heads(v)
    return mixed.transpose(-2, -3).flatten(-2)


@pytest.mark.parametrize("style", STYLES)
def test_prefixes_are_keys_and_values_ahead_of_the_tokens(style: str) -> None:
    vit: Any = network(style)
    tensors = PrefixTuning(length=3, std=1.0).plan(vit, NoProbe()).carry_out(vit).tensors
    keys, values = (tensors[f"graft/blocks.0.attn/{name}"] for name in ("keys", "values"))
    plain: Any = network(style).blocks[0].attn
    x = torch.randn(2, 17, 32, dtype=torch.float64)
    q, k, v = plain.qkv(x).chunk(3, -1)
    k, v = (torch.cat([prefix.expand(2, -1, -1), t], 1) for prefix, t in ((keys, k), (values, v)))
    torch.testing.assert_close(vit.blocks[0].attn(x), plain.proj(attend(q, k, v)), **EXACT)


def test_without_weight_on_the_prefixes_attention_is_the_pretrained_one() -> None:
    """Keys that no query likes."""
    vit: Any = network()
    plain: Any = network().blocks[0].attn
    tuned = PrefixTuning(length=4).plan(vit, NoProbe()).carry_out(vit)
    x = torch.randn(1, 17, 32, dtype=torch.float64)
    q = plain.qkv(x)[0, 0, :32]
    with torch.no_grad():
        tuned.tensors["graft/blocks.0.attn/keys"].copy_(-1e4 * q.expand(4, -1))
    torch.testing.assert_close(vit.blocks[0].attn(x)[0, 0], plain(x)[0, 0], **EXACT)


def test_prefixes_are_drawn_as_wide_as_asked() -> None:
    tensors = PrefixTuning(length=500, std=0.1).plan(vit := network(), NoProbe()).carry_out(vit).tensors
    assert all(abs(t.std().item() - 0.1) < 0.005 for t in tensors.values())


def test_norms_of_queries_and_keys_are_kept() -> None:
    from timm.models.vision_transformer import VisionTransformer  # noqa: PLC0415

    def vit() -> Any:
        torch.manual_seed(0)
        return VisionTransformer(
            img_size=32, patch_size=8, embed_dim=32, depth=1, num_heads=2, num_classes=0, qk_norm=True
        ).double()

    tuned = PrefixTuning(length=1).plan(changed := vit(), NoProbe()).carry_out(changed)
    plain, x = vit().blocks[0].attn, torch.randn(2, 17, 32, dtype=torch.float64)
    q, k, v = (heads(t) for t in plain.qkv(x).chunk(3, -1))
    keys, values = (
        heads(tuned.tensors[f"graft/blocks.0.attn/{name}"]).expand(2, -1, -1, -1) for name in ("keys", "values")
    )
    weights = (plain.q_norm(q) @ torch.cat([keys, plain.k_norm(k)], 2).transpose(-1, -2) / OF_HEAD**0.5).softmax(-1)
    mixed = (weights @ torch.cat([values, v], 2)).transpose(1, 2).flatten(2)
    torch.testing.assert_close(changed.blocks[0].attn(x), plain.proj(mixed), **EXACT)


def test_prefix_tuning_refuses_attention_that_it_does_not_know() -> None:
    vit: Any = network()
    vit.blocks[1].attn = nn.Sequential(nn.Linear(32, 32))
    with pytest.raises(PluginError, match="supports timm's plain Attention, not Sequential"):
        PrefixTuning().plan(vit, NoProbe()).carry_out(vit)


@pytest.mark.parametrize("style", STYLES)
def test_the_head_reads_what_a_query_gathers_from_all_tokens(style: str) -> None:
    vit = network(style).eval()
    x = batch()[0]
    tokens = vit.forward_features(x)
    tensors = AttentionPooling().plan(vit, NoProbe()).carry_out(vit).tensors
    query, key, value = (tensors[f"graft/norm/{name}"] for name in ("query", "key.weight", "value.weight"))
    pooled = attend(query.transpose(0, 1).flatten(1), tokens @ key.T, tokens @ value.T)
    torch.testing.assert_close(vit(x), pooled[:, 0], **EXACT)
    vit.global_pool = "avg"
    torch.testing.assert_close(vit(x), pooled[:, 0], **EXACT)


def test_pooling_may_have_heads_of_its_own() -> None:
    vit = network()
    tensors = AttentionPooling(heads=8).plan(vit, NoProbe()).carry_out(vit).tensors
    assert tensors["graft/norm/query"].shape == (8, 1, 4)
    with pytest.raises(RequestError, match="heads must divide the width 32, got 5"):
        AttentionPooling(heads=5).plan(network(), NoProbe())


@pytest.mark.parametrize(
    ("kind", "fields"),
    [(PrefixTuning, {"length": 0}), (PrefixTuning, {"std": 0.0}), (AttentionPooling, {"heads": 0})],
)
def test_what_cannot_be_is_refused(kind: Any, fields: dict[str, Any]) -> None:
    with pytest.raises(RequestError, match=f": {next(iter(fields))} must be "):
        kind(**fields)
