"""LoRA: what it is at the start, and what it refuses."""

from __future__ import annotations

from typing import Any, cast

import pytest
import torch

from peftbench.core.fields import build
from peftbench.core.syntax import parse
from peftbench.errors import RequestError
from peftbench.methods.dora import DoRA
from peftbench.methods.lora import LoRA
from peftbench.methods.rslora import RsLoRA
from peftbench.models.method import NoProbe
from tests.networks import STYLES, batch, blank, network, randomly_tuned

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
        ({"sites": ("qkv", "head")}, "sites must be 'qkv', 'q', 'k', 'v', 'proj', 'fc1' or 'fc2', got head"),
        ({"sites": ()}, "sites must not be empty"),
        ({"sites": ("qkv", "qkv")}, "sites must not repeat a name"),
        ({"sites": ("qkv", "v")}, "sites must not name qkv beside q, k or v"),
        ({"r": 99_999_999_999}, "r must be at most 8192, got 99999999999"),
        ({"alpha": 0}, "alpha"),
        ({"dropout": 1.5}, "dropout"),
    ],
)
def test_what_cannot_be_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        LoRA(**fields)


# --- parts of the fused qkv -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "count"),
    [
        (LoRA(sites=("q", "v")), 8 * 36_864),
        (LoRA(sites=("q", "k", "v")), 8 * 12 * 3 * 1_536),
        (LoRA(sites=("v", "proj"), r=2), 2 * 12 * (1_536 + 1_536)),
        (RsLoRA(sites=("q", "v")), 8 * 36_864),
        (DoRA(sites=("q", "v")), 8 * 36_864 + 12 * 2 * 768),
    ],
    ids=str,
)
def test_counts_of_parts_on_vit_b(method: LoRA | DoRA, count: int) -> None:
    vit = blank("vit_base_patch16_224")
    assert method.count(vit) == count
    assert method.within(count, vit).method == method


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("parts", ["qv", "k"])
def test_parts_have_factors_of_their_own_and_the_rest_stays(style: str, parts: str) -> None:
    """W_q + (alpha / r) B_q A_q, as Microsoft's MergedLinear."""
    vit, tuned, tensors = randomly_tuned(LoRA(r=4, alpha=6, sites=cast("Any", tuple(parts))), style)
    images = batch()[0]
    adapted = vit(images)
    assert tuned.merge()
    torch.testing.assert_close(vit(images), adapted, rtol=1e-10, atol=1e-10)
    merged = dict(vit.named_parameters())
    for name, weight in network(style).named_parameters():
        change = torch.zeros_like(weight)
        if name.endswith("attn.qkv.weight"):
            site = name.removesuffix(".weight")
            for part in parts:
                down, up = (tensors[f"graft/{site}/tuners.{part}.base.lora_{x}.default.weight"] for x in "AB")
                change["qkv".index(part) * 32 :][:32] = 6 / 4 * up @ down
        torch.testing.assert_close(merged[name] - weight, change, rtol=1e-10, atol=1e-10)


def test_dora_of_a_part_normalizes_its_own_rows() -> None:
    vit, tuned, tensors = randomly_tuned(DoRA(r=3, alpha=6, sites=("v",)))
    assert tuned.merge()
    own = {name.partition("lora_")[2]: t for name, t in tensors.items() if name.startswith("graft/blocks.0.attn.qkv/")}
    weight = network().get_parameter("blocks.0.attn.qkv.weight")[64:]
    moved = weight + 6 / 3 * own["B.default.weight"] @ own["A.default.weight"]
    expected = own["magnitude_vector.default.weight"][:, None] * moved / moved.norm(dim=1, keepdim=True)
    torch.testing.assert_close(vit.get_parameter("blocks.0.attn.qkv.weight")[64:], expected)


def test_step_0_of_parts_is_the_pretrained_network() -> None:
    vit, images = network(), batch()[0]
    LoRA(sites=("q", "v")).plan(vit, NoProbe()).carry_out(vit)
    torch.testing.assert_close(vit(images), network()(images), rtol=1e-10, atol=1e-10)


def test_sites_may_be_called_targets() -> None:
    assert build(LoRA, parse("lora[targets=q+v]").fields, "lora") == LoRA(sites=("q", "v"))
