"""timm's Eva networks (DINOv3, EVA-02, EVA-X): every method keeps the rules there, or one sentence gives the reason."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from timm.models.eva import Eva, EvaAttention

from peftbench.core.registry import registry
from peftbench.errors import PeftbenchError
from peftbench.models.head import Classifier, Head
from peftbench.models.method import Method, NoProbe
from peftbench.testing import fixture
from peftbench.testing.findings import run_rules
from peftbench.testing.fixture import MethodFixture
from peftbench.testing.methods import RULES

SWIGLU: dict[str, Any] = {
    "mlp_ratio": 4 * 2 / 3,
    "swiglu_mlp": True,
    "use_rot_pos_emb": True,
    "ref_feat_shape": (4, 4),
}
STYLES: dict[str, dict[str, Any]] = {
    "DINOv3": {
        "num_reg_tokens": 2,
        "use_abs_pos_emb": False,
        "use_rot_pos_emb": True,
        "qkv_bias": False,
        "init_values": 0.5,
        "use_fc_norm": False,
        "global_pool": "token",
    },
    "EVA-02": SWIGLU | {"scale_mlp": True},
    "EVA-X": SWIGLU,
}
REFUSED: dict[str, dict[str, str]] = {  # method -> network ("" = each) -> reason
    "convpass": {"": "convpass supports timm's plain Block, not EvaBlock"},
    "prefix_tuning": {"": "prefix_tuning supports timm's plain Attention, not EvaAttention"},
    "glora": {"": r"glora: blocks\.0\.attn\.qkv of this network has no bias to change"},
    "vpt_deep": {"": "vpt_deep: this network has rotary positions"},
    "vpt_shallow": {"": "vpt_shallow: this network has rotary positions"},
    "ssf": {"EVA-02": r"ssf: this network has no blocks\.0\.mlp\.fc1; remove it from sites"},
    "arc": {"EVA-02": r"blocks\.0\.mlp\.fc1"},
    "rep_adapter": {"EVA-02": r"blocks\.0\.mlp\.fc1"},
    "rlrr": {"EVA-02": r"blocks\.0\.mlp\.fc1"},
    "fact_tk": {"EVA-02": r"has no layer blocks\.0\.mlp\.fc1", "EVA-X": "FacT divides matrices into squares of 32"},
    "fact_tt": {"EVA-02": r"has no layer blocks\.0\.mlp\.fc1", "EVA-X": "FacT divides matrices into squares of 32"},
}


def network(style: str) -> Eva:
    """Return a tiny network as the backbones build it: queries, keys and values in one layer that is called."""
    vit = Eva(img_size=32, patch_size=8, embed_dim=32, depth=2, num_heads=2, num_classes=0, **STYLES[style])
    for module in vit.modules():
        if isinstance(module, EvaAttention):
            module.qkv_bias_separate = module.q_bias is not None
    draw = np.random.default_rng(0)
    for name, parameter in vit.named_parameters():
        offset = 1.0 if name.endswith("weight") and parameter.dim() == 1 else 0.0
        values = offset + 0.15 * draw.standard_normal(tuple(parameter.shape))
        parameter.data = torch.from_numpy(values.astype(np.float32))
    return vit


def classifier(style: str) -> Classifier:
    with torch.random.fork_rng(devices=[]):
        return Classifier(network(style), Head(32, 3, "plain", 1.0, seed=0))


def carry_out(method: Method, vit: Eva) -> None:
    method.plan(vit, NoProbe()).carry_out(vit)


ALL = sorted(registry("methods").built_in())
FEW = ("adaptformer", "bitfit", "fact_tk", "full", "gps", "lora", "shpeft", "ssf", "vera")  # of each family


@pytest.mark.parametrize(
    ("name", "style"),
    [*((name, style) for name in ALL for style in ("DINOv3", "EVA-02")), *((name, "EVA-X") for name in FEW)],
)
def test_a_method_keeps_the_rules_on_an_eva_network_or_gives_its_reason(
    name: str, style: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fixture, "classifier", classifier)
    method = registry("methods").get(name)()
    reasons = REFUSED.get(name, {})
    if reason := reasons.get(style) or reasons.get(""):
        with pytest.raises(PeftbenchError, match=reason):
            carry_out(method, network(style))
        return
    with torch.random.fork_rng(devices=[]):
        found = list(run_rules(RULES, MethodFixture(method, style), style))
    assert [f"{one.rule}: {one.message}" for one in found if one.verdict == "failed"] == []
