"""Tensors that the jobs of a sweep share: made once, by the first process, and never stored partly."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torch import Tensor

from peftbench.storage import cache
from peftbench.storage.checked_tensors import cached, is_whole


def test_of_jobs_side_by_side_one_makes_it(tmp_path: Path) -> None:
    made: list[int] = []
    ready = threading.Barrier(3)

    def make() -> dict[str, Tensor]:
        made.append(1)
        time.sleep(0.3)
        return {"x": torch.arange(5)}

    def job(_: int) -> list[int]:
        ready.wait()
        return list(map(int, cached(tmp_path / "probes/key/x.safetensors", make)["x"]))

    with ThreadPoolExecutor(3) as pool:
        assert list(pool.map(job, range(3))) == [[0, 1, 2, 3, 4]] * 3
    assert made == [1]
    assert [file.name for file in (tmp_path / "probes/key").iterdir()] == ["x.safetensors"]


def test_a_maker_that_fails_leaves_nothing_and_the_next_one_makes_it(tmp_path: Path) -> None:
    file = tmp_path / "features/key/x.safetensors"

    def fail() -> dict[str, Tensor]:
        raise OSError("the disk is full")

    with pytest.raises(OSError, match="the disk is full"):
        cached(file, fail)
    assert list(file.parent.iterdir()) == []
    (file.parent / ".x.safetensors.draft").write_text("of a process that was killed")
    cached(file, lambda: {"x": torch.ones(2)})
    assert is_whole(file)
    assert [one.name for one in file.parent.iterdir()] == ["x.safetensors"]


def test_a_copy_of_another_entry_is_made_again(tmp_path: Path) -> None:
    first, second = (tmp_path / f"probes/{name}/x.safetensors" for name in ("first", "second"))
    cached(first, lambda: {"x": torch.zeros(2)})
    cached(second, lambda: {"x": torch.ones(2)})
    second.write_bytes(first.read_bytes())
    assert not is_whole(second)
    assert cached(second, lambda: {"x": torch.ones(2)})["x"].tolist() == [1, 1]


def test_an_entry_that_is_dropped_while_all_are_listed_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("gone", "here"):
        cached(tmp_path / f"probes/{name}/x.safetensors", lambda: {"x": torch.zeros(2)})
    listed = cache._folders(tmp_path / "probes")
    assert cache.drop(next(entry for entry in cache.entries(tmp_path) if entry.folder.name == "gone"))
    monkeypatch.setattr(cache, "_folders", lambda place: listed if place.name == "probes" else [])
    assert [entry.folder.name for entry in cache.entries(tmp_path)] == ["here"]
