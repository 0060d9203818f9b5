"""SSF: its places, its start, and that it merges exactly."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from peftbench.errors import RequestError
from peftbench.methods.ssf import SSF
from peftbench.models.method import NoProbe
from tests.networks import STYLES, batch, network

EIGHT = {"patch_embed.proj", "norm"} | {
    f"blocks.{i}.{site}" for i in (0, 1) for site in ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")
}


@pytest.mark.parametrize("style", STYLES)
def test_it_follows_eight_kinds_of_operations(style: str) -> None:
    assert set(SSF().plan(network(style), NoProbe()).grafts) == EIGHT


def test_the_norm_before_the_blocks_gets_a_pair_if_asked() -> None:
    sites = (*SSF().sites, "norm_pre")
    assert set(SSF(sites).plan(network("clip"), NoProbe()).grafts) == EIGHT | {"norm_pre"}
    with pytest.raises(RequestError, match="this network has no norm_pre"):
        SSF(sites).plan(network("plain"), NoProbe())


def test_scales_start_near_one_and_shifts_near_zero_but_at_random() -> None:
    vit = network()
    tensors = SSF().plan(vit, NoProbe()).carry_out(vit).tensors
    for name, offset in (("scale", 1), ("shift", 0)):
        values = torch.cat([t.detach() for n, t in tensors.items() if n.endswith(name)])
        assert abs(values.mean().item() - offset) < 0.005
        assert abs(values.std().item() - 0.02) < 0.002


@pytest.mark.parametrize("style", STYLES)
def test_it_folds_into_the_weights_exactly(style: str) -> None:
    """CLIP's patch convolution has no bias: its shift goes into the position embedding of the patches."""
    vit, x = network(style).eval(), batch()[0]
    tuned = SSF().plan(vit, NoProbe()).carry_out(vit)
    with torch.no_grad():
        for name, tensor in tuned.tensors.items():
            tensor.normal_(mean=float(name.endswith("scale")), std=0.3)
    unmerged, pooled = vit(x), vit.forward_features(x)
    before = network(style)
    assert tuned.merge()
    torch.testing.assert_close(vit(x), unmerged, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(vit.forward_features(x), pooled, rtol=1e-10, atol=1e-10)
    before.load_state_dict(vit.state_dict(), strict=True)
    assert [(n, type(m)) for n, m in vit.named_modules()] == [(n, type(m)) for n, m in before.named_modules()]
    class_token_place = network(style).get_parameter("pos_embed")[:, 0]
    assert torch.equal(vit.get_parameter("pos_embed")[:, 0], class_token_place)


def test_a_layer_without_a_bias_has_no_place_for_a_shift() -> None:
    vit = network()
    vit.set_submodule("blocks.0.attn.proj", nn.Linear(32, 32, bias=False, dtype=torch.float64))
    assert not SSF(("proj",)).plan(vit, NoProbe()).carry_out(vit).merge()


@pytest.mark.parametrize(
    ("sites", "message"),
    [
        (("head",), "ssf: sites must be 'patch', .* or 'norm', got head"),
        ((), "sites must not be empty"),
        (("qkv", "qkv"), "sites must not repeat a name"),
    ],
)
def test_what_cannot_be_is_refused(sites: Any, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        SSF(sites)
