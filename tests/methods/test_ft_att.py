"""FT-Att: the attention of the blocks, and no other layer of a similar name."""

from __future__ import annotations

import pytest

from peftbench.methods.ft_att import FTAtt
from peftbench.models.method import NoProbe
from tests.networks import STYLES, network

ATTENTION = {
    f"blocks.{i}.attn.{site}.{leaf}" for i in (0, 1) for site in ("qkv", "proj") for leaf in ("weight", "bias")
}


@pytest.mark.parametrize("style", STYLES)
def test_qkv_and_proj_of_every_block_and_not_the_patch_convolution(style: str) -> None:
    plan = FTAtt().plan(network(style), NoProbe())
    assert plan.tune == ATTENTION
    assert not plan.entries
    assert not plan.grafts


def test_the_authors_code_trains_the_position_embedding_too() -> None:
    assert FTAtt(train_pos_embed=True).plan(network(), NoProbe()).tune == ATTENTION | {"pos_embed"}
