"""The bench of large stores, at a small size: its made-up jobs are those of a study and pass for finished ones."""

from __future__ import annotations

from pathlib import Path

import pytest

from peftbench.benchmarks import bench_store
from peftbench.core.fields import build
from peftbench.core.spec import Places, Study
from peftbench.results.store import Store
from tests import studies


def test_made_up_jobs_are_finished_jobs_of_the_study(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in (("DATASETS", 1), ("SEEDS", 2), ("BUDGETS", 1)):
        monkeypatch.setattr(bench_store, name, value)
    options, places = bench_store.study_options(tmp_path, 4), Places(tmp_path / "s", tmp_path / "d", tmp_path / "c")
    made = bench_store.fill(build(Study, options, "bench"), places)
    jobs = Store(places.store).jobs()
    assert len(jobs) == made == 4
    assert {(job.state(), job.damage()) for job in jobs} == {("done", "")}
    assert studies.call(["run", *bench_store.commands(options, places)["run"]], monkeypatch) == 0
    assert "4 of 4 jobs were done before." in capsys.readouterr().out
