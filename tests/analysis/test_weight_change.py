"""Sparsity and hybridity on deltas whose most-moved weights are known."""

from __future__ import annotations

import shutil
from contextlib import AbstractContextManager
from pathlib import Path
from typing import NoReturn

import numpy as np
import pytest
import torch

from peftbench.analysis import full_jobs, weight_change
from peftbench.analysis.full_jobs import SHARES, FullJob, at_level, counts, find_series
from peftbench.analysis.weight_change import overlaps
from peftbench.core.constants import HYBRID_SHARES
from peftbench.data.batches import ImageBatches
from peftbench.errors import DeltaError, RequestError
from peftbench.inference.model import open_model
from peftbench.models import backbone
from peftbench.results.redaction import publish
from peftbench.results.store import Store
from peftbench.training.loop import predict
from tests import studies
from tests.analysis import stores

QKV, FC1 = "blocks.0.attn.qkv.weight", "blocks.3.mlp.fc1.weight"
FIRST, LAST = list(range(272)), list(range(1000, 1272))  # 0.01% of mini is 272 weights


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two data sets, one of them with two seeds; the changes of two jobs are equal, of the third disjoint."""
    home = tmp_path_factory.mktemp("home")
    studies.draw(home / "images", 6, seed=0)
    studies.draw(home / "others", 6, seed=1)
    for images, seed, index in (("images", 0, FIRST), ("images", 1, FIRST), ("others", 0, LAST)):
        (folder,) = stores.make(home, images=images, seed=seed)
        stores.rewrite(folder, {QKV: (index, 0.05), FC1: ([7], 0.01)})
    return home


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One data set with two seeds, trained."""
    home = tmp_path_factory.mktemp("trained")
    studies.draw(home / "images", 12)
    for seed in (0, 1):
        stores.make(home, seed=seed, steps=8)
    return home


@pytest.fixture
def jobs(home: Path) -> dict[str, FullJob]:
    return stores.by_name(studies.places(home))


# --- which weights moved most ----------------------------------------------------------------------------------------


def test_the_most_moved_weights_are_those_that_were_changed_most(jobs: dict[str, FullJob]) -> None:
    assert counts(jobs["folder:images, seed 0"].size)[0] == 272
    found = {name: index.tolist() for name, index in at_level(jobs["folder:images, seed 0"].moved_levels(), 0)}
    assert {name: index for name, index in found.items() if index} == {QKV: FIRST}


def test_every_share_has_its_number_of_weights_and_holds_the_smaller_ones(jobs: dict[str, FullJob]) -> None:
    job = jobs["folder:others, seed 0"]
    levels = job.moved_levels()
    assert int(levels[FC1][7]) == 1  # the next most-moved weight after those of the first share
    sizes = [sum(int((level <= number).sum()) for level in levels.values()) for number in range(len(SHARES))]
    assert sizes == counts(job.size)


def test_equal_changes_overlap_wholly_and_disjoint_ones_not_at_all(
    jobs: dict[str, FullJob], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weight_change, "HYBRID_SHARES", (0.0001,))
    images, again, others = jobs.values()
    assert overlaps(images, again) == [1.0]
    assert overlaps(images, others) == overlaps(others, images) == [0.0]


def test_overlaps_are_tabulated_with_chance_and_the_ceiling_of_another_seed(home: Path) -> None:
    series = stores.series(studies.places(home))
    for unit in weight_change.hybridity_units(series):
        unit.run()
    table = weight_change.overlap_frame(series)
    assert len(table) == 3 * len(HYBRID_SHARES)
    assert table["chance"].to_numpy() == pytest.approx(table["share"].to_numpy(), rel=1e-3)
    matrix = weight_change.overlap_matrix(table)
    ceiling = matrix[matrix["dataset"] == matrix["other"]]
    assert set(ceiling["dataset"]) == {"folder:images"}
    assert (ceiling["overlap"] == 1).all()
    assert matrix.set_index(["dataset", "other", "share"])["pairs"]["folder:images", "folder:others", 0.05] == 2


# --- a network with some tuned weights -------------------------------------------------------------------------------


def test_without_tuned_weights_the_logits_are_those_of_the_pretrained_network_with_the_tuned_head(
    jobs: dict[str, FullJob],
) -> None:
    job = jobs["folder:images, seed 0"]
    model = open_model(job.result.folder, job.places)
    model.classifier.vit = backbone.locate("mini").build(0).eval()
    with job.mixed() as mixed:
        found, images = mixed.logits(()), mixed.images
        autocast = mixed.autocast
    assert np.array_equal(found, predict(model.classifier, images, autocast))


def test_with_all_tuned_weights_the_logits_are_those_of_the_tuned_model_bit_for_bit(jobs: dict[str, FullJob]) -> None:
    job = jobs["folder:images, seed 0"]
    with job.mixed() as mixed:
        before = mixed.logits(())
        found = mixed.logits(mixed.everything())
        again = mixed.logits(())
        images, autocast = mixed.images, mixed.autocast
    assert np.array_equal(found, predict(open_model(job.result.folder, job.places).classifier, images, autocast))
    assert np.array_equal(before, again)  # nothing stays from the evaluation before
    assert not np.array_equal(found, before)


def test_a_trained_job_gives_the_logits_that_it_stored(trained: Path) -> None:
    job = stores.by_name(studies.places(trained))["folder:images, seed 1"]
    with job.mixed() as mixed:
        assert np.array_equal(mixed.logits(mixed.everything()), job.test[0])


def test_chosen_weights_alone_have_their_tuned_value(jobs: dict[str, FullJob]) -> None:
    job = jobs["folder:images, seed 0"]
    plain = backbone.locate("mini").build(0).get_parameter(QKV).flatten()
    with job.mixed() as mixed:
        mixed.logits({QKV: torch.tensor([3, 5])}.items())
        weight = mixed.classifier.vit.get_parameter(QKV).flatten()
        assert (weight != plain).nonzero().flatten().tolist() == [3, 5]
        assert torch.equal(weight[[3, 5]], mixed.read(f"tune/{QKV}").flatten()[[3, 5]])


# --- sparsity --------------------------------------------------------------------------------------------------------


def test_every_order_is_evaluated_and_a_second_call_opens_no_model(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(full_jobs, "SHARES", (0.0001, 0.1))
    monkeypatch.setattr(weight_change, "SHARES", (0.0001, 0.1))
    monkeypatch.setattr(weight_change, "PLACES", (("none", 0.0), ("moved", 0.1), ("random", 0.1), ("all", 1.0)))
    series = stores.series(studies.places(home))
    units = [unit for unit in weight_change.sparsity_units(series) if "others" in unit.name]
    assert [unit.name.rpartition(": ")[2] for unit in units] == [
        *("all or none", "moved", "importance", "magnitude"),
        *(f"random draw {draw} of 3" for draw in (1, 2, 3)),
    ]
    outcomes = [unit.run() for unit in units]

    def refuse(_: FullJob) -> NoReturn:
        raise AssertionError

    monkeypatch.setattr(FullJob, "mixed", refuse)
    monkeypatch.setattr(FullJob, "pretrained", refuse)
    monkeypatch.setattr(FullJob, "tuned", refuse)
    assert [unit.run() for unit in units] == outcomes


def test_only_what_is_missing_is_computed(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(home, tmp_path / "home", ignore=shutil.ignore_patterns("analysis"))
    series, opened = stores.series(studies.places(tmp_path / "home")), list[str]()
    units = [unit for unit in weight_change.sparsity_units(series) if "all or none" in unit.name]
    outcomes = [unit.run() for unit in units]
    mixed = FullJob.mixed

    def counted(self: FullJob) -> AbstractContextManager[full_jobs.Mixed]:
        opened.append(self.name)
        return mixed(self)

    monkeypatch.setattr(FullJob, "mixed", counted)
    file = next((tmp_path / "home" / "runs" / "analysis" / "sparsity").glob("*.json"))
    file.write_text(file.read_text().replace("0.", "1.", 1))  # a file that was modified is computed again
    assert [unit.run() for unit in units] == outcomes
    assert len(opened) == 1


def test_all_weights_keep_all_of_the_score_and_the_verdict_follows_from_the_interval(
    trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weight_change, "PLACES", (("none", 0.0), ("all", 1.0)))
    series = stores.series(studies.places(trained))
    for unit in weight_change.sparsity_units(series):
        if "all or none" in unit.name:
            unit.run()
    found = {(one.dataset, one.order): one for one in weight_change.kept(series)}
    whole = found["folder:images", "all"]
    assert whole.kept.value == pytest.approx(1)
    assert (whole.seeds, whole.verdict, whole.by_seed) == (2, "yes", (1.0, 1.0))
    table = weight_change.evaluations(series)
    assert set(table["weights"]) == {0, series.jobs[0].size}


# --- what is missing -------------------------------------------------------------------------------------------------


def test_what_is_missing_is_named(home: Path, tmp_path: Path) -> None:
    shutil.copytree(home, tmp_path / "home")
    where = studies.places(tmp_path / "home")
    series = stores.series(where)
    assert series.missing == (
        "One seed only (folder:others): the variance between seeds is not covered; `--seeds 0,1,2` adds the others.",
    )
    gone = next(job for job in series.jobs if job.name == "folder:others, seed 0")
    (gone.result.folder / "delta.safetensors").unlink()
    series = stores.series(where)
    assert [job.name for job in series.jobs] == ["folder:images, seed 0", "folder:images, seed 1"]
    deleted, alone = series.missing
    assert deleted.startswith(f"folder:others, seed 0: the delta of job {gone.record.id} was deleted; move the job's")
    assert alone == "One data set only: nothing is known about other tasks; `--datasets` adds them."


def test_a_store_without_full_jobs_is_refused(home: Path, tmp_path: Path) -> None:
    shutil.copytree(home / "images", tmp_path / "images")
    stores.make(tmp_path, methods=("linear",))
    where = studies.places(tmp_path)
    with pytest.raises(RequestError, match=r"holds no finished job of full fine-tuning\. `peftbench run --methods"):
        find_series(publish(Store(where.store).results()), where)


def test_a_delta_that_its_record_does_not_know_is_refused(home: Path, tmp_path: Path) -> None:
    shutil.copytree(home, tmp_path / "home")
    one, other, _ = stores.series(studies.places(tmp_path / "home")).jobs
    for name in ("delta.json", "delta.safetensors"):
        shutil.copy(other.result.folder / name, one.result.folder / name)
    with pytest.raises(DeltaError, match="does not match its record"):
        _ = one.about


def test_images_are_not_decoded_again_where_they_are_cached(jobs: dict[str, FullJob]) -> None:
    with jobs["folder:images, seed 0"].mixed() as mixed:
        assert isinstance(mixed.images, ImageBatches)
        assert len(mixed.images) == jobs["folder:images, seed 0"].record.data.sizes["test"]
