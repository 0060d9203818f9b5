"""What is kept, how much of it, and what is never dropped."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from peftbench.cli.cache import clear_cache
from peftbench.data.pixel_cache import prepare
from peftbench.errors import DataError
from peftbench.profiling import history
from peftbench.profiling.history import Measured
from peftbench.storage import cache, checked_json
from peftbench.storage.cache import Hold, making, publish, shrink
from peftbench.storage.checked_tensors import cached
from tests.images import CARD, SMALL, splits
from tests.studies import call


def put(root: Path, kind: str, name: str, size: int, used: int) -> Path:
    folder = root / kind / name
    folder.mkdir(parents=True)
    (folder / "content").write_bytes(bytes(size))
    Hold(folder).close()
    os.utime(folder.with_name(f".{name}.lock"), (used, used))
    return folder


def names(root: Path) -> list[str]:
    return [entry.folder.name for entry in cache.entries(root)]


def test_entries_come_with_size_and_last_use_first(tmp_path: Path) -> None:
    put(tmp_path, "pixels", "old", 10, 1000)
    put(tmp_path, "features", "new", 20, 2000)
    assert [(e.kind, e.folder.name, e.bytes, e.used) for e in cache.entries(tmp_path)] == [
        ("features", "new", 20, 2000.0),
        ("pixels", "old", 10, 1000.0),
    ]


def test_the_least_recently_used_go_first_until_the_rest_fits(tmp_path: Path) -> None:
    for name, used in (("a", 3), ("b", 1), ("c", 2)):
        put(tmp_path, "probes", name, 100, used)
    assert [entry.folder.name for entry in shrink(tmp_path, 250)] == ["b"]
    assert names(tmp_path) == ["a", "c"]
    assert shrink(tmp_path, 250) == []
    shrink(tmp_path, 0)
    assert [*(tmp_path / "probes").iterdir()] == []  # and no lock either


def test_use_makes_recent(tmp_path: Path) -> None:
    old = put(tmp_path, "pixels", "old", 10, 1000)
    put(tmp_path, "pixels", "new", 10, 2000)
    Hold(old).close()
    assert names(tmp_path) == ["old", "new"]


HOLDING = """
import sys
from pathlib import Path
from peftbench.storage.cache import Hold
hold = Hold(Path(sys.argv[1]))
print("held", flush=True)
sys.stdin.readline()
"""


def test_what_another_process_uses_stays(tmp_path: Path) -> None:
    folder = put(tmp_path, "pixels", "used", 100, 1)
    put(tmp_path, "pixels", "free", 100, 2)
    command = [sys.executable, "-c", HOLDING, str(folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        assert [entry.folder.name for entry in shrink(tmp_path, 0)] == ["free"]
        process.communicate("go\n")
    assert [entry.folder.name for entry in shrink(tmp_path, 0)] == ["used"]


def test_a_draft_whose_maker_died_is_swept_and_one_in_work_is_not(tmp_path: Path) -> None:
    dead = tmp_path / "pixels/.dead.draft"
    dead.mkdir(parents=True)
    with making(tmp_path / "pixels/live") as draft:
        shrink(tmp_path, 1000)
        assert not dead.exists()
        assert draft.exists()
        (draft / "content").write_text("done")
        publish(draft, tmp_path / "pixels/live")
    assert names(tmp_path) == ["live"]
    assert (tmp_path / "pixels/live/content").read_text() == "done"


def test_a_maker_that_fails_leaves_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "pixels/x"
    folder.parent.mkdir()
    with pytest.raises(ValueError, match="stop"), making(folder):
        raise ValueError("stop")
    assert [*folder.parent.iterdir()] == []


# --- the verbs -------------------------------------------------------------------------------------------------------


def test_cache_list_states_kinds_sizes_and_what_is_damaged(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    data = prepare(CARD, splits(tmp_path / "d"), SMALL, tmp_path / "c")
    put(tmp_path / "c", "probes", "estimate", 2_500_000, 0)
    assert call(["cache", "list", "--cache", str(tmp_path / "c"), "--verify"], monkeypatch) == 0
    shown = capsys.readouterr().out
    assert data.folder.name in shown
    assert "whole" in shown
    assert "2.5 MB" in shown
    with (data.folder / "pixels.npy").open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"!")
    assert call(["cache", "list", "--cache", str(tmp_path / "c"), "--verify", "--json"], monkeypatch) == 1
    rows = json.loads(capsys.readouterr().out)["entries"]
    assert {row["kind"]: row["state"] for row in rows} == {"pixels": "damaged", "probes": "whole"}


def test_cache_list_states_of_every_kind_whether_it_is_whole(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "probes" / "key" / "squares.safetensors"
    cached(file, lambda: {"a": torch.arange(3.0)})
    checked_json.write(tmp_path / "audit" / "key" / "evidence.json", [1, 2], "key")
    words = ["cache", "list", "--cache", str(tmp_path), "--verify", "--json"]
    assert call(words, monkeypatch) == 0
    for place in (file, tmp_path / "audit" / "key" / "evidence.json"):
        place.write_bytes(place.read_bytes()[:-2] + b"!!")
    assert {row["state"] for row in json.loads(capsys.readouterr().out)["entries"]} == {"whole"}
    assert call(words, monkeypatch) == 1
    rows = json.loads(capsys.readouterr().out)["entries"]
    assert {row["kind"]: row["state"] for row in rows} == {"probes": "damaged", "audit": "damaged"}


@pytest.mark.parametrize("error", [errno.ENOLCK, errno.EROFS])
def test_a_cache_that_cannot_be_locked_is_named_with_what_to_do(
    error: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(error, os.strerror(error))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(DataError, match=r"Cannot use the cache at .* \(.*\); choose another folder with --cache\."):
        cache.Hold(tmp_path / "pixels" / "key")


def test_cache_clear_removes_what_was_named_and_is_not_in_use(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    used = put(tmp_path, "pixels", "used", 10, 0)
    put(tmp_path, "pixels", "free", 10, 0)
    put(tmp_path, "features", "kept", 10, 0)
    with Hold(used):
        assert call(["cache", "clear", "--pixels", "--cache", str(tmp_path)], monkeypatch) == 0
    assert "Removed: 1, 10 Bytes" in (said := capsys.readouterr().out)
    assert "in use and kept: 1" in said
    assert sorted(names(tmp_path)) == ["kept", "used"]
    assert call(["cache", "clear", "--all", "--cache", str(tmp_path)], monkeypatch) == 0
    assert names(tmp_path) == []


def test_cache_clear_wants_to_know_what(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert call(["cache", "clear", "--cache", str(tmp_path)], monkeypatch) == 2
    assert "--pixels, --probes, --features, --audit, --measured, or --all" in capsys.readouterr().err


def test_a_data_set_in_use_outlives_a_small_bound(tmp_path: Path) -> None:
    first = prepare(CARD, splits(tmp_path / "d"), SMALL, tmp_path / "c", limit=1)
    second = prepare(CARD, splits(tmp_path / "e", (5, 1, 3)), SMALL, tmp_path / "c", limit=1)
    assert sorted(names(tmp_path / "c")) == sorted([first.folder.name, second.folder.name])
    gone = first.folder
    del first
    prepare(CARD, splits(tmp_path / "f", (6, 1, 3)), SMALL, tmp_path / "c", limit=1)
    assert not gone.exists()
    assert second.folder.exists()


def test_what_measure_found_is_kept_with_the_rest(tmp_path: Path) -> None:
    cost = Measured.model_construct(method="lora")
    history.remember(tmp_path, {"method": "lora"}, cost)
    assert [entry.kind for entry in cache.entries(tmp_path)] == ["measured"]
    clear_cache(tmp_path, ["measured"])
    assert history.recall(tmp_path, {"method": "lora"}) is None
    assert cache.entries(tmp_path) == []


def test_thousands_of_entries_are_held_with_a_handful_of_open_files(tmp_path: Path) -> None:
    before = sum(1 for _ in Path("/proc/self/fd").iterdir())
    folders = [tmp_path / "pixels" / f"{i:04d}" for i in range(600)]
    for folder in folders:
        folder.mkdir(parents=True)
    holds = [Hold(folder) for folder in folders]
    assert sum(1 for _ in Path("/proc/self/fd").iterdir()) <= before + 3
    first, second = (cache.CacheEntry("pixels", folder, 0, 0.0) for folder in folders[:2])
    holds[0].close()
    assert cache.drop(first)
    assert not cache.drop(second)


def test_an_entry_may_be_held_more_than_once(tmp_path: Path) -> None:
    folder = tmp_path / "pixels" / "key"
    folder.mkdir(parents=True)
    one, two = Hold(folder), Hold(folder)
    one.close()
    assert not cache.drop(cache.CacheEntry("pixels", folder, 0, 0.0))
    two.close()
    assert cache.drop(cache.CacheEntry("pixels", folder, 0, 0.0))
