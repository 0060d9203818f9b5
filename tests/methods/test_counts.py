"""How much every method trains, against the closed forms of the literature; on the meta device, so at once."""

from __future__ import annotations

from functools import lru_cache

import pytest
from torch import nn

from peftbench.core import catalogue, catalogue_files
from peftbench.core.registry import registry
from peftbench.core.syntax import budget
from peftbench.errors import RequestError
from peftbench.methods.adaptformer import AdaptFormer
from peftbench.methods.bitfit import BitFit
from peftbench.methods.ft_att import FTAtt
from peftbench.methods.ft_ln import FTLN
from peftbench.methods.full import Full
from peftbench.methods.linear import Linear
from peftbench.methods.lora import LoRA
from peftbench.methods.majority import Majority
from peftbench.methods.shpeft import SHPEFT
from peftbench.methods.spt_lora import SPTLoRA
from peftbench.methods.ssf import SSF
from peftbench.methods.vpt_deep import VPTDeep
from peftbench.methods.vpt_shallow import VPTShallow
from peftbench.models import backbone
from peftbench.models.method import Method
from tests.networks import blank

VIT_B, N = "vit_base_patch16_224", 85_798_656
VIT_S, VIT_TI, VIT_L = (f"vit_{size}_patch16_224" for size in ("small", "tiny", "large"))


@lru_cache
def shapes(name: str) -> nn.Module:
    return backbone.locate(name, blank=True).blank() if name == "clip_vit_b16" else blank(name)


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
        (FTLN(), VIT_B, 38_400),
        (FTLN(), "clip_vit_b16", 39_936),
        (FTLN(), VIT_S, 19_200),
        (FTLN(), VIT_TI, 9_600),
        (FTLN(), VIT_L, 100_352),
        (FTAtt(), VIT_B, 28_348_416),
        (FTAtt(), "clip_vit_b16", 28_348_416),
        (FTAtt(train_pos_embed=True), VIT_B, 28_499_712),
        (FTAtt(train_pos_embed=True), "clip_vit_b16", 28_499_712),
        *((VPTShallow(tokens=p), VIT_B, 768 * p) for p in (1, 5, 10, 50, 100, 200)),
        *((VPTDeep(tokens=p), VIT_B, 9_216 * p) for p in (1, 5, 10, 50, 100, 200)),
        (VPTShallow(tokens=50, before_norm_pre=True), "clip_vit_b16", 38_400),
        (VPTDeep(tokens=50, before_norm_pre=True), "clip_vit_b16", 460_800),
        (VPTDeep(tokens=5), VIT_S, 5 * 12 * 384),
        (VPTDeep(tokens=5), VIT_L, 5 * 24 * 1_024),
        (SSF(), VIT_B, 205_824),
        (SSF(), "clip_vit_b16", 205_824),
        (SSF((*SSF().sites, "norm_pre")), "clip_vit_b16", 205_824 + 1_536),
        (SSF(("norm1", "qkv", "proj", "norm2", "fc1", "fc2")), VIT_B, 12 * 16_896),
        (SSF(), VIT_S, 12 * 22 * 384 + 4 * 384),
        (SSF(), VIT_TI, 12 * 22 * 192 + 4 * 192),
        (SSF(), VIT_L, 24 * 22 * 1_024 + 4 * 1_024),
        *((AdaptFormer(bottleneck=b), VIT_B, 9_216 + 18_444 * b) for b in (1, 4, 8, 16, 32, 64, 256)),
        (AdaptFormer(), "clip_vit_b16", 1_189_632),
        (AdaptFormer(bottleneck=8), VIT_L, 24 * (2 * 1_024 * 8 + 8 + 1_024)),
        (SPTLoRA(), VIT_B, 428_993),  # what it aims at; what it reaches depends on the data
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
    ("method", "counted"),
    [(Full(), 100.0), (FTLN(), 0.0448), (BitFit(), 0.1199), (SSF(), 0.2399), (FTAtt(), 33.04)],
    ids=str,
)
def test_shares_of_methods_without_a_size(method: Method, counted: float) -> None:
    assert 100 * method.count(shapes(VIT_B)) / N == pytest.approx(counted, abs=0.005 if counted > 1 else 0.00005)
    with pytest.raises(RequestError, match="has no size to choose"):
        method.within(1, shapes(VIT_B))


SIZES: dict[Method, tuple[int, ...]] = {  # knob -> what it is at 0.01%, 0.05%, 0.1%, 0.5%, 1% and 5% of ViT-B/16
    LoRA(): (1, 1, 2, 12, 23, 116),
    VPTDeep(): (1, 5, 9, 47, 93, 465),
    VPTShallow(): (11, 56, 112, 559, 1_117, 5_586),
    AdaptFormer(): (1, 2, 4, 23, 46, 232),
}
FLOORS: dict[Method, int] = {LoRA(): 36_864, VPTDeep(): 9_216, VPTShallow(): 768, AdaptFormer(): 27_660}


@pytest.mark.parametrize("method", SIZES, ids=str)
def test_budgets_take_the_nearest_size(method: Method) -> None:
    for share, size in zip(("0.01%", "0.05%", "0.1%", "0.5%", "1%", "5%"), SIZES[method], strict=True):
        target, sized = round(budget(share) * N), method.at_size(size)
        fit = method.within(target, shapes(VIT_B))
        assert (fit.method, fit.reached) == (sized, sized.count(shapes(VIT_B)))
        assert fit.edge == ("floor" if target < FLOORS[method] else None)


@pytest.mark.parametrize("method", SIZES, ids=str)
def test_a_budget_half_way_between_two_sizes_takes_the_smaller(method: Method) -> None:
    three, four = (method.at_size(size).count(shapes(VIT_B)) for size in (3, 4))
    half_way = (three + four) // 2
    assert method.within(half_way, shapes(VIT_B)).reached == three
    assert method.within(half_way + 1, shapes(VIT_B)).reached == four


@pytest.mark.parametrize(
    ("method", "most"), [(LoRA(), 768), (AdaptFormer(), 768), (VPTDeep(), 8_192), (VPTShallow(), 8_192)], ids=str
)
def test_a_budget_above_every_size_takes_the_largest(method: Method, most: int) -> None:
    fit = method.within(N, shapes(VIT_B))
    assert (fit.method, fit.edge, method.sizes(shapes(VIT_B))[-1]) == (method.at_size(most), "ceiling", most)
    assert fit.reached == fit.method.count(shapes(VIT_B))


MASKS = {"0.01%": 8_580, "0.05%": 42_899, "0.1%": 85_799, "0.5%": 428_993, "1%": 857_987, "5%": 4_289_933}


@pytest.mark.parametrize(("share", "k"), MASKS.items())
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


@pytest.mark.parametrize("name", catalogue_files.method_names())
def test_the_catalogue_and_the_code_of_a_method_agree(name: str) -> None:
    """`peftbench list` reads the catalogue alone, so that it need not import torch."""
    entry, method = catalogue.method_entry(name), registry("methods").get(name)
    assert (entry.knob, entry.merges) == (method.knob or "", method.merges)
