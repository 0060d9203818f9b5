"""LoRA: what it is at the start, and what it refuses."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from peftbench.errors import RequestError
from peftbench.methods.lora import LoRA
from peftbench.models.method import NoProbe
from tests.networks import STYLES, batch, network

DEFAULT = LoRA()


@pytest.mark.parametrize("style", STYLES)
def test_step_0_is_the_pretrained_model(style: str) -> None:
    vit, x = network(style), batch()[0]
    before = vit(x)
    DEFAULT.plan(vit, NoProbe()).carry_out(vit)
    torch.testing.assert_close(vit(x), before, rtol=0, atol=1e-14)


def test_a_is_uniform_and_b_is_zero() -> None:
    vit = network()
    tensors = LoRA(r=16).plan(vit, NoProbe()).carry_out(vit).tensors
    for name, tensor in tensors.items():
        if "lora_A" in name:
            assert tensor.shape == (16, 32)
            assert 0.8 / 32**0.5 < tensor.abs().max().item() <= 1 / 32**0.5
        else:
            assert tensor.shape == (96, 16)
            assert tensor.abs().max() == 0


@pytest.mark.parametrize(
    ("method", "scale"), [(LoRA(r=4), 2.0), (LoRA(r=4, alpha=4), 1.0), (LoRA(r=4, alpha="r"), 1.0)]
)
def test_the_change_is_alpha_over_r_times_b_a(method: LoRA, scale: float) -> None:
    vit = network()
    before = vit.get_parameter("blocks.0.attn.qkv.weight").detach().clone()
    tuned = method.plan(vit, NoProbe()).carry_out(vit)
    down, up = (tuned.tensors[f"graft/blocks.0.attn.qkv/base.lora_{x}.default.weight"] for x in "AB")
    with torch.no_grad():
        up.normal_()
    change = scale * up @ down
    tuned.merge()
    torch.testing.assert_close(vit.get_parameter("blocks.0.attn.qkv.weight") - before, change)


def test_it_is_put_around_every_chosen_projection() -> None:
    plan = LoRA(sites=("proj", "fc2")).plan(network(), NoProbe())
    assert set(plan.grafts) == {f"blocks.{i}.{site}" for i in (0, 1) for site in ("attn.proj", "mlp.fc2")}


def test_dropout_acts_in_training_only() -> None:
    vit, x = network(), batch()[0]
    tuned = LoRA(dropout=0.5).plan(vit, NoProbe()).carry_out(vit)
    with torch.no_grad():
        for tensor in tuned.tensors.values():
            tensor.normal_()
    assert not torch.equal(vit.train()(x), vit(x))
    assert torch.equal(vit.eval()(x), vit(x))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"r": 0}, "lora: r must be at least 1, got 0"),
        ({"sites": ("qkv", "head")}, r"sites must be 'qkv', 'proj', 'fc1' or 'fc2', got head"),
        ({"sites": ()}, "sites must not be empty"),
        ({"sites": ("qkv", "qkv")}, "sites"),
        ({"alpha": 0}, "alpha"),
        ({"dropout": 1.5}, "dropout"),
    ],
)
def test_what_cannot_be_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        LoRA(**fields)
