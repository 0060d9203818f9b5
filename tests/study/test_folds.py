"""Cross-validation: every image is predicted once, by a model that has seen neither it nor its group."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from peftbench.core.contract import Result
from peftbench.core.spec import Job
from peftbench.errors import RequestError
from peftbench.results import tables
from peftbench.results.store import Store
from peftbench.study import resolve as studies_
from peftbench.study.folds import pool_all
from peftbench.study.tuning import rounds
from peftbench.training.job import run
from tests import studies

FOLDS = 3


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("folds")
    studies.draw(folder / "images", 8)
    return folder


@pytest.fixture(scope="module")
def jobs(home: Path) -> list[Job]:
    """The jobs of two methods in three folds, done; the linear probe's rate was searched in each fold."""
    asked = studies.small(home / "images", methods=("linear", "majority"), folds=FOLDS, tune=2)
    resolved, store = studies_.resolve(asked, studies.places(home)), Store(studies.places(home).store)
    for trials in rounds(resolved.drafts, store):
        for trial in trials:
            run(trial, studies.places(home))
    finals = [draft.final(store) for draft in resolved.drafts]
    for job in finals:
        run(job, studies.places(home))
    return finals


@pytest.fixture(scope="module")
def pooled(home: Path, jobs: list[Job]) -> list[Result]:
    store = Store(studies.places(home).store)
    return [result for name in pool_all(jobs, store) if (result := store.job(name).result()) is not None]


def test_every_image_is_in_the_test_part_of_one_fold(home: Path) -> None:
    resolved = studies_.resolve(studies.small(home / "images", folds=FOLDS, tune=2), studies.places(home))
    data = {one.fingerprint: one for one in resolved.data}
    tests = [data[draft.job.fingerprint].names["test"] for draft in resolved.drafts]
    assert sorted(name for names in tests for name in names) == sorted(
        f"{kind}/{i:02d}.png" for kind in studies.CLASSES for i in range(8)
    )
    for draft in resolved.drafts:
        one = data[draft.job.fingerprint]
        assert len({*one.names["train"], *one.names["val"], *one.names["test"]}) == 24
        assert draft.search
        assert draft.search.job.fingerprint == draft.job.fingerprint  # tuned inside the fold


def test_folds_are_no_rows_of_a_table(jobs: list[Job], home: Path) -> None:
    store = Store(studies.places(home).store)
    assert {store.job(job.id).look()[1].role for job in jobs} == {"fold"}  # type: ignore[union-attr]
    assert len({job.id for job in jobs}) == 2 * FOLDS


def test_the_pooled_record_scores_the_joined_predictions(jobs: list[Job], pooled: list[Result], home: Path) -> None:
    assert [result.record.label for result in pooled] == [f"linear ({FOLDS} folds)", f"majority ({FOLDS} folds)"]
    assert len({result.record.data.test for result in pooled}) == 1  # compared image by image
    store = Store(studies.places(home).store)
    for result in pooled:
        parts = [store.job(job.id).result() for job in jobs if job.method == result.record.method.name]
        logits, labels, groups = result.predictions("last")
        assert len(labels) == len(groups) == 24
        expected = np.concatenate([part.predictions("last")[0] for part in parts if part])
        assert sorted(map(tuple, logits.tolist())) == sorted(map(tuple, expected.tolist()))
        right = (logits.argmax(1) == labels).mean()
        assert result.record.choices["last"].test["accuracy"] == pytest.approx(right)
        assert result.record.data.sizes["test"] == 24
        assert not result.damage
    names = json.loads((pooled[0].folder / "private.json").read_text())["names"]["test"]
    assert names == sorted(names)


def test_the_pooled_records_are_rows_of_a_table(pooled: list[Result]) -> None:
    found = [table for table in tables.tables(pooled) if table.name.startswith("data_")]
    assert [str(row[0]) for row in found[0].rows] == [
        f"majority ({FOLDS} folds) (baseline)",
        f"linear ({FOLDS} folds) (baseline)",
    ]


def test_pooling_again_changes_nothing(jobs: list[Job], pooled: list[Result], home: Path) -> None:
    before = [(result.folder / "record.json").stat().st_mtime_ns for result in pooled]
    assert pool_all(jobs, Store(studies.places(home).store)) == [result.record.id for result in pooled]
    assert [(result.folder / "record.json").stat().st_mtime_ns for result in pooled] == before


def test_one_fold_is_refused() -> None:
    with pytest.raises(RequestError, match=r"--folds must be 0 or at least 2, got 1\."):
        studies.study(folds=1)


def test_folds_are_cut_from_the_official_parts_only() -> None:
    with pytest.raises(RequestError, match=r"--folds works only with --splits official\."):
        studies.study(folds=5, splits=("grouped",))
