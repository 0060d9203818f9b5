"""Plans: counting changes nothing, carrying out frees what is named and freezes the rest bit for bit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from peftbench.core.recipe import Recipe
from peftbench.errors import DeltaError, PluginError, RequestError
from peftbench.methods.bitfit import BitFit
from peftbench.methods.full import Full
from peftbench.methods.linear import Linear
from peftbench.methods.lora import LoRA
from peftbench.models.head import Classifier
from peftbench.models.method import Match, Method, NoProbe, edge
from peftbench.models.peft_tuners import HubTuner, LoRATuner
from peftbench.models.plan import Graft, Plan, Tuned
from peftbench.training.optimizer import make_optimizer
from tests.networks import STYLES, batch, classifier, network, values

QKV = "blocks.0.attn.qkv"
MIXED = Plan(  # a plan with everything that a plan can hold
    tune=frozenset({"norm.weight", "blocks.1.mlp.fc1.bias"}),
    entries={
        f"{QKV}.weight": torch.tensor([0, 5, 99]),
        f"{QKV}.bias": torch.tensor([1, 95]),
        "blocks.1.mlp.fc1.weight": torch.tensor([7]),
        "blocks.0.norm1.weight": torch.tensor([31]),
        "cls_token": torch.tensor([3]),
        "pos_embed": torch.tensor([0, 100]),
        "patch_embed.proj.weight": torch.tensor([2, 200]),
    },
    grafts={"blocks.1.attn.qkv": (LoRATuner, {"r": 2, "alpha": 4}), QKV: (LoRATuner, {"r": 1, "alpha": 1})},
)
MIXED_SIZE = 32 + 128 + 12 + 3 * (32 + 96)
HARSH = Recipe("harsh", optimizer="sgd", lr=0.1, momentum=0.9, weight_decay=0.5)


class Shift(Graft):
    """y + t: the smallest graft."""

    def __init__(self, base: nn.Module, start: float = 0.0) -> None:
        super().__init__(base)
        self.shift = nn.Parameter(torch.full((32,), start))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.base(x) + self.shift
        return out


def train(model: nn.Module, recipe: Recipe, steps: int = 3) -> None:
    optimizer = make_optimizer(model, recipe)
    x, y = batch(dtype=next(model.parameters()).dtype)
    for _ in range(steps):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()


def randomize(tensors: Mapping[str, Tensor]) -> None:
    """Large values everywhere: what starts at zero would hide faults."""
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for tensor in tensors.values():
            tensor.copy_(torch.randn(tensor.shape, generator=draw, dtype=tensor.dtype) * 0.3)


# --- counting --------------------------------------------------------------------------------------------------------


def test_a_count_is_what_trains() -> None:
    vit = network()
    assert MIXED.count(vit) == MIXED_SIZE
    MIXED.carry_out(vit)
    assert sum(p.numel() for p in vit.parameters() if p.requires_grad) == MIXED_SIZE


def test_planning_and_counting_change_nothing() -> None:
    vit = network()
    before, modules = values(vit), [*vit.named_modules()]
    for method in (Full(), BitFit(), LoRA(), Linear()):
        method.plan(vit, NoProbe()).count(vit)
    MIXED.count(vit)
    assert [*vit.named_modules()] == modules
    assert all(p.requires_grad for p in vit.parameters())
    assert all(torch.equal(before[name], tensor) for name, tensor in vit.state_dict().items())


def test_a_graft_without_a_formula_is_counted_by_building_it_on_the_meta_device() -> None:
    assert Shift.size(network().get_submodule("blocks.0.mlp.fc2")) == 32
    assert Plan(grafts={"blocks.0.mlp": (Shift, {})}).count(network()) == 32


def test_the_formula_of_lora_is_what_peft_builds() -> None:
    base = network().get_submodule(QKV)
    assert LoRATuner.size(base, r=3, alpha=3) == HubTuner.size(base, kind="LORA", r=3, lora_alpha=3) == 3 * (32 + 96)
    assert all(p.requires_grad for p in base.parameters())


def test_a_plan_of_nothing_is_empty() -> None:
    assert Plan().empty
    assert not MIXED.empty


# --- carrying out ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_everything_else_is_frozen_bit_for_bit(optimizer: Any) -> None:
    model = classifier()
    before = values(model.vit)
    tuned = MIXED.carry_out(model.vit)
    train(model, replace(HARSH, optimizer=optimizer))
    tuned.merge()
    after = values(model.vit)
    grafted = {f"{site}.weight" for site in MIXED.grafts}
    for name in before.keys() - MIXED.tune - grafted:
        moved = (before[name] != after[name]).flatten().nonzero().flatten()
        assert set(moved.tolist()) <= set(MIXED.entries.get(name, torch.tensor([])).tolist()), name
    for name in MIXED.tune:
        assert not torch.equal(before[name], after[name]), name


def learned(plan: Plan, *, slim: bool) -> tuple[Classifier, dict[str, Tensor]]:
    """After three steps under bfloat16 autocast: the model, and its logits beside what trained."""
    torch.manual_seed(0)
    model = classifier(dtype=torch.float32)
    tuned = plan.carry_out(model.vit)
    tuned.cast_frozen(torch.bfloat16 if slim else None)
    x, _ = batch(dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        train(model, HARSH)
        return model, {**tuned.state(), "logits": model(x).detach()}


@pytest.mark.parametrize("plan", [MIXED, Plan(frozenset({"blocks.0.norm1.bias"})), Plan()])
def test_slim_weights_give_the_same_bits(plan: Plan) -> None:
    (_, usual), (_, slim) = (learned(plan, slim=slim) for slim in (False, True))
    assert [name for name, tensor in usual.items() if not torch.equal(tensor, slim[name])] == []


def test_only_frozen_matrices_that_autocast_alone_reads_are_slim() -> None:
    plan = Plan(
        frozenset({"blocks.0.mlp.fc2.weight"}),
        grafts={"blocks.1": (Shift, {}), "blocks.0.attn.qkv": (LoRATuner, {"r": 1, "alpha": 1})},
    )
    model, _ = learned(plan, slim=True)
    slim = {name for name, tensor in model.vit.named_parameters() if tensor.dtype == torch.bfloat16}
    assert slim == {"patch_embed.proj.weight", "blocks.0.attn.proj.weight", "blocks.0.mlp.fc1.weight"}
    assert model.vit.get_parameter("blocks.0.mlp.fc1.bias").dtype == torch.float32


def test_every_chosen_tensor_moves() -> None:
    model = classifier()
    tuned = MIXED.carry_out(model.vit)
    before = tuned.state()
    train(model, HARSH)
    still = [name for name, tensor in tuned.state().items() if torch.equal(tensor, before[name])]
    assert still == []


def test_full_frees_every_tensor_and_linear_none() -> None:
    vit = network()
    Full().plan(vit, NoProbe()).carry_out(vit)
    assert all(p.requires_grad for p in vit.parameters())
    Linear().plan(vit, NoProbe()).carry_out(vit)
    assert not any(p.requires_grad for p in vit.parameters())


@pytest.mark.parametrize(
    ("plan", "named"),
    [
        (Plan(tune=frozenset({"blocks.9.norm1.bias"})), "blocks.9.norm1.bias"),
        (Plan(tune=frozenset({"head.bias"})), "head.bias"),
        (Plan(entries={"cls_tokens": torch.tensor([0])}), "cls_tokens"),
        (Plan(grafts={"blocks.0.attention": (LoRATuner, {"r": 1, "alpha": 1})}), "blocks.0.attention"),
        (Plan(entries={"cls_token": torch.tensor([32])}), "cls_token"),
        (Plan(entries={"cls_token": torch.tensor([-1])}), "cls_token"),
        (Plan(entries={"cls_token": torch.tensor([4, 2])}), "cls_token"),
        (Plan(entries={"cls_token": torch.tensor([2, 2])}), "cls_token"),
        (Plan(frozenset({"cls_token"}), {"cls_token": torch.tensor([0])}), "cls_token"),
    ],
)
def test_a_plan_that_does_not_fit_is_refused_before_anything_changes(plan: Plan, named: str) -> None:
    vit = network()
    modules = [*vit.named_modules()]
    with pytest.raises(PluginError, match=named):
        plan.carry_out(vit)
    assert [*vit.named_modules()] == modules
    assert all(p.requires_grad for p in vit.parameters())


# --- states ----------------------------------------------------------------------------------------------------------


def test_a_state_brings_another_copy_to_the_same_outputs() -> None:
    first, second = network(), network()
    tuned = MIXED.carry_out(first)
    randomize(tuned.tensors)
    MIXED.carry_out(second).load(tuned.state())
    x, _ = batch()
    assert torch.equal(first(x), second(x))


def test_a_state_is_a_copy() -> None:
    tuned = MIXED.carry_out(network())
    state = tuned.state()
    randomize(tuned.tensors)
    assert not any(torch.equal(state[name], tensor) for name, tensor in tuned.tensors.items())


def test_the_names_of_a_state_say_what_they_are() -> None:
    tuned = MIXED.carry_out(network())
    assert {name.split("/")[0] for name in tuned.tensors} == {"tune", "values", "graft"}
    lora = {n for n in tuned.tensors if n.startswith("graft/blocks.1.attn.qkv/")}
    assert len(lora) == 2


@pytest.mark.parametrize("fault", ["missing", "strange", "shape"])
def test_a_state_of_another_plan_is_refused(fault: str) -> None:
    tuned = BitFit().plan(network(), NoProbe()).carry_out(network())
    state = tuned.state()
    if fault == "missing":
        del state["tune/norm.bias"]
    elif fault == "strange":
        state["tune/strange"] = torch.zeros(1)
    else:
        state["tune/norm.bias"] = torch.zeros(3, dtype=torch.float64)
    with pytest.raises(DeltaError, match="strange" if fault == "strange" else "norm.bias"):
        tuned.load(state)


# --- merging ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("method", [LoRA(r=3, alpha=6), LoRA(r=3, alpha=6, sites=("qkv", "proj", "fc1", "fc2"))])
def test_merged_lora_computes_the_same_in_a_plain_network(style: str, method: LoRA) -> None:
    vit, fresh = network(style, torch.float32), network(style, torch.float32)
    tuned = method.plan(vit, NoProbe()).carry_out(vit)
    randomize(tuned.tensors)
    x, _ = batch(dtype=torch.float32)
    unmerged = vit.eval()(x)
    assert not torch.allclose(unmerged, fresh.eval()(x), atol=1e-2)
    assert tuned.merge()
    torch.testing.assert_close(vit(x), unmerged, rtol=1e-5, atol=1e-5)
    assert_plain(vit, fresh)


def assert_plain(vit: nn.Module, like: nn.Module) -> None:
    """The same modules and the same tensors by name as a network of timm."""
    assert [(n, type(m)) for n, m in vit.named_modules()] == [(n, type(m)) for n, m in like.named_modules()]
    like.load_state_dict(vit.state_dict(), strict=True)


def test_a_merge_of_everything_at_once_computes_the_same() -> None:
    vit = network()
    tuned = MIXED.carry_out(vit)
    randomize(tuned.tensors)
    x, _ = batch()
    unmerged = vit(x)
    assert tuned.merge()
    torch.testing.assert_close(vit(x), unmerged, rtol=1e-10, atol=1e-10)
    assert_plain(vit, network())


def test_a_graft_that_cannot_fold_stays() -> None:
    vit = network()
    tuned = Plan(grafts={"blocks.0.mlp": (Shift, {"start": 1.0})}).carry_out(vit)
    assert not tuned.merge()
    assert isinstance(vit.blocks[0].mlp, Shift)


# --- budgets ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Uneven(Method):
    """Sizes that no bisection would find."""

    knob: ClassVar[str | None] = "n"
    n: int = 1

    def sizes(self, vit: nn.Module) -> list[int]:  # noqa: ARG002 - the contract's
        return [4, 1, 3, 2]

    def count(self, vit: nn.Module) -> int:  # noqa: ARG002 - the contract's
        return {1: 30, 2: 10, 3: 20, 4: 10}[self.n]


@pytest.mark.parametrize(
    ("budget", "n", "reached", "edge"),
    [(19, 3, 20, None), (15, 4, 10, None), (9, 4, 10, "floor"), (31, 1, 30, "ceiling"), (30, 1, 30, None)],
)
def test_a_budget_takes_the_nearest_size_and_on_a_tie_the_smaller(budget: int, n: int, reached: int, edge: Any) -> None:
    assert Uneven().within(budget, network()) == Match(Uneven(n), reached, edge)


def test_edges() -> None:
    assert [edge(b, [2, 5]) for b in (1, 2, 5, 6)] == ["floor", None, None, "ceiling"]


def test_a_method_without_a_size_is_reported() -> None:
    with pytest.raises(RequestError, match="BitFit has no size to choose"):
        BitFit().within(10, network())


def test_a_method_that_names_a_knob_must_list_its_values() -> None:
    @dataclass(frozen=True)
    class Half(Method):
        knob: ClassVar[str | None] = "n"
        n: int = 1

    with pytest.raises(PluginError, match="lists no legal values"):
        Half().within(10, network())


@pytest.mark.parametrize("ask", [lambda probe: probe.gradients(), lambda probe: probe.estimate("squares")])
def test_a_method_that_needs_data_to_be_counted_gets_an_error_with_the_fix(ask: Any) -> None:
    with pytest.raises(PluginError, match="override `count`"):
        ask(NoProbe())


def test_hyper_parameters_are_the_fields() -> None:
    assert LoRA(r=4).values() == {"r": 4, "alpha": 8, "sites": ("qkv",), "dropout": 0.0}


def test_what_was_carried_out_is_known() -> None:
    tuned = Plan().carry_out(network())
    assert isinstance(tuned, Tuned)
    assert tuned.state() == {}
