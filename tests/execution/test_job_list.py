"""The frozen list of a study: as it was written, every job with one owner, trials before the jobs they decide."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from peftbench.core.record import Choice
from peftbench.core.spec import Job, Places
from peftbench.errors import JobError
from peftbench.execution import job_list
from peftbench.execution.job_list import Bundling
from peftbench.results.store import Store
from peftbench.study.resolve import Resolved, resolve
from tests import records, studies

METHODS = ("linear", "lora[alpha=16]", "shpeft[lam=0.5]", "full")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return studies.home(tmp_path_factory)


@pytest.fixture(scope="module")
def resolved(home: Path) -> Resolved:
    asked = studies.small(home / "images", methods=METHODS, recipe="standard", tune=8, seeds=(0, 1))
    return resolve(asked, studies.places(home))


@pytest.fixture
def places(home: Path, tmp_path: Path) -> Places:
    return replace(studies.places(home), store=tmp_path / "runs")


class Faked:
    """In place of training: keeps the jobs and writes a record for each, with a score that follows from the rate."""

    def __init__(self, store: Path) -> None:
        self.store, self.jobs = Store(store), list[Job]()

    def __call__(self, jobs: Sequence[Job]) -> None:
        for job in jobs:
            score: dict[str, float | None] = {"macro_f1": 1 - abs(job.recipe.lr - 1e-3)}
            choices = {"validation": Choice(step=1, val=score, test=score)}
            record = records.Fake().record().model_copy(update={"id": job.id, "role": job.role, "choices": choices})
            self.store.job(job.id).path.mkdir(parents=True, exist_ok=True)
            self.store.job(job.id).write_record(record)
            self.jobs.append(job)


def test_a_list_is_read_as_it_was_written(resolved: Resolved, places: Places, tmp_path: Path) -> None:
    listed = job_list.make(resolved, places, Bundling(600))
    job_list.write(tmp_path / "jobs.json", listed)
    found = job_list.read(tmp_path / "jobs.json")
    assert list(found.drafts) == list(listed.drafts)
    assert [draft.job.id for draft in found.drafts] == [draft.job.id for draft in listed.drafts]
    assert (found.places, found.asked, found.digest) == (places, json.loads(json.dumps(listed.asked)), listed.digest)
    assert (tmp_path / "jobs.json").stat().st_mode & 0o077 == 0


def test_a_list_that_was_changed_is_rejected(resolved: Resolved, places: Places, tmp_path: Path) -> None:
    file = tmp_path / "jobs.json"
    job_list.write(file, job_list.make(resolved, places, Bundling(600)))
    file.write_text(file.read_text().replace('"timeout": null', '"timeout": 1.0'))
    with pytest.raises(JobError, match="was modified after it was written; submit the study again"):
        job_list.read(file)
    with pytest.raises(JobError, match="every node must see the store under the same path"):
        job_list.read(tmp_path / "nowhere.json")


def test_tasks_run_every_job_once_and_choose_as_a_local_run(resolved: Resolved, places: Places) -> None:
    listed, run = job_list.make(resolved, places, Bundling(600)), Faked(places.store)
    for phase in job_list.PHASES:
        for number in range(len(listed.tasks[phase])):
            listed.run_task(phase, number, run)
    ids = [job.id for job in run.jobs]
    assert len(ids) == len(set(ids))
    store = Store(places.store)
    assert set(ids) >= {draft.final(store).id for draft in resolved.drafts}
    assert sum(job.role == "trial" for job in run.jobs) == 8 * len(
        {d.search.job.id for d in resolved.drafts if d.search}
    )
    assert set(json.loads((places.store / "study.json").read_text())["jobs"]) <= set(ids)
    again = job_list.make(resolved, places, Bundling(600))
    assert not any(again.tasks.values())


def test_a_task_whose_trials_were_lost_runs_its_other_jobs_and_names_them(resolved: Resolved, places: Places) -> None:
    listed, run = job_list.make(resolved, places, Bundling(1e9, most=1)), Faked(places.store)
    with pytest.raises(JobError, match=r"Trials of .* have not ended. Run the same `peftbench run` again"):
        listed.run_task("resolve", 0, run)
    (only,) = listed.tasks["finals"]
    untuned = [number for number in only if listed.drafts[number].search is None]
    with pytest.raises(JobError, match="have not ended"):
        listed.run_task("finals", 0, run)
    assert len(run.jobs) == len(untuned)


def test_lost_trials_of_the_first_round_are_run_by_the_search(resolved: Resolved, places: Places) -> None:
    listed, run = job_list.make(resolved, places, Bundling(600)), Faked(places.store)
    listed.run_task("searches", 0, run)
    assert len(run.jobs) == 8
