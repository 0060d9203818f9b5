"""BitFit: which tensors train, in networks with other names."""

from __future__ import annotations

import pytest
from torch import nn

from peftbench.methods.bitfit import BitFit
from peftbench.models.method import NoProbe
from tests.networks import STYLES, network


@pytest.mark.parametrize("style", STYLES)
def test_every_bias_and_nothing_else(style: str) -> None:
    vit = network(style)
    biases = {
        f"{name}.bias"
        for name, module in vit.named_modules()
        if isinstance(module, nn.Linear | nn.LayerNorm | nn.Conv2d) and module.bias is not None
    }
    plan = BitFit().plan(vit, NoProbe())
    assert plan.tune == biases
    assert not plan.entries
    assert not plan.grafts
    assert ("patch_embed.proj.bias" in plan.tune) == (style != "clip")
    assert ("norm_pre.bias" in plan.tune) == (style == "clip")
