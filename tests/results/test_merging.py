"""Stores that were filled in different places become one: verified, nothing overwritten, conflicts named."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from peftbench.errors import RequestError, StoreError
from peftbench.results.merging import merge
from peftbench.results.store import Store
from tests.records import Fake
from tests.studies import call

LORA, BITFIT = Fake("lora"), Fake("bitfit")


@pytest.fixture
def halves(tmp_path: Path) -> tuple[Path, Path]:
    """Two stores with one job in both."""
    for name, fakes in (("a", (LORA,)), ("b", (LORA, BITFIT))):
        for fake in fakes:
            fake.write(tmp_path / name)
            folder = Store(tmp_path / name).job(fake.id)
            folder.write_record(fake.record())
            folder.write_private({"names": {"test": ["anna.png"]}})
        (tmp_path / name / "study.json").write_text(
            json.dumps({"asked": {"seeds": [0]}, "jobs": {fake.id: {"seed": 0} for fake in fakes}, "says": [name]})
        )
    return tmp_path / "a", tmp_path / "b"


def test_the_jobs_of_both_are_in_the_merged_store(halves: tuple[Path, Path], tmp_path: Path) -> None:
    merged = merge(halves, tmp_path / "c")
    assert (sorted(merged.copied), merged.equal, merged.conflicts) == (sorted([LORA.id, BITFIT.id]), [LORA.id], {})
    store = Store(tmp_path / "c")
    assert {store.job(name).state() for name in store.ids()} == {"done"}
    assert not [name for name in store.ids() if store.job(name).damage()]
    study = json.loads((tmp_path / "c" / "study.json").read_text())
    assert (set(study["jobs"]), study["says"]) == ({LORA.id, BITFIT.id}, ["a", "b"])


def test_private_files_stay_where_they_are_unless_asked_for(halves: tuple[Path, Path], tmp_path: Path) -> None:
    merge(halves, tmp_path / "c")
    assert not list((tmp_path / "c").rglob("private.json"))
    merge(halves, tmp_path / "c", with_private=True)
    assert Store(tmp_path / "c").job(LORA.id).private_file.exists()


def test_a_conflict_is_named_and_the_first_copy_stays(halves: tuple[Path, Path], tmp_path: Path) -> None:
    folder = Store(halves[1]).job(LORA.id)
    folder.write_record(LORA.record().model_copy(update={"facts": {"modules": 3.0}}))
    merged = merge(halves, tmp_path / "c")
    assert merged.conflicts == {LORA.id: f"{halves[1]} differs in facts"}
    record = Store(tmp_path / "c").job(LORA.id).record()
    assert record is not None
    assert record.facts == {}


def test_a_damaged_job_is_left_out(halves: tuple[Path, Path], tmp_path: Path) -> None:
    Store(halves[1]).job(BITFIT.id).predictions_file.write_bytes(b"")
    merged = merge(halves, tmp_path / "c")
    assert list(merged.left_out) == [f"{halves[1]}: {BITFIT.id}"]
    assert Store(tmp_path / "c").ids() == [LORA.id]


def test_a_job_that_failed_in_one_place_is_taken_from_the_other(tmp_path: Path) -> None:
    for name, status in (("a", "failed"), ("b", "done")):
        LORA.write(tmp_path / name)
        Store(tmp_path / name).job(LORA.id).write_record(LORA.record().model_copy(update={"status": status}))
    merged = merge([tmp_path / "a", tmp_path / "b"], tmp_path / "c")
    assert Store(tmp_path / "c").job(LORA.id).state() == "done"
    assert list(merged.left_out.values()) == ["it failed, and is done in another store"]


def test_a_folder_that_is_no_store_is_refused_before_anything_is_written(
    halves: tuple[Path, Path], tmp_path: Path
) -> None:
    with pytest.raises(StoreError, match="There are no results in"):
        merge([*halves, tmp_path / "nowhere"], tmp_path / "c")
    with pytest.raises(RequestError, match="is one of the stores to merge"):
        merge(halves, halves[0])
    assert not (tmp_path / "c").exists()


def test_the_command_ends_with_1_after_a_conflict(
    halves: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["merge-stores", *map(str, halves), "-o", str(tmp_path / "c")]
    assert call(words, monkeypatch) == 0
    assert "2 jobs copied" in capsys.readouterr().out
    shutil.rmtree(tmp_path / "c")
    Store(halves[1]).job(LORA.id).write_record(LORA.record().model_copy(update={"notes": ["other"]}))
    assert call(words, monkeypatch) == 1
    assert "Conflict in job" in capsys.readouterr().err
