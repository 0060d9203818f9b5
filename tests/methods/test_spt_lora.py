"""SPT-LoRA: its low-rank part on thirds of a fused projection, its choice on known scores, and what it refuses."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from peftbench.core.recipe import Recipe
from peftbench.errors import RequestError
from peftbench.methods import _spt
from peftbench.methods._spt import WholeRule
from peftbench.methods.spt_lora import LowRank, SPTLoRA
from peftbench.models.gradient_probe import GradientProbe
from peftbench.models.plan import Plan, Scores
from peftbench.training.optimizer import make_optimizer
from tests.networks import STYLES, batch, batches, classifier, network

QUIET = {"dropout": 0.0, "drop_path": 0.0}
WHOLE_NETWORK = 32_224  # parameters of the plain tiny network


@dataclass(frozen=True)
class Given:
    """A probe whose every sensitivity is what a function makes of a tensor's name and shape."""

    vit: nn.Module
    sensitivity: Callable[[str, Tensor], Tensor]
    seed: int = 0

    def gradients(self) -> Iterator[Scores]:
        raise NotImplementedError

    def estimate(self, kind: str, batches: int | None = None) -> tuple[Scores, Scores]:
        assert (kind, batches) == ("squares", 16)
        even = {name: self.sensitivity(name, p.detach()) for name, p in self.vit.named_parameters()}
        return even, {name: torch.zeros_like(scores) for name, scores in even.items()}


def aimed(count: int, **fields: Any) -> SPTLoRA:
    """The method with a budget of so many parameters of the tiny network."""
    method = SPTLoRA(**fields).within(count, network()).method
    assert isinstance(method, SPTLoRA)
    return method


def chosen(count: int, loud: dict[str, list[int]], **fields: Any) -> Plan:
    """A plan for which these entries are sensitive, earlier ones more so, and no others."""
    vit = network()

    def sensitivity(name: str, tensor: Tensor) -> Tensor:
        scores = torch.zeros_like(tensor).flatten()
        index = torch.tensor(loud.get(name, []), dtype=torch.long)
        scores[index] = torch.linspace(2, 1, len(index), dtype=scores.dtype)
        return scores.view_as(tensor)

    return aimed(count, **fields).plan(vit, Given(vit, sensitivity))


# --- the low-rank part -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("parts", ["q", "kv", "qkv"])
def test_each_third_of_a_fused_projection_has_factors_of_its_own(parts: str) -> None:
    base, x = nn.Linear(32, 96), torch.randn(2, 5, 32)
    graft = LowRank(base, r=2, parts=parts, init="official", **QUIET)
    expected = list(base(x).chunk(3, dim=-1))
    for part in parts:
        expected["qkv".index(part)] = expected["qkv".index(part)] + x @ graft.down[part].T @ graft.up[part].T
    torch.testing.assert_close(graft(x), torch.cat(expected, dim=-1))
    torch.testing.assert_close(graft.merged()(x), graft(x))
    assert LowRank.size(base, r=2, parts=parts) == sum(p.numel() for p in graft.parameters()) - 96 * 33


def test_an_unfused_projection_gets_one_pair() -> None:
    base, x = nn.Linear(32, 128), torch.randn(2, 5, 32)
    graft = LowRank(base, r=2, parts="", init="official", **QUIET)
    torch.testing.assert_close(graft(x), base(x) + x @ graft.down["y"].T @ graft.up["y"].T)
    torch.testing.assert_close(graft.merged()(x), graft(x))
    assert LowRank.size(base, r=2, parts="") == 2 * (32 + 128)


def test_the_start_is_the_authors_code_or_the_papers() -> None:
    base = nn.Linear(256, 256)
    official = LowRank(base, r=32, parts="", init="official", **QUIET)
    for factor in (official.down["y"], official.up["y"]):
        assert factor.std().item() == pytest.approx(0.02, rel=0.05)
    zero = LowRank(base, r=32, parts="", init="zero", **QUIET)
    assert zero.down["y"].abs().max().item() <= 1 / 16
    assert not zero.up["y"].any()


def test_dropout_and_drop_path_act_in_training_only() -> None:
    torch.manual_seed(0)
    base, x = nn.Linear(32, 96), torch.randn(64, 5, 32)
    graft = LowRank(base, r=2, parts="qkv", init="official", dropout=0.0, drop_path=0.5)
    for unchanged in torch.isclose(graft(x), base(x), atol=1e-6).chunk(3, dim=2):  # the query's, the key's, the value's
        assert 16 < int(unchanged.flatten(1).all(dim=1).sum()) < 48  # of 64 images half lose the whole product
    graft.eval()
    torch.testing.assert_close(graft(x), graft(x))
    dropping = LowRank(base, r=2, parts="qkv", init="official", dropout=0.5, drop_path=0.0)
    assert not torch.allclose(dropping(x), dropping(x))


# --- the choice ------------------------------------------------------------------------------------------------------

FC1, PROJ, QKV = "blocks.0.mlp.fc1.weight", "blocks.1.attn.proj.weight", "blocks.0.attn.qkv"


def test_few_sensitive_weights_of_a_matrix_train_one_by_one_and_many_bring_a_product() -> None:
    """At r = 1 a product for fc1 costs 160, so from 16 sensitive weights on it gets one."""
    few = chosen(32 + 15, {FC1: [*range(0, 150, 10)]}, r=1)
    assert {n: i.tolist() for n, i in few.entries.items()} == {FC1: [*range(0, 150, 10)]}
    assert few.tune == {"cls_token"}
    assert not few.grafts
    many = chosen(32 + 160, {FC1: [*range(0, 160, 10)]}, r=1, alpha=10)
    assert many.grafts["blocks.0.mlp.fc1"][1]["parts"] == ""
    assert FC1 not in many.entries
    assert many.facts["spt_matrices"] == 1


def test_a_vector_with_a_fifth_of_its_entries_trains_whole() -> None:
    bias = "blocks.1.mlp.fc2.bias"
    assert chosen(32 + 6, {bias: [1, 3, 5, 7, 9, 11]}).entries.keys() == {bias}
    assert chosen(32 + 32, {bias: [1, 3, 5, 7, 9, 11, 13]}).tune >= {"cls_token", bias}
    assert chosen(32 + 7, {bias: [1, 3, 5, 7, 9, 11, 13]}, beta=0).entries[bias].tolist() == [1, 3, 5, 7, 9, 11, 13]


def test_a_third_of_a_fused_bias_trains_whole_by_its_entries() -> None:
    keys = [*range(32, 64)]
    plan = chosen(32 + 32, {f"{QKV}.bias": keys})
    assert plan.entries[f"{QKV}.bias"].tolist() == keys
    assert plan.facts["spt_vectors"] == 1


def test_thirds_of_a_fused_matrix_are_decided_apart() -> None:
    """One third gets a product while another keeps a single weight."""
    values = [2 * 1024 + i for i in range(22)]  # 22 and 1 are a step of the sweep
    plan = chosen(32 + 128 + 1, {f"{QKV}.weight": [*values, 5]}, r=2)
    assert plan.grafts["blocks.0.attn.qkv"][1]["parts"] == "v"
    assert plan.entries[f"{QKV}.weight"].tolist() == [5]


def test_single_entries_of_norms_count_towards_the_budget_but_never_train() -> None:
    plan = chosen(32 + 3, {"blocks.0.norm1.weight": [4], PROJ: [7, 9]})
    assert {n: i.tolist() for n, i in plan.entries.items()} == {PROJ: [7, 9]}
    assert plan.facts["spt_entries"] == 2


def test_dropout_spares_the_projection_after_attention() -> None:
    plan = chosen(32 + 64 + 160, {PROJ: [*range(20)], FC1: [*range(40)]}, r=1)
    dropouts = {site.rpartition(".")[2]: sizes["dropout"] for site, (_, sizes) in plan.grafts.items()}
    assert dropouts == {"proj": 0.0, "fc1": 0.1}


def test_the_steps_of_the_sweep_scale_beyond_the_authors_budgets() -> None:
    assert [_spt.steps(1e6)[i] for i in (0, 1, 78)] == [20_000, 40_000, 1_580_000]
    assert [_spt.unit(b) for b in (49_999, 50_000, 400_000, 1_000_000, 4_000_000)] == [
        49_999, 1e6, 1e6, 1e6, 4_000_000,
    ]  # fmt: skip


def test_a_tie_between_two_steps_goes_to_the_later_one() -> None:
    assert _spt.nearest([10, 20, 20, 30], 15) == 2


def test_nothing_of_the_embedding_competes() -> None:
    for style in STYLES:
        names = {piece.name for piece in _spt.pieces(network(style))}
        assert not [n for n in names if n.startswith(("cls_token", "pos_embed", "patch_embed"))]
        assert ("norm_pre.weight" in names) == (style == "clip")
        assert ("blocks.0.ls1.gamma" in names) == (style == "dinov2")


def test_the_rules_cost_is_that_of_the_paper() -> None:
    qkv = next(piece for piece in _spt.pieces(network()) if piece.part == "q")
    assert [WholeRule(2, 10, 5).whole(qkv, c) for c in (12, 13)] == [False, True]  # 2 (32 + 32) / 10 = 12.8
    assert [WholeRule(2, 1, 5).whole(qkv, c) for c in (127, 128)] == [False, True]


# --- on real gradients -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("style", STYLES)
def test_a_plan_trains_what_it_counts_and_folds_exactly(style: str) -> None:
    model = classifier(style)
    method = SPTLoRA(budget=0.1, r=2, batches=4)
    plan = method.plan(model.vit, GradientProbe(model, batches, F.cross_entropy))
    assert plan.entries
    assert plan.grafts
    count = plan.count(model.vit)
    tuned = plan.carry_out(model.vit)
    assert count == sum(p.numel() for p in model.vit.parameters() if p.requires_grad)
    with torch.no_grad():
        for tensor in tuned.tensors.values():
            tensor.add_(0.1 * torch.randn_like(tensor))
    x, _ = batch()
    unmerged = model.eval()(x)
    assert tuned.merge()
    torch.testing.assert_close(model(x), unmerged, rtol=1e-10, atol=1e-10)
    network(style).load_state_dict(model.vit.state_dict(), strict=True)


def test_weight_decay_leaves_single_weights_alone() -> None:
    vit = network()
    plan = chosen(32 + 2, {PROJ: [7, 9]})
    values = plan.carry_out(vit).tensors[f"values/{PROJ}"]
    decaying, others = make_optimizer(vit, Recipe("x", weight_decay=0.5)).param_groups
    memory = values.untyped_storage().data_ptr()
    assert not any(p.untyped_storage().data_ptr() == memory for p in decaying["params"])
    assert any(p.untyped_storage().data_ptr() == memory for p in others["params"])


# --- budgets and refusals --------------------------------------------------------------------------------------------


def test_a_budget_is_the_aim_between_one_weight_and_everything_whole() -> None:
    assert aimed(5_000).count(network()) == 5_000
    floor, ceiling = (SPTLoRA(r=2).within(budget, network()) for budget in (5, WHOLE_NETWORK))
    assert (floor.reached, floor.edge) == (33, "floor")
    most = 32 + 2 * (2 * (4 * 64 + 2 * 160) + 96 + 32 + 128 + 32 + 4 * 32) + 64
    assert (ceiling.reached, ceiling.edge) == (most, "ceiling")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"budget": 0.0}, "budget must be above 0"),
        ({"r": 0}, "r must be at least 1"),
        ({"alpha": 0.5}, "alpha must be at least 1"),
        ({"beta": -1.0}, "beta must be at least 0"),
        ({"batches": 0}, "batches must be at least 1"),
        ({"dropout": 1.0}, "dropout must be below 1"),
        ({"drop_path": 1.0}, "drop_path must be below 1"),
    ],
)
def test_what_cannot_be_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=f"spt_lora: {message}"):
        SPTLoRA(**fields)
