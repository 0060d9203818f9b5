"""Methods that choose: GPS, DiffFit, the last blocks, LoRA-FA and the controls of SH-PEFT."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F

from peftbench.errors import JobError, RequestError
from peftbench.methods.control_norm import ControlNorm
from peftbench.methods.control_patch import ControlPatch
from peftbench.methods.control_random import ControlRandom
from peftbench.methods.control_within import ControlWithin
from peftbench.methods.diff_fit import DiffFit
from peftbench.methods.gps import GPS, largest_of_each
from peftbench.methods.last_blocks import LastBlocks
from peftbench.methods.lora_fa import LoRAFA
from peftbench.methods.shpeft import SHPEFT
from peftbench.models.gradient_probe import GradientProbe
from peftbench.models.method import Method, NoProbe
from peftbench.models.plan import Plan
from peftbench.training.job import run
from tests.networks import STYLES, batch, batches, classifier, network
from tests.studies import draw, jobs, places, small

EXACT: dict[str, Any] = {"rtol": 1e-10, "atol": 1e-10}


def planned(method: Method, style: str = "plain", seed: int = 0) -> Plan:
    """On real gradients."""
    model = classifier(style)
    return method.plan(model.vit, GradientProbe(model, batches, F.cross_entropy, seed=seed))


def listed(plan: Plan) -> dict[str, list[int]]:
    return {name: index.tolist() for name, index in plan.entries.items()}


# --- GPS -------------------------------------------------------------------------------------------------------------


@lru_cache
def gradients(style: str) -> dict[str, Tensor]:
    """Summed over the batches, by backward()."""
    model = classifier(style).eval()
    for x, y in batches():
        F.cross_entropy(model(x), y).backward()
    return {name: p.grad for name, p in model.vit.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("style", STYLES)
def test_gps_takes_the_k_largest_gradients_of_every_neuron(style: str) -> None:
    plan = planned(GPS(k=2), style)
    vit = network(style)
    matrices = {n for n, p in vit.named_parameters() if p.dim() in {2, 4}}
    assert plan.entries.keys() == matrices
    for name, index in plan.entries.items():
        rows = gradients(style)[name].abs().flatten(1).numpy()
        best = np.sort(np.argsort(-rows, axis=1, kind="stable")[:, :2], axis=1)
        assert index.tolist() == (best + rows.shape[1] * np.arange(len(rows))[:, None]).ravel().tolist(), name


@pytest.mark.parametrize("style", STYLES)
def test_gps_trains_biases_and_layer_scales_whole_and_no_norm_or_token(style: str) -> None:
    plan, vit = planned(GPS(), style), network(style)
    left = {n for n, _ in vit.named_parameters()} - plan.tune - plan.entries.keys()
    assert left == {n for n, _ in vit.named_parameters() if "norm" in n or n in {"cls_token", "pos_embed"}}
    assert plan.count(vit) == GPS().count(vit)


def test_ties_of_a_neuron_go_to_the_lower_index() -> None:
    scores = torch.tensor([[1.0, 3.0, 3.0, 3.0], [0.0, 0.0, 0.0, 0.0], [2.0, 1.0, 2.0, 3.0]])
    assert largest_of_each(scores, 2).tolist() == [1, 2, 4, 5, 8, 11]
    with pytest.raises(JobError, match="not finite"):
        largest_of_each(torch.tensor([[torch.nan, 1.0]]), 1)


def test_a_neuron_has_only_so_many_inputs() -> None:
    with pytest.raises(RequestError, match="gps: k must be at most 32, the inputs of a neuron of this network, got 33"):
        GPS(k=33).count(network())
    with pytest.raises(RequestError, match="gps: k must be at least 1, got 0"):
        GPS(k=0)


# --- DiffFit ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("style", STYLES)
def test_diff_fit_trains_biases_norms_and_gains(style: str) -> None:
    vit = network(style)
    plan = DiffFit().plan(vit, NoProbe())
    assert plan.tune == {n for n, _ in vit.named_parameters() if n.endswith("bias") or "norm" in n}
    assert plan.grafts.keys() == {f"blocks.{i}.{last}" for i in (0, 1) for last in ("attn.proj", "mlp.fc2")}


@pytest.mark.parametrize("style", STYLES)
def test_a_gain_multiplies_its_branch_and_folds_into_it(style: str) -> None:
    vit: Any = network(style)
    tuned = DiffFit().plan(vit, NoProbe()).carry_out(vit)
    with torch.no_grad():
        for name, tensor in tuned.tensors.items():
            tensor.add_(torch.linspace(0, 0.5, len(tensor)) if name.endswith("gain") else 0.1)
    plain: Any = network(style)
    plain.load_state_dict(
        {n.removeprefix("tune/"): t for n, t in tuned.tensors.items() if n[:5] == "tune/"}, strict=False
    )
    x = torch.randn(2, 17, 32, dtype=torch.float64)
    gain = tuned.tensors["graft/blocks.0.mlp.fc2/gain"]
    torch.testing.assert_close(vit.blocks[0].mlp(x), gain * plain.blocks[0].mlp(x), **EXACT)
    images = batch()[0]
    unmerged = vit.eval()(images)
    assert tuned.merge()
    torch.testing.assert_close(vit(images), unmerged, **EXACT)
    plain.load_state_dict(vit.state_dict(), strict=True)


# --- the last blocks, LoRA-FA ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("style", STYLES)
def test_the_last_blocks_and_what_comes_after_them(style: str) -> None:
    vit = network(style)
    names = {n for n, _ in vit.named_parameters()}
    assert LastBlocks().plan(vit, NoProbe()).tune == {n for n in names if n.startswith(("blocks.1.", "norm."))}
    assert LastBlocks(last=2).plan(vit, NoProbe()).tune == {n for n in names if n.startswith(("blocks.", "norm."))}


@pytest.mark.parametrize(
    ("last", "message"), [(0, "last must be at least 1"), (3, "last must be at most 2, the blocks of this network")]
)
def test_there_are_only_so_many_blocks(last: int, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        LastBlocks(last=last).plan(network(), NoProbe())


def test_in_lora_fa_a_stays_but_goes_into_the_delta() -> None:
    vit = network()
    tensors = LoRAFA(r=3).plan(vit, NoProbe()).carry_out(vit).tensors
    free = {name.rpartition("/")[2] for name, tensor in tensors.items() if tensor.requires_grad}
    kept = {name.rpartition("/")[2] for name, tensor in tensors.items() if not tensor.requires_grad}
    assert (free, kept) == ({"base.lora_B.default.weight"}, {"base.lora_A.default.weight"})


@pytest.mark.parametrize(("method", "scale"), [(LoRAFA(r=4), 2.0), (LoRAFA(r=4, alpha="r"), 1.0)])
def test_the_scale_of_lora_fa_is_alpha_over_r(method: LoRAFA, scale: float) -> None:
    vit = network()
    tuned = method.plan(vit, NoProbe()).carry_out(vit)
    down, up = (tuned.tensors[f"graft/blocks.0.attn.qkv/base.lora_{x}.default.weight"] for x in "AB")
    with torch.no_grad():
        up.normal_()
    tuned.merge()
    change = vit.get_parameter("blocks.0.attn.qkv.weight") - network().get_parameter("blocks.0.attn.qkv.weight")
    torch.testing.assert_close(change, scale * up @ down)


@pytest.mark.parametrize("fields", [{"r": 0}, {"alpha": 0}, {"dropout": 1.0}])
def test_lora_fa_refuses_what_cannot_be(fields: dict[str, Any]) -> None:
    with pytest.raises(RequestError, match=f"lora_fa: {next(iter(fields))} must be "):
        LoRAFA(**fields)


# --- controls --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", [ControlRandom(), ControlWithin()], ids=str)
def test_a_random_mask_is_the_seeds(method: Method) -> None:
    first = listed(planned(method, seed=1))
    assert first == listed(planned(method, seed=1))
    assert first != listed(planned(method, seed=2))


def test_a_random_mask_spares_no_tensor() -> None:
    """Half of all weights: each of 28 tensors has some, and a share near one half."""
    plan, vit = planned(ControlRandom(ratio=0.5)), network()
    assert plan.count(vit) == round(0.5 * sum(p.numel() for p in vit.parameters()))
    for name, parameter in vit.named_parameters():
        assert abs(len(plan.entries[name]) / parameter.numel() - 0.5) < 2.5 * parameter.numel() ** -0.5


@pytest.mark.parametrize("fields", [{}, {"ratio": 0.3, "td": "L1_abs_of_sum", "lam": 0.1}])
def test_within_the_tensors_only_the_places_differ_from_shpeft(fields: dict[str, Any]) -> None:
    drawn, chosen = planned(ControlWithin(**fields)), planned(SHPEFT(**fields))
    assert {n: len(i) for n, i in drawn.entries.items()} == {n: len(i) for n, i in chosen.entries.items()}
    assert listed(drawn) != listed(chosen)


def test_the_largest_scales_of_norms() -> None:
    vit = network("clip")
    scales = {n: p for n, p in vit.named_parameters() if "norm" in n and n.endswith("weight")}
    plan = ControlNorm(ratio=0.001).plan(vit, NoProbe())
    inside = torch.cat([scales[n].flatten()[i] for n, i in plan.entries.items()])
    assert len(inside) == round(0.001 * sum(p.numel() for p in vit.parameters()))
    everything = torch.cat([p.flatten() for p in scales.values()]).abs()
    assert inside.abs().min() == everything.sort(descending=True).values[len(inside) - 1]


@pytest.mark.parametrize("style", STYLES)
def test_in_the_patch_kernel_importance_is_shpefts(style: str) -> None:
    model = classifier(style)
    plan = planned(ControlPatch(ratio=0.01, ta="none"), style)
    squares = sum(
        GradientProbe(model, batches, F.cross_entropy).estimate("squares")[half]["patch_embed.proj.weight"]
        for half in (0, 1)
    )
    best = np.sort(np.argsort(-squares.flatten().numpy(), kind="stable")[: plan.count(model.vit)])  # type: ignore[union-attr]
    assert listed(plan) == {"patch_embed.proj.weight": best.tolist()}


def test_a_control_cannot_be_larger_than_where_it_looks() -> None:
    with pytest.raises(RequestError, match="there are 1 to 160 candidates"):
        ControlNorm(ratio=0.5).count(network())
    with pytest.raises(RequestError, match="candidates must be 'all'"):
        ControlPatch(candidates="linear")


def test_jobs_of_two_seeds_train_two_masks(tmp_path: Path) -> None:
    asked = small(draw(tmp_path / "images", 12), methods=("control_random",), seeds=(0, 1), steps=2, evaluations=1)
    where = places(tmp_path)
    masks = []
    for job in jobs(asked, where):
        record = run(job, where)
        assert record is not None
        assert record.status == "done"
        saved = load_file(where.store / "jobs" / job.id / "delta.safetensors")
        masks.append(torch.cat([saved[name] for name in sorted(saved) if name.startswith("index/")]))
    assert len(masks[0]) == len(masks[1])
    assert not torch.equal(*masks)
