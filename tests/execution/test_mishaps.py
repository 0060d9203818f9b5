"""Failures of the machine: no memory, a full disk, no locks, and a power cut at any moment."""

from __future__ import annotations

import errno
import fcntl
import os
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from peftbench.core.recipe import Recipe
from peftbench.core.spec import Job
from peftbench.data.batches import FeatureBatches
from peftbench.errors import DivergedError, StoreError
from peftbench.results.store import Store
from peftbench.storage import checked_tensors, files
from peftbench.training import job as job_module
from peftbench.training import loop
from peftbench.training.checkpoint import Checkpoint
from peftbench.training.job import run
from peftbench.training.loop import Learner, Progress, Task, fit
from tests import studies

RECIPE = Recipe("tiny", lr=0.05, batch=6, steps=8, evaluations=2, precision="fp32")
CPU_WORDS = (
    "[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."
)
CRASHES = int(os.environ.get("PEFTBENCH_TEST_CRASHES", "10"))


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return studies.home(tmp_path_factory)


@pytest.fixture(scope="module")
def job(home: Path) -> Job:
    (found,) = studies.jobs(studies.small(home / "images", methods=("bitfit",)), studies.places(home))
    return found


# --- memory ----------------------------------------------------------------------------------------------------------


def starving(times: int, error: Exception) -> Callable[..., Progress]:
    """Return a `fit` that runs out of memory the first `times` times."""
    left = [times]

    def tried(*arguments: Any, **named: Any) -> Progress:
        left[0] -= 1
        if left[0] >= 0:
            raise error
        return fit(*arguments, **named)

    return tried


@pytest.mark.parametrize(
    "error", [RuntimeError(CPU_WORDS), MemoryError(), torch.OutOfMemoryError("CUDA out of memory.")]
)
def test_a_batch_is_split_when_memory_is_short(
    error: Exception, job: Job, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run(job, replace(studies.places(home), store=tmp_path / "whole"))
    monkeypatch.setattr(job_module, "fit", starving(1, error))
    record = run(job, replace(studies.places(home), store=tmp_path / "pieces"))
    assert record is not None
    assert whole is not None
    assert record.status == "done"
    assert "each batch split into 4 pieces (out of memory)" in record.notes
    assert not any("pieces" in note for note in whole.notes)
    one, other = (Store(tmp_path / name).results()[0].predictions("last")[0] for name in ("pieces", "whole"))
    assert np.allclose(
        one, other, rtol=1e-3, atol=1e-3
    )  # the mean gradient of the pieces is the batch's, up to rounding


def test_when_that_is_not_enough_the_job_fails_with_the_size_it_needed(
    job: Job, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job_module, "fit", starving(2, RuntimeError(CPU_WORDS)))
    record = run(job, replace(studies.places(home), store=tmp_path))
    assert record is not None
    assert record.status == "failed"
    assert record.reason.startswith("Out of memory, also with every batch in 4 pieces")
    assert "you tried to allocate 9 bytes" in record.reason


def test_another_runtime_error_is_not_taken_for_it(
    job: Job, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job_module, "fit", starving(1, RuntimeError("shapes differ")))
    record = run(job, replace(studies.places(home), store=tmp_path))
    assert record is not None
    assert record.reason == "RuntimeError: shapes differ"


def learner() -> Learner:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3)).double()
    return Learner(model, model.state_dict(keep_vars=True))


def task() -> Task:
    rng = np.random.default_rng(0)
    return Task(
        FeatureBatches(torch.from_numpy(rng.normal(size=(20, 4)))), torch.from_numpy(rng.integers(3, size=20)), {}, 3
    )


@pytest.mark.parametrize("pieces", [2, 4, 6])
def test_pieces_give_the_gradients_of_the_whole(pieces: int) -> None:
    whole, cut = learner(), learner()
    curves = [fit(one, task(), RECIPE, 0, pieces=n).curve for one, n in ((whole, 1), (cut, pieces))]
    for name, tensor in whole.tensors.items():
        torch.testing.assert_close(cut.tensors[name], tensor, rtol=1e-9, atol=1e-12)
    assert curves[0][-1]["train_loss"] == pytest.approx(curves[1][-1]["train_loss"], rel=1e-9)


def test_a_loss_that_explodes_is_a_failure_within_50_steps() -> None:
    mine, steps = learner(), list[int]()
    mine.model.register_forward_hook(lambda *call: 1e4 * cast("torch.Tensor", call[2]))
    mine.model.register_forward_pre_hook(lambda *_: steps.append(1))
    with pytest.raises(DivergedError, match=r"Loss of .* by step \d+"):
        fit(mine, task(), replace(RECIPE, steps=500, lr=1.0), 0)
    assert len(steps) <= loop.REPORT_EVERY


def test_a_last_step_that_breaks_the_network_is_no_result() -> None:
    mine, train = learner(), task()
    broken = replace(train, parts={"val": (train.train, train.labels.numpy())})
    with pytest.raises(DivergedError, match="Non-finite logits at step 1 at learning rate 1e"):
        fit(mine, broken, replace(RECIPE, steps=1, evaluations=1, lr=1e308), 0)


# --- disk ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_leaves_no_half_record(
    error: int, job: Job, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    where, written = replace(studies.places(home), store=tmp_path), files.write_bytes

    def full(file: Path, content: bytes, *, private: bool = False) -> None:
        if file.name == "record.json":
            raise OSError(error, os.strerror(error), str(file))
        written(file, content, private=private)

    with monkeypatch.context() as patch:
        patch.setattr(files, "write_bytes", full)
        with pytest.raises(
            StoreError, match=rf"The disk is full \(.*record\.json: {os.strerror(error)}\): .*Free some space"
        ):
            run(job, where)
    assert Store(tmp_path).job(job.id).state() == "interrupted"
    record = run(job, where)
    assert record is not None
    assert record.status == "done"


def test_a_disk_that_is_full_half_way_costs_no_checkpoint(
    job: Job, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    where, written = replace(studies.places(home), store=tmp_path), checked_tensors.write

    def full(file: Path, tensors: Mapping[str, Tensor], text: str) -> None:
        if file.exists():  # the second checkpoint
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written(file, tensors, text)

    with monkeypatch.context() as patch:
        patch.setattr(checked_tensors, "write", full)
        with pytest.raises(StoreError, match="The disk is full"):
            run(job, where)
    assert Store(tmp_path).job(job.id).state() == "interrupted"
    begun = Checkpoint(Store(tmp_path).job(job.id)).read()
    assert begun is not None
    assert begun[0].step > 0


def test_a_file_system_without_locks_is_named(job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(StoreError, match=r"cannot lock files.*--store"), Store(tmp_path).job(job.id).claim():
        pass


def test_a_clock_that_goes_back_changes_nothing(
    job: Job, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    where = replace(studies.places(home), store=tmp_path / "back")
    usual = run(job, replace(studies.places(home), store=tmp_path / "usual"))
    ticks = iter(range(10**6, 0, -1))
    monkeypatch.setattr(time, "time", lambda: float(next(ticks)))
    back = run(job, where)
    assert usual is not None
    assert back is not None
    assert back.choices == usual.choices
    assert back.costs is not None
    assert back.costs.seconds > 0


# --- power -----------------------------------------------------------------------------------------------------------


def test_a_study_killed_again_and_again_ends_with_the_same_bits(home: Path, tmp_path: Path) -> None:
    """At random moments, PEFTBENCH_TEST_CRASHES times; `nox -s crash` does it a hundred times."""
    asked = ("--methods", "shpeft,lora", "--datasets", f"folder:{home / 'images'}", "--recipe", "quick")
    words = ("run", *asked, *studies.SHORT)
    homes = [tmp_path / name for name in ("undisturbed", "disturbed")]
    for folder in homes:
        folder.mkdir()
    started = time.perf_counter()
    finish(words, homes[0])
    seconds = time.perf_counter() - started
    draw = random.Random(0)  # noqa: S311 - no secret
    for _ in range(CRASHES):
        process = studies.start(words, homes[1])
        process.join(timeout=draw.uniform(0.05, 0.9) * seconds)
        process.kill()
        process.join()
    finish(words, homes[1])
    left = [{f.name: studies.left_by(f) for f in (folder / "runs" / "jobs").iterdir()} for folder in homes]
    assert left[0].keys() == left[1].keys()
    for name, own in left[0].items():
        assert {key for key in own.keys() | left[1][name].keys() if own.get(key) != left[1][name].get(key)} == set()


def finish(words: tuple[str, ...], home: Path) -> None:
    process = studies.start(words, home)
    process.join()
    assert process.exitcode == 0, (home / "out.txt").read_text()
