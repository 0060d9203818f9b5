"""SH-PEFT on a network of four weights with computed scores, then against numpy, then on real gradients."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from peftbench.core.fields import build
from peftbench.core.syntax import parse
from peftbench.errors import JobError, RequestError
from peftbench.methods.shpeft import SHPEFT
from peftbench.models.gradient_probe import GradientProbe
from peftbench.models.method import NoProbe
from peftbench.models.plan import Plan, Scores
from peftbench.models.top_k import largest, top
from tests.networks import STYLES, batches, classifier, network, values

# A network of four weights. By tensor: weight (1, 3), bias (1,).
WEIGHTS = ([1.0, -2.0, 0.5], [0.1])  # squares 1, 4, .25 | .01: sum 5.26; absolute 1, 2, .5 | .1: sum 3.6
GRADIENTS = (([1.0, -1.0, 3.0], [0.0]), ([-2.0, 2.0, 1.0], [1.0]))  # of two batches
SAMPLES = (([0.1, 0.2, 0.3], [9.0]), ([0.1, 0.2, 0.3], [9.0]))  # squares, summed over single images


def four_weights() -> nn.Module:
    layer = nn.Linear(3, 1, dtype=torch.float64)
    layer.weight.data, layer.bias.data = (
        torch.tensor(v, dtype=torch.float64).view_as(p) for v, p in zip(WEIGHTS, layer.parameters(), strict=True)
    )
    return nn.Sequential(layer)


@dataclass(frozen=True)
class Given:
    """A probe of made-up gradients."""

    gradients_of: tuple[Any, ...] = GRADIENTS
    samples_of: tuple[Any, ...] = SAMPLES
    seed: int = 0

    def gradients(self) -> Iterator[Scores]:
        raise NotImplementedError

    def estimate(self, kind: str, batches: int | None = None) -> tuple[Scores, Scores]:  # noqa: ARG002 - the contract's
        if kind == "sample_squares":
            even, odd = self.samples_of
        else:
            changes: dict[str, Callable[[Any], Any]] = {"squares": np.square, "sums": np.asarray, "absolutes": np.abs}
            change = changes[kind]
            even, odd = ([change(np.asarray(part)) for part in gradient] for gradient in self.gradients_of)
        return _scores(even), _scores(odd)


def _scores(parts: Any) -> Scores:
    weight, bias = (torch.tensor(np.asarray(part, dtype=np.float64)) for part in parts)
    return {"0.weight": weight.view(1, 3), "0.bias": bias}


def chosen(plan: Plan) -> list[int]:
    """The chosen entries, counted through all tensors: 0, 1, 2 of the weight, 3 is the bias."""
    starts = {"0.weight": 0, "0.bias": 3}
    return sorted(starts[name] + i for name, index in plan.entries.items() for i in index.tolist())


def k_of_4(k: int, **fields: Any) -> list[int]:
    return chosen(SHPEFT(ratio=k / 4, **fields).plan(four_weights(), Given()))


# --- four weights ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("td", "order"),
    [
        # the four scores                    largest first, ties to the lower index
        ("L2_sum_of_sq", [2, 0, 1, 3]),  # 5, 5, 10 | 1
        ("L2_sq_of_sum", [2, 0, 1, 3]),  # 1, 1, 16 | 1
        ("L2_per_sample", [3, 2, 1, 0]),  # .2, .4, .6 | 18
        ("L1_abs_of_sum", [2, 0, 1, 3]),  # 1, 1, 4 | 1
        ("L1_sum_of_abs", [2, 0, 1, 3]),  # 3, 3, 4 | 1
        ("L1_signed", [2, 1, 3, 0]),  # -1, 1, 4 | 1
    ],
)
def test_task_dependent_importance_alone(td: Any, order: list[int]) -> None:
    for k in (1, 2, 3, 4):
        assert k_of_4(k, td=td, ta="none") == sorted(order[:k])
        assert k_of_4(k, td=td, lam=0) == sorted(order[:k])


@pytest.mark.parametrize("ta", ["L1", "L2"])
def test_magnitude_alone(ta: Any) -> None:
    """No gradient is requested: the probe would refuse."""
    for k, expected in ((1, [1]), (2, [0, 1]), (3, [0, 1, 2]), (4, [0, 1, 2, 3])):
        plan = SHPEFT(ratio=k / 4, td="none", ta=ta).plan(four_weights(), NoProbe())
        assert chosen(plan) == expected
        assert plan.facts == {}


@pytest.mark.parametrize(
    ("fields", "k", "expected"),
    [
        # td 5, 5, 10 | 1 sums to 21; w^2 1, 4, .25 | .01 to 5.26; ratio 3.992
        ({}, 1, [1]),  # 5 + 3.99 = 8.99, 5 + 15.97 = 20.97, 10 + 1.00 = 11.00, 1 + .04
        ({}, 2, [1, 2]),
        ({"lam": 0.5}, 1, [1]),  # 7.00, 12.98, 10.50, 1.02
        ({"lam": 0.2}, 1, [2]),  # 5.80, 8.19, 10.20, 1.01
        ({"lam": 2.0}, 2, [0, 1]),  # 12.98, 36.94, 12.00, 1.08
        # |w| 1, 2, .5 | .1 sums to 3.6; ratio 5.833
        ({"ta": "L1"}, 1, [1]),  # 10.83, 16.67, 12.92, 1.58
        ({"ta": "L1"}, 2, [1, 2]),
        # |sum| 1, 1, 4 | 1 sums to 7; ratio to |w| 1.944
        ({"td": "L1_abs_of_sum", "ta": "L1"}, 1, [2]),  # 2.94, 4.89, 4.97, 1.19
        ({"td": "L1_abs_of_sum", "ta": "L1"}, 3, [0, 1, 2]),
        # sum of |g| 3, 3, 4 | 1 sums to 11; ratio 3.056
        ({"td": "L1_sum_of_abs", "ta": "L1"}, 2, [0, 1]),  # 6.06, 9.11, 5.53, 1.31
        # signed -1, 1, 4 | 1 sums to 5; ratio 1.389
        ({"td": "L1_signed", "ta": "L1"}, 3, [1, 2, 3]),  # .39, 3.78, 4.69, 1.14
        # (sum g)^2 1, 1, 16 | 1 sums to 19; ratio to w^2 3.612
        ({"td": "L2_sq_of_sum"}, 2, [1, 2]),  # 4.61, 15.45, 16.90, 1.04
        ({"td": "L2_sq_of_sum"}, 1, [2]),
        # of single images .2, .4, .6 | 18 sums to 19.2; ratio 3.650
        ({"td": "L2_per_sample"}, 2, [1, 3]),  # 3.85, 15.00, 1.51, 18.04
    ],
)
def test_both_terms_are_brought_to_one_scale_and_added(fields: dict[str, Any], k: int, expected: list[int]) -> None:
    assert k_of_4(k, **fields) == expected


@pytest.mark.parametrize(
    ("words", "stored"),
    [
        ("td=none,ta=L1", ("none", "L1")),
        ("td=none,ta=L2", ("none", "L2")),
        ("td=L1,ta=none", ("L1_abs_of_sum", "none")),
        ("td=L1", ("L1_abs_of_sum", "L1")),
        ("td=L2,ta=none", ("L2_sum_of_sq", "none")),
        ("td=L2", ("L2_sum_of_sq", "L2")),
        ("td=L1_sum_of_abs", ("L1_sum_of_abs", "L1")),
        ("td=L1,ta=L2", ("L1_abs_of_sum", "L2")),
        ("lam=0.5", ("L2_sum_of_sq", "L2")),
    ],
)
def test_the_estimators_of_table_4_in_the_papers_words(words: str, stored: tuple[str, str]) -> None:
    method = build(SHPEFT, parse(f"shpeft[{words}]").fields, "shpeft")
    assert (method.td, method.ta) == stored
    assert method == build(SHPEFT, method.values(), "shpeft")


def test_ta_is_stored_as_a_value_that_version_0_1_0_had() -> None:
    """So that the id of every job with td L2 stays: `auto` is never among the fields of a job."""
    assert SHPEFT().values() == {
        "ratio": 0.01,
        "lam": 1.0,
        "td": "L2_sum_of_sq",
        "ta": "L2",
        "candidates": "all",
        "scaling": "global",
        "batches": None,
    }
    assert SHPEFT(td="L1").within(3, four_weights()).method.values()["ta"] == "L1"


@pytest.mark.parametrize("style", STYLES)
def test_candidates_without_embeddings_are_blocks_and_norms(style: str) -> None:
    vit = network(style)
    left_out = {n for n, _ in vit.named_parameters()} - set(SHPEFT(candidates="no_embeddings").candidates_in(vit))
    kernel = {"patch_embed.proj.weight"} | ({"patch_embed.proj.bias"} if style != "clip" else set())
    assert left_out == {"cls_token", "pos_embed"} | kernel
    method = SHPEFT(ratio=0.5, candidates="no_embeddings")
    assert method.ceiling(vit) == sum(p.numel() for n, p in vit.named_parameters() if n not in left_out)
    model = classifier(style)
    plan = method.plan(model.vit, GradientProbe(model, batches, F.cross_entropy))
    assert plan.entries.keys().isdisjoint(left_out)
    assert plan.count(vit) == method.count(vit)


def test_scaling_tensor_by_tensor() -> None:
    """Td 5, 5, 10 | 8. Globally 28 / 5.26: 10.3, 26.3, 11.3 | 8.1; by tensor 20 / 5.25, 8 / .01: 8.8, 20.2, 11 | 16."""
    probe = Given((([1, 1, 3], [2]), ([2, 2, 1], [2])))
    assert chosen(SHPEFT(ratio=0.5).plan(four_weights(), probe)) == [1, 2]
    assert chosen(SHPEFT(ratio=0.5, scaling="tensor").plan(four_weights(), probe)) == [1, 3]


def test_candidates_may_be_the_weights_of_linear_layers_only() -> None:
    """td 5, 5, 10 sums to 20; w^2 1, 4, .25 to 5.25. The ratio still is a share of all four weights."""
    assert k_of_4(3, candidates="linear", td="L2_per_sample", ta="none") == [0, 1, 2]
    assert k_of_4(2, candidates="linear") == [1, 2]  # 8.81, 20.24, 10.95


@pytest.mark.parametrize("fields", [{}, {"td": "none"}, {"ta": "none"}, {"td": "L1"}, {"scaling": "tensor"}])
def test_the_mask_is_the_largest_importance(fields: dict[str, Any]) -> None:
    method = SHPEFT(ratio=0.5, **fields)
    importance: dict[str, Any] = dict(method.importance(four_weights(), Given()))
    assert {name: len(scores) for name, scores in importance.items()} == {"0.weight": 3, "0.bias": 1}
    expected = {name: index.tolist() for name, index in largest(importance, 2).items()}
    assert {name: index.tolist() for name, index in method.plan(four_weights(), Given()).entries.items()} == expected


def test_the_record_states_how_far_two_halves_of_the_data_agree() -> None:
    """Squares of the even batch 1, 1, 9 | 0 choose 2 and 0; of the odd one 4, 4, 1 | 1 choose 0 and 1."""
    plan = SHPEFT(ratio=0.5, ta="none").plan(four_weights(), Given())
    assert plan.facts == {"mask_split_half_overlap": 0.5}


def test_one_batch_has_no_halves_to_compare() -> None:
    plan = SHPEFT(ratio=0.5, ta="none").plan(four_weights(), Given((GRADIENTS[0], ([0, 0, 0], [0]))))
    assert plan.facts == {}


def test_entries_are_ascending_within_each_tensor() -> None:
    entries = SHPEFT(ratio=1).plan(four_weights(), Given()).entries
    assert {n: i.tolist() for n, i in entries.items()} == {"0.weight": [0, 1, 2], "0.bias": [0]}


# --- exactly k -------------------------------------------------------------------------------------------------------

SCORES = st.lists(st.sampled_from([0.0, 1.0, 1.0 + 2**-40, 2.0, -1.0, 1e300]), min_size=1, max_size=60)


@settings(max_examples=50)
@given(SCORES, st.data())
def test_the_top_k_are_those_of_a_stable_sort(scores: list[float], data: st.DataObject) -> None:
    k = data.draw(st.integers(1, len(scores)))
    expected = np.sort(np.argsort(-np.asarray(scores), kind="stable")[:k])
    assert top(torch.tensor(scores, dtype=torch.float64), k).tolist() == expected.tolist()


@settings(max_examples=50)
@given(st.integers(1, 4), st.lists(st.integers(-3, 3), min_size=8, max_size=8))
def test_exactly_k_however_many_ties(k: int, drawn: list[int]) -> None:
    probe = Given(((drawn[:3], drawn[3:4]), (drawn[4:7], drawn[7:])))
    for td in ("L2_sum_of_sq", "L1_signed"):
        plan = SHPEFT(ratio=k / 4, td=td, ta="none").plan(four_weights(), probe)
        assert len(chosen(plan)) == k == plan.count(four_weights())


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_importance_that_is_not_finite_is_refused(value: float) -> None:
    with pytest.raises(JobError, match="not finite"):
        top(torch.tensor([1.0, value]), 1)


def test_scores_are_compared_in_float64() -> None:
    """1 and 1 + 2**-23 squared differ by 2**-22: beside 1e4, float32 would see a tie and take the first."""
    layer = nn.Linear(3, 1)
    layer.weight.data, layer.bias.data = torch.tensor([[1.0, 1.0 + 2**-23, 0.0]]), torch.tensor([0.0])
    probe = Given((([100, 100, 0], [0]), ([0, 0, 0], [0])))
    plan = SHPEFT(ratio=0.25, lam=1e-4).plan(nn.Sequential(layer), probe)
    assert chosen(plan) == [1]


def test_a_mask_by_squares_of_sums_is_the_mask_by_their_absolute_values() -> None:
    model = classifier(dtype=torch.float32)
    probe = GradientProbe(model, lambda: batches(torch.float32), F.cross_entropy)
    squares, absolutes = (
        SHPEFT(ratio=0.05, td=td, ta="none").plan(model.vit, probe) for td in ("L2_sq_of_sum", "L1_abs_of_sum")
    )
    assert_same(squares, absolutes)


def assert_same(first: Plan, second: Plan) -> None:
    assert {n: i.tolist() for n, i in first.entries.items()} == {n: i.tolist() for n, i in second.entries.items()}


# --- on real gradients -----------------------------------------------------------------------------------------------

VARIANTS: list[dict[str, Any]] = [
    {},
    {"ratio": 0.0001},
    {"ratio": 0.5, "candidates": "linear"},
    {"td": "none", "ta": "L1"},
    {"td": "L1_signed", "ta": "none"},
    {"scaling": "tensor"},
]


@pytest.mark.parametrize("style", STYLES)
def test_a_plan_holds_exactly_k_entries_of_a_real_network(style: str) -> None:
    model = classifier(style)
    before, total = values(model), sum(p.numel() for p in model.vit.parameters())
    probe = GradientProbe(model, batches, F.cross_entropy)
    for variant in VARIANTS:
        method = SHPEFT(**variant)
        plan = method.plan(model.vit, probe)
        assert plan.count(model.vit) == method.count(model.vit) == round(method.ratio * total)
        assert not plan.tune
        assert not plan.grafts
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_equation_1_on_a_real_network() -> None:
    """The whole computation again in numpy, from gradients found by backward()."""
    model = classifier()
    sums = {n: np.zeros(p.shape) for n, p in model.vit.named_parameters()}
    for x, y in batches():
        model.eval().zero_grad()
        F.cross_entropy(model(x), y).backward()
        for name, parameter in model.vit.named_parameters():
            assert parameter.grad is not None
            sums[name] += parameter.grad.numpy() ** 2
    task = np.concatenate([total.ravel() for total in sums.values()])
    own = np.concatenate([p.detach().numpy().ravel() ** 2 for p in model.vit.parameters()])
    importance = task + 0.5 * task.sum() / own.sum() * own
    expected = np.sort(np.argsort(-importance, kind="stable")[:322])
    plan = SHPEFT(lam=0.5).plan(model.vit, GradientProbe(model, batches, F.cross_entropy))
    starts = dict(zip(sums, np.cumsum([0, *(total.size for total in sums.values())]), strict=False))
    found = np.concatenate([starts[n] + plan.entries[n].numpy() for n in sums if n in plan.entries])
    assert found.tolist() == expected.tolist()


def test_the_first_batches_may_be_enough() -> None:
    model = classifier()
    whole = GradientProbe(model, batches, F.cross_entropy)
    first = GradientProbe(model, lambda: iter([*batches()][:2]), F.cross_entropy)
    assert_same(SHPEFT(batches=2).plan(model.vit, whole), SHPEFT().plan(model.vit, first))


# --- refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"td": "none", "ta": "none"}, "td and ta are both none"),
        ({"ratio": 0.0}, "ratio must be above 0"),
        ({"ratio": 1.01}, "ratio must be at most 1"),
        ({"ratio": float("nan")}, "ratio must be at most 1, got nan"),
        ({"lam": -1.0}, "lam must be at least 0"),
        ({"lam": float("nan")}, "lam must be a finite number, got nan"),
        ({"lam": float("inf")}, "lam must be a finite number, got inf"),
        ({"batches": 1}, "batches must be at least 2"),
    ],
)
def test_what_cannot_be_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        SHPEFT(**fields)


@pytest.mark.parametrize(("fields", "asked"), [({"ratio": 0.1}, 0), ({"ratio": 1.0, "candidates": "linear"}, 4)])
def test_a_ratio_that_the_network_cannot_serve_is_refused(fields: dict[str, Any], asked: int) -> None:
    with pytest.raises(RequestError, match=f"selects {asked} weights, but there are 1 to . candidates"):
        SHPEFT(**fields).count(four_weights())


def test_a_budget_turns_the_ratio_only() -> None:
    method = SHPEFT(lam=0.5, td="L1_abs_of_sum")
    assert method.within(3, four_weights()).method == replace(method, ratio=0.8)  # the shortest share of four that is 3


def test_the_stub_is_as_described() -> None:
    squares: tuple[dict[str, Tensor], dict[str, Tensor]] = Given().estimate("squares")
    assert (squares[0]["0.weight"] + squares[1]["0.weight"]).tolist() == [[5, 5, 10]]
