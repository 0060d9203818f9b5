"""How much every method trains, against the closed forms of the literature; on the meta device, so at once."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import pytest
from torch import nn

from peftbench import backbone
from peftbench.method import Method
from peftbench.methods.bitfit import BitFit
from peftbench.methods.full import Full
from peftbench.methods.linear import Linear
from peftbench.methods.lora import LoRA
from peftbench.methods.majority import Majority
from peftbench.methods.shpeft import SHPEFT
from peftbench.spec import budget
from tests.networks import blank

VIT_B, N = "vit_base_patch16_224", 85_798_656


@lru_cache
def shapes(name: str) -> nn.Module:
    return backbone.find(name, blank=True).blank() if name == "clip_vit_b16" else blank(name)


@pytest.mark.parametrize(
    ("method", "network", "count"),
    [
        (Full(), VIT_B, N),
        (Full(), "clip_vit_b16", 85_799_424),
        (Full(), "vit_small_patch16_224", 21_665_664),
        (Full(), "vit_tiny_patch16_224", 5_524_416),
        (Full(), "vit_large_patch16_224", 303_301_632),
        (Linear(), VIT_B, 0),
        (Majority(), VIT_B, 0),
        (BitFit(), VIT_B, 12 * 8_448 + 1_536),
        (BitFit(), "clip_vit_b16", 12 * 8_448 + 2 * 768),  # norm_pre has a bias, the patch convolution has none
        (BitFit(), "vit_small_patch16_224", 51_456),
        (BitFit(), "vit_tiny_patch16_224", 25_728),
        (BitFit(), "vit_large_patch16_224", 272_384),
        (LoRA(r=1), VIT_B, 36_864),
        (LoRA(r=8), VIT_B, 294_912),
        (LoRA(r=8), "clip_vit_b16", 294_912),
        (LoRA(r=8, sites=("qkv", "proj")), VIT_B, 8 * 55_296),
        (LoRA(r=8, sites=("qkv", "proj", "fc1", "fc2")), VIT_B, 8 * 147_456),
        (SHPEFT(), VIT_B, 857_987),
        (SHPEFT(), "clip_vit_b16", 857_994),
        (SHPEFT(ratio=0.0001), VIT_B, 8_580),
    ],
    ids=str,
)
def test_closed_forms(method: Method, network: str, count: int) -> None:
    assert method.count(shapes(network)) == count


@pytest.mark.parametrize(
    ("share", "r", "edge"),
    [("0.01%", 1, "floor"), ("0.05%", 1, None), ("0.1%", 2, None), ("0.5%", 12, None), ("1%", 23, None)],
)
def test_budgets_of_lora(share: str, r: int, edge: Any) -> None:
    fit = LoRA().within(round(budget(share) * N), shapes(VIT_B))
    assert (fit.method, fit.reached, fit.edge) == (LoRA(r=r), 36_864 * r, edge)


def test_a_budget_above_every_rank_takes_the_width() -> None:
    fit = LoRA().within(N, shapes(VIT_B))
    assert (fit.method, fit.edge) == (LoRA(r=768), "ceiling")


@pytest.mark.parametrize(
    ("share", "k"), [("0.01%", 8_580), ("0.05%", 42_899), ("0.1%", 85_799), ("0.5%", 428_993), ("1%", 857_987)]
)
def test_budgets_of_shpeft(share: str, k: int) -> None:
    target = round(budget(share) * N)
    fit = SHPEFT().within(target, shapes(VIT_B))
    assert (target, fit.reached, fit.edge, fit.method.count(shapes(VIT_B))) == (k, k, None, k)


@pytest.mark.parametrize("method", [SHPEFT(), LoRA(r=2)], ids=str)
def test_a_share_and_its_count_are_the_same_job(method: Method) -> None:
    reached = method.count(shapes(VIT_B))
    assert method.within(reached, shapes(VIT_B)).method == method


@pytest.mark.parametrize("k", [1, 2, 3, 12_345, 857_986, 857_988, N - 1, N])
def test_shpeft_reaches_every_count(k: int) -> None:
    fit = SHPEFT().within(k, shapes(VIT_B))
    assert (fit.reached, fit.edge, fit.method.count(shapes(VIT_B))) == (k, None, k)


def test_shpeft_below_one_weight_and_above_all_candidates() -> None:
    floor = SHPEFT().within(0, shapes(VIT_B))
    assert (floor.reached, floor.edge) == (1, "floor")
    ceiling = SHPEFT(candidates="linear").within(N, shapes(VIT_B))
    linear = 12 * 12 * 768 * 768
    assert (ceiling.reached, ceiling.edge) == (linear, "ceiling")
    assert ceiling.method.count(shapes(VIT_B)) == linear
