"""What lies on disk: whole files or none, for the owner's eyes, and one clear sentence where that cannot be."""

from __future__ import annotations

import json
import os
import shutil
import stat
from pathlib import Path

import numpy as np
import pytest

from peftbench.core.contract import Result
from peftbench.errors import StoreError
from peftbench.results import store
from peftbench.results.store import Store, write_bytes, write_predictions
from tests import records


class Crash(BaseException):
    """The machine stops: nothing handles it."""


def test_a_crash_between_draft_and_rename_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "record.json"
    store.write_bytes(file, b"old")

    def crash(*_: object) -> None:
        raise Crash

    monkeypatch.setattr(Path, "replace", crash)
    with pytest.raises(Crash):
        store.write_bytes(file, b"new")
    assert file.read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["record.json"]


def test_what_is_renamed_was_on_the_disk_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    sync, rename = os.fsync, Path.replace

    def watched_sync(number: int) -> None:
        done.append("sync")
        sync(number)

    def watched_rename(draft: Path, target: Path) -> Path:
        done.append("rename")
        return rename(draft, target)

    monkeypatch.setattr(os, "fsync", watched_sync)
    monkeypatch.setattr(Path, "replace", watched_rename)
    store.write_json(tmp_path / "job.json", {"b": 1, "a": 2})
    assert done == ["sync", "rename"]
    assert json.loads((tmp_path / "job.json").read_text()) == {"a": 2, "b": 1}


def test_predictions_hold_no_pickles(tmp_path: Path) -> None:
    store.write_predictions(tmp_path / "predictions.npz", {"test/labels": np.arange(3)})
    with np.load(tmp_path / "predictions.npz", allow_pickle=False) as stored:
        assert stored["test/labels"].tolist() == [0, 1, 2]


def mode(path: Path) -> str:
    return stat.filemode(path.stat().st_mode)


def test_only_the_owner_may_look_into_a_store(tmp_path: Path) -> None:
    here = Store(tmp_path / "runs")
    here.prepare()
    with here.claim("abc") as mine:
        assert mine
    assert {mode(path) for path in (here.root, here.root / "jobs", here.folder("abc"))} == {"drwx------"}


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
    here.folder("abc").mkdir(parents=True)
    (here.folder("abc") / "record.json").write_text(content)
    with pytest.raises(StoreError, match=r"The record .*abc.record.json cannot be read .* run the study again"):
        here.record("abc")


def test_what_cannot_be_written_is_named_as_it_was_asked_for(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as raised:
        write_bytes(tmp_path / "nowhere" / "a.csv", b"")
    assert raised.value.filename == str(tmp_path / "nowhere" / "a.csv")


def test_a_record_of_another_job_or_without_its_seal_is_refused(tmp_path: Path) -> None:
    here = Store(tmp_path)
    here.folder("abc").mkdir(parents=True)
    record = here.write_record(records.Fake().record().model_copy(update={"id": "abc"}))
    shutil.copytree(here.folder("abc"), here.folder("def"))
    with pytest.raises(StoreError, match=r"def.record\.json is of another job, abc; move its folder away"):
        here.record("def")
    (here.folder("abc") / "record.json").write_text(record.model_copy(update={"seal": ""}).model_dump_json())
    with pytest.raises(StoreError, match="was changed after it was written"):
        here.record("abc")


def test_states_are_read_from_the_disk(tmp_path: Path) -> None:
    here = Store(tmp_path)
    assert here.state("abc") == "new"
    with here.claim("abc"):
        assert here.state("abc") == "running"
    assert here.state("abc") == "interrupted"
    for status in ("failed", "done"):
        here.write_record(records.Fake().record().model_copy(update={"id": "abc", "status": status}))
        assert here.state("abc") == status


def test_a_done_job_with_its_state_left_is_to_be_cleared(tmp_path: Path) -> None:
    here = Store(tmp_path)
    (here.folder("abc") / "state").mkdir(parents=True)
    here.write_record(records.Fake().record().model_copy(update={"id": "abc"}))
    assert here.state("abc") == "interrupted"


def test_a_job_is_held_by_one_at_a_time(tmp_path: Path) -> None:
    here = Store(tmp_path)
    with here.claim("abc") as first, here.claim("abc") as second, here.claim("other") as third:
        assert (first, second, third) == (True, False, True)
    with here.claim("abc") as again:
        assert again


def test_forgetting_a_failed_job_leaves_its_request(tmp_path: Path) -> None:
    here = Store(tmp_path)
    (here.folder("abc") / "state").mkdir(parents=True)
    for name in ("job.json", "record.json", "curve.csv", "state/checkpoint.safetensors"):
        (here.folder("abc") / name).touch()
    here.forget("abc")
    assert [path.name for path in here.folder("abc").iterdir()] == ["job.json"]


def test_drafts_of_a_killed_process_are_swept(tmp_path: Path) -> None:
    here = Store(tmp_path)
    (here.folder("abc") / "state").mkdir(parents=True)
    for name in (".record.json.0.draft", "state/.checkpoint.safetensors.1.draft", "job.json", ".lock"):
        (here.folder("abc") / name).touch()
    here.sweep("abc")
    assert sorted(path.name for path in here.folder("abc").rglob("*") if path.is_file()) == [".lock", "job.json"]


def test_a_folder_without_results_says_so(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="There are no results in"):
        Store(tmp_path).results()


def test_results_are_those_jobs_that_ended(tmp_path: Path) -> None:
    here = Store(tmp_path)
    for name in ("b", "a", "running"):
        here.folder(name).mkdir(parents=True)
    for name in ("b", "a"):
        here.write_record(records.Fake().record().model_copy(update={"id": name}))
    (here.root / "jobs" / ".DS_Store").touch()  # what a desktop leaves
    assert [result.folder.name for result in here.results()] == ["a", "b"]


def test_an_empty_store_goes_and_one_with_a_job_stays(tmp_path: Path) -> None:
    empty, used = Store(tmp_path / "empty"), Store(tmp_path / "used")
    for one in (empty, used):
        one.prepare()
    used.folder("a").mkdir()
    for one in (empty, used):
        one.discard()
    assert not empty.root.exists()
    assert used.folder("a").exists()


def test_a_changed_record_is_seen(tmp_path: Path) -> None:
    here = Store(tmp_path)
    here.prepare()
    here.folder("abc").mkdir()
    record = here.write_record(records.Fake().record().model_copy(update={"id": "abc"}))
    assert here.record("abc") == record
    file = here.folder("abc") / "record.json"
    file.write_text(file.read_text().replace('"seed": 0', '"seed": 1'))
    with pytest.raises(StoreError, match="was changed after it was written"):
        here.record("abc")


def test_changed_predictions_are_seen(tmp_path: Path) -> None:
    here = Store(tmp_path)
    here.prepare()
    here.folder("abc").mkdir()
    file = here.folder("abc") / "predictions.npz"
    beside = {"test/labels": np.array([0, 1]), "test/groups": np.array([0, 1])}
    write_predictions(file, {"test/last/logits": np.zeros((2, 2), np.float32), **beside})
    record = here.write_record(records.Fake().record().model_copy(update={"id": "abc"}))
    result = Result(record, here.folder("abc"))
    assert result.predictions("last")[2] == (0, 1)
    write_predictions(file, {"test/last/logits": np.ones((2, 2), np.float32), **beside})
    with pytest.raises(StoreError, match="was changed after its record"):
        result.predictions("last")
