"""FT-LN: which tensors train, by the type of their module."""

from __future__ import annotations

import pytest
from torch import nn

from peftbench.methods.ft_ln import FTLN
from peftbench.models.method import NoProbe
from tests.networks import STYLES, network


@pytest.mark.parametrize("style", STYLES)
def test_the_affine_part_of_every_norm_and_nothing_else(style: str) -> None:
    plan = FTLN().plan(network(style), NoProbe())
    blocks = {f"blocks.{i}.norm{j}.{leaf}" for i in (0, 1) for j in (1, 2) for leaf in ("weight", "bias")}
    around = {"norm.weight", "norm.bias"} | ({"norm_pre.weight", "norm_pre.bias"} if style == "clip" else set())
    assert plan.tune == blocks | around
    assert not plan.entries
    assert not plan.grafts


def test_norms_are_known_by_their_kind_not_by_their_name() -> None:
    odd = nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 4))
    odd.add_module("norm_like", nn.Linear(4, 4))
    assert FTLN().plan(odd, NoProbe()).tune == {"0.weight", "0.bias"}
