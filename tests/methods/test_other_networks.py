"""Networks that differ from ViT-B/16 in ways that matter to methods; one clear sentence where a method cannot run."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
import torch
from timm.layers.mlp import SwiGLU
from timm.layers.norm import LayerNorm, RmsNorm
from timm.models.vision_transformer import ParallelScalingBlock, VisionTransformer
from torch import Tensor

from peftbench.core.registry import registry
from peftbench.errors import RequestError
from peftbench.methods.control_norm import ControlNorm
from peftbench.methods.diff_fit import DiffFit
from peftbench.methods.ft_att import FTAtt
from peftbench.methods.ft_ln import FTLN
from peftbench.methods.glora import GLoRA
from peftbench.methods.last_blocks import LastBlocks
from peftbench.methods.lora import LoRA
from peftbench.methods.spt_lora import SPTLoRA
from peftbench.methods.ssf import SSF
from peftbench.models.method import Method, NoProbe

NETWORKS: dict[str, dict[str, Any]] = {
    "SigLIP": {"class_token": False, "global_pool": "map"},
    "mean of the patches": {"class_token": False, "global_pool": "avg"},  # with the last norm after the mean
    "registers": {"reg_tokens": 4, "no_embed_class": True, "init_values": 0.5},
    "norms of queries and keys": {"qk_norm": True, "proj_bias": False},
    "no last norm": {"final_norm": False},
}
RMS = {"norm_layer": RmsNorm, "mlp_layer": SwiGLU, "qkv_bias": False, "class_token": False, "global_pool": "avg"}
PARALLEL = {"block_fn": ParallelScalingBlock, "norm_layer": partial(LayerNorm, affine=False)}


def network(**options: Any) -> VisionTransformer:
    size: dict[str, Any] = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}
    torch.manual_seed(0)
    return VisionTransformer(num_classes=0, **size, **options)


class Ones:
    """A probe for which every weight is equally important."""

    seed = 0

    def __init__(self, vit: VisionTransformer) -> None:
        self.scores = {name: torch.ones_like(p) for name, p in vit.named_parameters()}

    def gradients(self) -> Iterator[dict[str, Tensor]]:
        yield self.scores

    def estimate(self, kind: str, batches: int | None = None) -> tuple[dict[str, Tensor], dict[str, Tensor]]:  # noqa: ARG002
        return self.scores, self.scores


@pytest.mark.parametrize("options", NETWORKS.values(), ids=NETWORKS)
def test_every_method_can_be_planned_and_brought_to_a_budget(options: dict[str, Any]) -> None:
    vit = network(**options)
    for name in sorted(registry("methods").built_in() - {"majority", "knn"}):
        method: Method = registry("methods").get(name)()
        planned = method.plan(vit, Ones(vit)).count(vit)
        assert method.within(500, vit).reached > 0 if method.knob else planned == method.count(vit), name


def test_without_a_class_token_spt_chooses_among_the_rest() -> None:
    vit = network(class_token=False, global_pool="map")
    plan = SPTLoRA(budget=0.5).plan(vit, Ones(vit))
    assert "cls_token" not in plan.tune
    names = [*plan.tune, *plan.entries, *plan.grafts]
    assert names
    assert not [name for name in names if name.startswith("attn_pool")]


def test_the_last_norm_of_ssf_is_wherever_the_network_has_it() -> None:
    places = {text: set(SSF().plan(network(**options), NoProbe()).grafts) for text, options in NETWORKS.items()}
    assert "norm" in places["SigLIP"]
    assert "fc_norm" in places["mean of the patches"]
    assert not {"norm", "fc_norm"} & places["no last norm"]


def test_rms_norms_are_norms() -> None:
    vit = network(**RMS)
    scales = {f"blocks.{i}.norm{j}.weight" for i in (0, 1) for j in (1, 2)} | {"fc_norm.weight"}
    assert FTLN().plan(vit, NoProbe()).tune == scales
    assert set(ControlNorm().candidates_in(vit)) == scales
    assert scales < DiffFit().plan(vit, NoProbe()).tune
    assert not SSF(("norm1",)).plan(vit, NoProbe()).carry_out(vit).merge()  # no bias to take the shift


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        (FTLN(), PARALLEL, "ft_ln: this network has no norm with a scale"),
        (FTAtt(train_pos_embed=True), PARALLEL, r"ft_att: this network has no attn\.qkv"),
        (SSF(), RMS, r"ssf: this network has no blocks\.0\.mlp\.fc1; remove it from sites"),
        (GLoRA(), {"qkv_bias": False}, r"glora: blocks\.0\.attn\.qkv of this network has no bias"),
        (GLoRA(sites=("proj",)), {"proj_bias": False}, r"glora: blocks\.0\.attn\.proj of this network has no bias"),
        (registry("methods").get("vera")(), PARALLEL, r"This network has no layer blocks\.0\.attn\.qkv"),
        (registry("methods").get("fact_tt")(), RMS, r"This network has no layer blocks\.0\.mlp\.fc1"),
    ],
)
def test_what_a_method_needs_and_a_network_lacks_is_named(
    method: Method, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(RequestError, match=message):
        method.plan(network(**options), NoProbe())


def test_glora_needs_biases_only_where_it_is() -> None:
    assert GLoRA(sites=("proj",)).plan(network(qkv_bias=False), NoProbe()).grafts


def test_the_largest_rank_is_the_width_with_or_without_a_class_token() -> None:
    assert [LoRA().most(network(class_token=there, global_pool="avg")) for there in (True, False)] == [32, 32]


def test_the_last_blocks_take_all_that_comes_after_them() -> None:
    vit = network(**NETWORKS["SigLIP"])
    tuned = LastBlocks().plan(vit, NoProbe()).tune
    assert {name.split(".")[0] for name in tuned} == {"blocks", "norm", "attn_pool"}
    assert {name for name, _ in vit.named_parameters() if name.startswith("attn_pool.")} <= tuned


def test_a_network_of_one_block_has_one_size_of_last_blocks() -> None:
    vit = VisionTransformer(img_size=32, patch_size=8, embed_dim=32, depth=1, num_heads=2, num_classes=0)
    fit = LastBlocks().within(1, vit)
    assert (fit.method, fit.reached) == (LastBlocks(last=1), LastBlocks().count(vit))
