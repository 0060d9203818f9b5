"""The GPU bench, on a small network and a CPU: its figures exist and decide as they should; speed is not tested."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from peftbench.benchmarks import bench_gpu, gates
from peftbench.benchmarks.bench_gpu import Rig, run
from peftbench.benchmarks.gates import Gate
from peftbench.core.recipe import Recipe
from peftbench.training import step as steps


def tiny() -> VisionTransformer:
    return VisionTransformer(img_size=16, patch_size=8, embed_dim=16, depth=2, num_heads=2, num_classes=0)


@pytest.fixture
def rig(monkeypatch: pytest.MonkeyPatch) -> Rig:
    """Two modes: eager, and captured by a substitute for a GPU."""
    monkeypatch.setattr(steps, "on_side_stream", lambda work, **_: work())
    monkeypatch.setattr(steps, "capture", lambda work: work)
    modes = {"": Recipe(), "--graph": Recipe(graph=True)}
    return Rig(torch.device("cpu"), tiny, 16, batch=4, product=64, few=5, many=7, modes=modes)


def test_every_mode_is_timed_and_held_against_the_plain_one(rig: Rig) -> None:
    found = {gate.name.partition(" (")[0]: gate for gate in run(rig)}
    assert list(found) == [
        "TFLOP/s of a 64 x 64 bf16 product",
        "share of that product in a step of full",
        "share of that product in a step of full --graph",
        "images/s of full --graph over without",
        "share of that product in a step of BitFit",
        "share of that product in a step of BitFit --graph",
        "images/s of BitFit --graph over without",
        "losses with --graph against without: largest gap",
        "step on 0.01% single weights over full",
        "step on 0.10% single weights over full",
    ]
    assert all(np.isfinite(gate.value) for gate in found.values())
    assert [name for name, gate in found.items() if gate.decides] == [
        "losses with --graph against without: largest gap"
    ]
    assert found["losses with --graph against without: largest gap"].passed


def test_a_mode_that_computes_something_else_fails(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(work: Callable[[], Tensor]) -> Callable[[], Tensor]:
        return lambda: work() + 1

    monkeypatch.setattr(steps, "capture", wrong)
    broken = [gate.name for gate in run(rig) if gate.decides and not gate.passed]
    assert broken == ["losses with --graph against without: largest gap"]


def test_figures_are_written_with_the_machine(tmp_path: Path) -> None:
    gates.write([Gate("one", 0.5, 1.0)], "cpu", tmp_path / "bench.json")
    shown = (tmp_path / "bench.json").read_text()
    assert '"hardware"' in shown
    assert '"passed": true' in shown


def test_the_paper_size_is_what_is_measured() -> None:
    with torch.device("meta"):
        assert sum(p.numel() for p in bench_gpu.vit_b16().parameters()) == 85_798_656
