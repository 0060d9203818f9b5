"""The files of a store: complete or absent, readable by the owner only, and one clear sentence for every failure."""

from __future__ import annotations

import shutil
import stat
from pathlib import Path

import numpy as np
import pytest

from peftbench.core.contract import Result
from peftbench.errors import StoreError
from peftbench.results.store import JobFolder, Store
from tests import records


def test_predictions_hold_no_pickles(tmp_path: Path) -> None:
    JobFolder(tmp_path).write_predictions({"test/labels": np.arange(3)})
    with np.load(tmp_path / "predictions.npz", allow_pickle=False) as stored:
        assert stored["test/labels"].tolist() == [0, 1, 2]


def mode(path: Path) -> str:
    return stat.filemode(path.stat().st_mode)


def test_only_the_owner_may_look_into_a_store(tmp_path: Path) -> None:
    here = Store(tmp_path / "runs")
    here.prepare()
    with here.job("abc").claim() as mine:
        assert mine
    assert {mode(path) for path in (here.root, here.root / "jobs", here.job("abc").path)} == {"drwx------"}


@pytest.mark.parametrize("place", ["file", "file/below"])
def test_a_store_that_is_no_folder_is_refused(place: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match=r"Cannot write results into .*file.* choose another folder with --store"):
        Store(tmp_path / place).prepare()


def test_a_store_that_cannot_be_written_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "touch", refuse)  # root may write into a read-only folder, so that none would do here
    with pytest.raises(StoreError, match=r"Cannot write results into .* \(Permission denied\)"):
        Store(tmp_path / "runs").prepare()


@pytest.mark.parametrize("content", ["", "{", "{}", '{"id": "abc", "more": 1}'])
def test_a_damaged_record_is_named(content: str, tmp_path: Path) -> None:
    here = Store(tmp_path)
    here.job("abc").path.mkdir(parents=True)
    (here.job("abc").path / "record.json").write_text(content)
    with pytest.raises(StoreError, match=r"The record .*abc.record.json cannot be read .* run the study again"):
        here.job("abc").record()


def test_a_record_of_another_job_or_without_its_seal_is_refused(tmp_path: Path) -> None:
    here = Store(tmp_path)
    here.job("abc").path.mkdir(parents=True)
    record = here.job("abc").write_record(records.Fake().record().model_copy(update={"id": "abc"}))
    shutil.copytree(here.job("abc").path, here.job("def").path)
    with pytest.raises(StoreError, match=r"def.record\.json is of another job, abc; move the job's folder away"):
        here.job("def").record()
    (here.job("abc").path / "record.json").write_text(record.model_copy(update={"seal": ""}).model_dump_json())
    with pytest.raises(StoreError, match="was changed after it was written"):
        here.job("abc").record()


def test_states_are_read_from_the_disk(tmp_path: Path) -> None:
    here = Store(tmp_path)
    assert here.job("abc").state() == "new"
    with here.job("abc").claim():
        assert here.job("abc").state() == "running"
    assert here.job("abc").state() == "interrupted"
    for status in ("failed", "done"):
        here.job("abc").write_record(records.Fake().record().model_copy(update={"id": "abc", "status": status}))
        assert here.job("abc").state() == status


def test_a_done_job_with_its_state_left_is_to_be_cleared(tmp_path: Path) -> None:
    here = Store(tmp_path)
    (here.job("abc").path / "state").mkdir(parents=True)
    here.job("abc").write_record(records.Fake().record().model_copy(update={"id": "abc"}))
    assert here.job("abc").state() == "interrupted"


def test_a_job_is_held_by_one_at_a_time(tmp_path: Path) -> None:
    here = Store(tmp_path)
    with here.job("abc").claim() as first, here.job("abc").claim() as second, here.job("other").claim() as third:
        assert (first, second, third) == (True, False, True)
    with here.job("abc").claim() as again:
        assert again


def test_forgetting_a_failed_job_leaves_its_request(tmp_path: Path) -> None:
    here = Store(tmp_path)
    (here.job("abc").path / "state").mkdir(parents=True)
    for name in ("job.json", "record.json", "curve.csv", "state/checkpoint.safetensors"):
        (here.job("abc").path / name).touch()
    here.job("abc").forget()
    assert [path.name for path in here.job("abc").path.iterdir()] == ["job.json"]


def test_drafts_of_a_killed_process_are_swept(tmp_path: Path) -> None:
    here = Store(tmp_path)
    (here.job("abc").path / "state").mkdir(parents=True)
    for name in (".record.json.0.draft", "state/.checkpoint.safetensors.1.draft", "job.json", ".lock"):
        (here.job("abc").path / name).touch()
    here.job("abc").sweep()
    assert sorted(path.name for path in here.job("abc").path.rglob("*") if path.is_file()) == [".lock", "job.json"]


def test_a_folder_without_results_is_reported(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="There are no results in"):
        Store(tmp_path).results()


def test_results_are_those_jobs_that_ended(tmp_path: Path) -> None:
    here = Store(tmp_path)
    for name in ("b", "a", "running"):
        here.job(name).path.mkdir(parents=True)
    for name in ("b", "a"):
        here.job(name).write_record(records.Fake().record().model_copy(update={"id": name}))
    (here.root / "jobs" / ".DS_Store").touch()  # what a desktop leaves
    assert [result.folder.name for result in here.results()] == ["a", "b"]


def test_a_job_that_cannot_be_read_is_named_and_left_out(tmp_path: Path) -> None:
    here, problems = Store(tmp_path), list[str]()
    for name in ("a", "b"):
        here.job(name).path.mkdir(parents=True)
        here.job(name).write_record(records.Fake().record().model_copy(update={"id": name}))
    here.job("a").record_file.write_text("{")
    assert [result.record.id for result in here.results(problems.append)] == ["b"]
    assert len(problems) == 1
    assert str(here.job("a").record_file) in problems[0]
    with pytest.raises(StoreError, match="cannot be read"):
        here.results()


def test_a_done_job_whose_files_are_gone_is_damaged(tmp_path: Path) -> None:
    job = Store(tmp_path).job("abc")
    job.path.mkdir(parents=True)
    job.write_predictions({"test/labels": np.arange(3)})
    job.write_record(records.Fake().record().model_copy(update={"id": "abc"}))
    assert job.state() == "done"
    job.predictions_file.unlink()
    assert job.state() == "damaged"


def test_an_empty_store_goes_and_one_with_a_job_stays(tmp_path: Path) -> None:
    empty, used = Store(tmp_path / "empty"), Store(tmp_path / "used")
    for one in (empty, used):
        one.prepare()
    used.job("a").path.mkdir()
    for one in (empty, used):
        one.discard()
    assert not empty.root.exists()
    assert used.job("a").path.exists()


def test_a_changed_record_is_seen(tmp_path: Path) -> None:
    here = Store(tmp_path)
    here.prepare()
    here.job("abc").path.mkdir()
    record = here.job("abc").write_record(records.Fake().record().model_copy(update={"id": "abc"}))
    assert here.job("abc").record() == record
    file = here.job("abc").path / "record.json"
    file.write_text(file.read_text().replace('"seed": 0', '"seed": 1'))
    with pytest.raises(StoreError, match="was changed after it was written"):
        here.job("abc").record()


def test_changed_predictions_are_seen(tmp_path: Path) -> None:
    here = Store(tmp_path)
    here.prepare()
    here.job("abc").path.mkdir()
    beside = {"test/labels": np.array([0, 1]), "test/groups": np.array([0, 1])}
    here.job("abc").write_predictions({"test/last/logits": np.zeros((2, 2), np.float32), **beside})
    record = here.job("abc").write_record(records.Fake().record().model_copy(update={"id": "abc"}))
    result = Result(record, here.job("abc").path)
    assert result.predictions("last")[2] == (0, 1)
    here.job("abc").write_predictions({"test/last/logits": np.ones((2, 2), np.float32), **beside})
    with pytest.raises(StoreError, match="was changed after its record"):
        result.predictions("last")
