"""FacT: every square of every matrix changes by the product of its factors, which folds exactly."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from peftbench.errors import RequestError
from peftbench.methods._fact import FacT
from peftbench.methods.fact_tk import FacTTK
from peftbench.methods.fact_tt import FacTTT
from peftbench.models.method import NoProbe
from tests.networks import STYLES, assert_merges_exactly, batch, network, randomly_tuned

EXACT: dict[str, Any] = {"rtol": 1e-10, "atol": 1e-10}
SITES = {"attn.qkv": (1, 3), "attn.proj": (1, 1), "mlp.fc1": (1, 4), "mlp.fc2": (4, 1)}  # squares in, out
FORMATS = [FacTTT(r=3, scale=0.5), FacTTK(r=3, scale=0.5)]


def changed(weight: Tensor, cores: list[Tensor], squares: tuple[int, int], u: Tensor, v: Tensor) -> Tensor:
    """The weight (out, in), square by square; the cores are numbered along the inputs first."""
    weight = weight.detach().clone()
    numbered = iter(cores)
    for i in range(squares[0]):
        for o in range(squares[1]):
            weight[32 * o : 32 * (o + 1), 32 * i : 32 * (i + 1)] += 0.5 * (u @ next(numbered) @ v).T
    return weight


@pytest.mark.parametrize("style", STYLES)
def test_in_the_tensor_train_every_square_has_its_own_core(style: str) -> None:
    vit, _, tensors = randomly_tuned(FacTTT(r=3, scale=0.5), style)
    u, v = (tensors[f"shared/factors/{name}"] for name in ("down", "up"))
    for site, squares in SITES.items():
        cores = tensors[f"graft/blocks.1.{site}/core"].flatten(0, 1)
        assert len(cores) == squares[0] * squares[1]
        base: Any = network(style).get_submodule(f"blocks.1.{site}")
        x = torch.randn(2, 5, base.in_features, dtype=torch.float64)
        expected = x @ changed(base.weight, list(cores), squares, u, v).T + base.bias
        torch.testing.assert_close(vit.get_submodule(f"blocks.1.{site}")(x), expected, **EXACT)


def test_in_the_tucker_format_every_core_is_a_mixture_of_r() -> None:
    vit, _, tensors = randomly_tuned(FacTTK(r=3, scale=0.5))
    u, v, core, mixture = (tensors[f"shared/factors/{name}"] for name in ("down", "up", "core", "mixture"))
    number = 0
    for block in (0, 1):
        for site, squares in SITES.items():
            n = squares[0] * squares[1]
            cores = [sum(core[:, :, t] * mixture[t, j] for t in range(3)) for j in range(number, number + n)]
            number += n
            base: Any = network().get_submodule(f"blocks.{block}.{site}")
            x = torch.randn(2, 5, base.in_features, dtype=torch.float64)
            expected = x @ changed(base.weight, cores, squares, u, v).T + base.bias  # type: ignore[arg-type]
            torch.testing.assert_close(vit.get_submodule(f"blocks.{block}.{site}")(x), expected, **EXACT)
    assert number == mixture.shape[1] == 24


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("method", FORMATS, ids=str)
def test_the_change_folds_into_the_weights(method: FacT, style: str) -> None:
    assert_merges_exactly(method, style)


@pytest.mark.parametrize("method", FORMATS, ids=str)
def test_only_v_starts_at_zero(method: FacT) -> None:
    tensors = method.plan(vit := network(), NoProbe()).carry_out(vit).tensors
    assert [name for name, tensor in tensors.items() if tensor.abs().max() == 0] == ["shared/factors/up"]


@pytest.mark.parametrize("method", FORMATS, ids=str)
def test_the_formula_is_what_is_built(method: FacT) -> None:
    vit = network()
    plan = method.plan(vit, NoProbe())
    assert plan.count(vit) == method.count(vit)
    count = method.count(vit)
    plan.carry_out(vit)
    assert sum(p.numel() for p in vit.parameters() if p.requires_grad) == count


def test_dropout_acts_in_training_only() -> None:
    vit, _, _ = randomly_tuned(FacTTT(r=3, dropout=0.5))
    x = batch()[0]
    assert not torch.equal(vit.train()(x), vit(x))
    assert torch.equal(vit.eval()(x), vit(x))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"r": 0}, "r must be at least 1, got 0"),
        ({"dropout": 1.0}, "dropout"),
        ({"scale": float("nan")}, "scale must be a finite number"),
    ],
)
def test_what_cannot_be_is_refused(fields: dict[str, Any], message: str) -> None:
    for kind in (FacTTT, FacTTK):
        with pytest.raises(RequestError, match=message):
            kind(**fields)


def test_matrices_that_are_no_squares_side_by_side_are_refused() -> None:
    vit: Any = network()
    vit.blocks[1].mlp.fc1 = nn.Linear(32, 100)
    with pytest.raises(RequestError, match="does not fit a matrix of 100 x 32"):
        FacTTT().count(vit)
