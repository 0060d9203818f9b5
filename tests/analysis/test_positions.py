"""Places of chosen weights, agreement of selections and rank correlations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from peftbench.analysis import positions
from peftbench.analysis.full_jobs import FullJob
from peftbench.analysis.positions import ESTIMATORS, SELECTIONS, mask, place, rank_correlation
from peftbench.models import backbone, delta
from tests import studies
from tests.analysis import stores


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A full job and SH-PEFT's on the same images."""
    home = tmp_path_factory.mktemp("home")
    studies.draw(home / "images", 6)
    stores.make(home, methods=("full", "shpeft"))
    return home


@pytest.fixture
def job(home: Path) -> FullJob:
    (job,) = stores.series(studies.places(home)).jobs
    return job


@pytest.mark.parametrize(
    ("name", "block", "kind"),
    [
        ("blocks.0.attn.qkv.weight", "1", "qkv"),
        ("blocks.11.attn.proj.bias", "12", "bias"),
        ("blocks.2.norm1.weight", "3", "norm scale"),
        ("blocks.2.norm2.bias", "3", "norm shift"),
        ("blocks.5.mlp.fc2.weight", "6", "MLP out"),
        ("blocks.5.ls1.gamma", "6", "layer scale"),
        ("patch_embed.proj.weight", "embedding", "patch kernel"),
        ("pos_embed", "embedding", "tokens"),
        ("norm_pre.weight", "embedding", "norm scale"),
        ("norm.weight", "final", "norm scale"),
        ("attn_pool.q.weight", "final", "other"),
    ],
)
def test_a_tensor_has_a_block_and_a_kind(name: str, block: str, kind: str) -> None:
    assert place(name) == (block, kind)


def test_the_mask_of_sh_peft_is_the_one_that_its_own_job_trained(home: Path, job: FullJob) -> None:
    folders = [path for path in (home / "runs" / "jobs").iterdir() if path != job.result.folder]
    plan, _, _ = delta.read(folders[0], job.about["base"])
    found = {name: index.long() for name, index in mask(job, "shpeft_ta_td_L2").items()}
    assert stores.same(found, dict(plan.entries))


def test_every_selection_has_about_the_same_number_of_weights(job: FullJob) -> None:
    sizes = {name: sum(map(len, mask(job, name).values())) for name in SELECTIONS}
    k = round(0.01 * job.size)
    assert {sizes[name] for name in ("moved", *ESTIMATORS)} == {k}
    assert sizes["spt"] == pytest.approx(k, rel=0.05)
    assert sizes["gps"] == pytest.approx(k, rel=0.3)  # whole steps of one input for every neuron
    assert not positions._select(backbone.locate("mini").build(0), job, "spt").grafts


def test_places_add_up_to_the_masks_and_overlaps_are_those_of_sets(job: FullJob) -> None:
    found = positions.places(job)
    assert sum(size for *_, size in found["sizes"]) == job.size
    for name in SELECTIONS:
        assert sum(chosen for *_, chosen in found["chosen"][name]) == found["weights"][name]
    sets = [{(n, i) for n, index in mask(job, name).items() for i in index.tolist()} for name in ("moved", "gps")]
    expected = len(sets[0] & sets[1]) / min(map(len, sets))
    assert found["overlaps"]["moved"]["gps"] == pytest.approx(expected)


def test_rank_correlation() -> None:
    ascending = torch.tensor([1.0, 2.0, 5.0, 9.0])
    assert rank_correlation(ascending, ascending**3) == pytest.approx(1)
    assert rank_correlation(ascending, -ascending) == pytest.approx(-1)
    assert rank_correlation(ascending, torch.ones(4)) is None


def test_rank_correlations_are_within_tensors_in_their_order(job: FullJob, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []

    def size(one: torch.Tensor, other: torch.Tensor) -> float:
        assert len(one) == len(other)
        seen.append(len(one))
        return 0.5

    monkeypatch.setattr(positions, "rank_correlation", size)
    found = positions.correlations(job, "shpeft_ta_td_L1")
    vit = backbone.locate("mini").build(0)
    assert list(zip(found, seen, strict=True)) == [(name, p.numel()) for name, p in vit.named_parameters()]


def test_tables_have_a_row_for_each_place_pair_and_tensor(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def known(*_: Any) -> float:
        return 0.25

    monkeypatch.setattr(positions, "rank_correlation", known)
    series = stores.series(studies.places(home))
    for unit in positions.position_units(series):
        assert unit.run()
    table = positions.position_frame(series)
    assert table.groupby("selection")["weights"].sum().unique().tolist() == [series.jobs[0].size]
    assert len(positions.position_overlaps(series)) == len(SELECTIONS) * (len(SELECTIONS) - 1) // 2
    tensors = len(list(backbone.locate("mini").blank().named_parameters()))
    assert len(positions.position_correlations(series)) == tensors * len(ESTIMATORS)
