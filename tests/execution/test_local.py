"""Jobs in parallel: the same numbers, each job once, and a message when a worker dies or Ctrl-C is pressed."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from dataclasses import dataclass, field, replace
from multiprocessing.managers import SyncManager
from pathlib import Path
from typing import NoReturn

import psutil
import pytest
import torch

from peftbench.core.record import Record
from peftbench.core.spec import Job, Places
from peftbench.errors import JobError
from peftbench.execution import local, signals
from peftbench.execution.executor import Tick, ticker
from peftbench.execution.local import LocalExecutor
from peftbench.results.store import Store
from peftbench.training.checkpoint import Checkpoint
from peftbench.training.loop import Chosen, Progress
from peftbench.training.optimizer import SAVE_EVERY
from tests import records, studies

METHODS = ("linear", "bitfit")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return studies.home(tmp_path_factory)


@pytest.fixture(scope="module")
def jobs(home: Path) -> list[Job]:
    return studies.jobs(studies.small(home / "images", methods=METHODS), studies.places(home))


@pytest.fixture
def warm(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let workers start with everything imported, where it does not matter which signals they inherit."""
    context = studies.warm_context()
    monkeypatch.setattr(multiprocessing, "get_context", lambda _method: context)


@dataclass
class Kept:
    """A monitor that keeps what it receives, and calls `on_tick` and `on_end`."""

    on_tick: Callable[[Tick], None] = lambda _: None
    on_end: Callable[[Job, Record], None] = lambda *_: None
    ticks: list[Tick] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    records: dict[str, Record] = field(default_factory=dict)

    def begin(self, what: str, jobs: Sequence[Job]) -> None:
        pass

    def note(self, text: str) -> None:
        pass

    def tick(self, tick: Tick) -> None:
        self.ticks.append(tick)
        self.on_tick(tick)

    def ended(self, job: Job, record: Record) -> None:
        self.records[job.id] = record
        self.on_end(job, record)

    def warn(self, text: str) -> None:
        self.warnings.append(text)


def run_all(jobs: Sequence[Job], where: Places, count: int) -> tuple[list[Tick], dict[str, Record]]:
    kept = Kept()
    LocalExecutor(count).run(jobs, where, kept)
    return kept.ticks, kept.records


@pytest.mark.usefixtures("warm")
def test_side_by_side_gives_the_numbers_of_one_by_one(jobs: list[Job], home: Path, tmp_path: Path) -> None:
    alone, together = (replace(studies.places(home), store=tmp_path / name) for name in ("alone", "together"))
    _, one_by_one = run_all(jobs, alone, 1)
    ticks, side_by_side = run_all(jobs, together, 2)
    assert one_by_one.keys() == side_by_side.keys() == {job.id for job in jobs}
    for job in jobs:
        own, theirs = (studies.left_by(where.store / "jobs" / job.id) for where in (together, alone))
        assert {key for key in own.keys() | theirs.keys() if own.get(key) != theirs.get(key)} == set()
    assert {tick.job_id for tick in ticks} <= set(one_by_one)


def test_workers_share_the_cards_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[int] = []
    monkeypatch.setattr(torch.cuda, "set_device", taken.append)
    monkeypatch.setattr(local, "call_when_orphaned", lambda _end: None)
    gpus = local.gpu_queue(multiprocessing.get_context("spawn"), 3, 2)
    for _ in range(3):
        local.start_worker(gpus, None)
    local.start_worker(local.gpu_queue(multiprocessing.get_context("spawn"), 3, 0), None)
    assert taken == [0, 1, 0]


def test_a_tick_holds_the_progress_of_a_job(jobs: list[Job]) -> None:
    sent: list[Tick] = []
    watch = ticker(jobs[0], sent.append)
    watch(Progress(step=4))
    watch(Progress(step=6, train_seconds=2.0, chosen={"validation": Chosen(4, 0.7, {})}))
    assert sent == [Tick(jobs[0].id, 4, 0.0, None), Tick(jobs[0].id, 6, 6 * 4 / 2.0, 0.7)]


def test_a_job_that_another_process_holds_is_waited_for(
    jobs: list[Job], home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers: Iterator[Record | None] = iter([None, records.Fake().record(), None, records.Fake().record()])
    naps: list[float] = []
    monkeypatch.setattr(local, "run", lambda *_: next(answers))
    monkeypatch.setattr(time, "sleep", naps.append)
    _, written = run_all(jobs, studies.places(home), 1)
    assert written.keys() == {job.id for job in jobs}
    assert naps == [1]  # after the third try alone, when nothing else was left to do


def test_ctrl_c_ends_the_workers_without_a_word(
    jobs: list[Job], home: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    long = [replace(job, recipe=replace(job.recipe, steps=100_000, evaluations=20_000)) for job in jobs]
    where = replace(studies.places(home), store=tmp_path)
    children: list[psutil.Process] = []

    def press(_: Tick) -> None:
        """Ctrl-C, as a terminal sends it: to every process of the group."""
        children.extend(psutil.Process().children(recursive=True))
        for process in (*children, psutil.Process()):
            process.send_signal(signal.SIGINT)
            process.send_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        LocalExecutor(2).run(long, where, Kept(press))
    assert capfd.readouterr().err.splitlines() == [
        "",
        "peftbench: stopping at the next step; Ctrl-C again stops at once.",
    ]
    assert {Store(tmp_path).job(job.id).state() for job in long} <= {"new", "interrupted"}
    running = [child.cmdline() for child in children if child.is_running() and child.status() != psutil.STATUS_ZOMBIE]
    kept = ("resource_tracker", "forkserver")  # of Python's own, which other tests may have started
    assert [words for words in running if not any(name in " ".join(words) for name in kept)] == []


class Deadly(str):
    """A string that ends the process that unpickles it, as the system does when memory runs out."""

    __slots__ = ()

    def __reduce__(self) -> tuple[Callable[[int], NoReturn], tuple[int]]:
        return os._exit, (9,)


@pytest.mark.usefixtures("warm")
def test_a_worker_that_dies_takes_only_its_job_with_it(
    jobs: list[Job], home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local, "_work", records.faked)  # in place of the training
    doomed = replace(jobs[0], backbone=Deadly(jobs[0].backbone))
    where = replace(studies.places(home), store=tmp_path)
    kept = Kept()
    LocalExecutor(2).run([doomed, jobs[1]], where, kept)
    assert kept.records[jobs[1].id].id == records.faked().id
    assert kept.warnings
    assert kept.warnings[0].startswith("A worker process ended unexpectedly while it ran")
    record = Store(tmp_path).job(doomed.id).record()
    assert record is not None
    assert record.status == Store(tmp_path).job(doomed.id).state() == "failed"
    assert record.reason.startswith("The worker process of this job died twice")


@pytest.mark.parametrize("error", [EOFError(), ConnectionRefusedError()])
def test_a_helper_process_that_dies_at_once_is_an_error_in_a_sentence(
    error: Exception, jobs: list[Job], home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(*_: object) -> None:
        raise error

    monkeypatch.setattr(SyncManager, "start", die)
    with pytest.raises(JobError, match=rf"relays progress ended while it started \({type(error).__name__}\), perhaps"):
        LocalExecutor(2).run(jobs, studies.places(home), Kept())


@pytest.mark.usefixtures("warm")
def test_a_lost_helper_process_is_named_and_every_job_gets_its_record(
    jobs: list[Job], home: Path, tmp_path: Path
) -> None:
    """As the out-of-memory killer may choose it."""
    where = replace(studies.places(home), store=tmp_path)
    lost: list[int] = []

    def kill(_: Tick) -> None:
        helpers = [process for process in multiprocessing.active_children() if "Manager" in process.name]
        for process in helpers:
            process.kill()
            lost.append(process.pid or 0)

    later = replace(jobs[1], recipe=replace(jobs[1].recipe, batch=jobs[1].recipe.batch + 1))  # begins without it
    kept = Kept(kill)
    LocalExecutor(2).run([*jobs, later], where, kept)
    assert len(lost) == 1
    assert kept.warnings == [local.NO_PROGRESS]
    assert {name: record.status for name, record in kept.records.items()} == {job.id: "done" for job in (*jobs, later)}


TRACKED = """
import multiprocessing, psutil
from peftbench.execution.signals import ResourceTracker
tracker, lock = ResourceTracker(), multiprocessing.get_context("spawn").Lock()
before = tracker.relaunch_if_lost()
(helper,) = psutil.Process().children()
helper.kill()
helper.wait()
print(before, tracker.relaunch_if_lost(), tracker.relaunch_if_lost())
"""


def test_a_lost_helper_for_semaphores_is_launched_again_and_writes_no_traceback() -> None:
    done = subprocess.run([sys.executable, "-c", TRACKED], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("False True False\n", "")


@pytest.mark.usefixtures("warm")
def test_the_loss_of_the_helper_for_semaphores_is_named(jobs: list[Job], home: Path, tmp_path: Path) -> None:
    killed: list[int] = []

    def kill(_: Tick) -> None:
        for process in psutil.Process().children() if not killed else []:
            if "resource_tracker" in " ".join(process.cmdline()):
                process.kill()
                killed.append(process.pid)

    kept = Kept(kill)
    LocalExecutor(2).run(jobs, replace(studies.places(home), store=tmp_path), kept)
    assert len(killed) == 1
    assert kept.warnings == [local.NO_RESOURCE_TRACKER]
    assert {record.status for record in kept.records.values()} == {"done"}


@pytest.mark.usefixtures("warm")
@pytest.mark.parametrize("workers", [1, 2])
def test_a_job_that_takes_too_long_fails_and_the_others_go_on(
    jobs: list[Job], home: Path, tmp_path: Path, workers: int
) -> None:
    linear, bitfit = jobs
    long = replace(bitfit, recipe=replace(bitfit.recipe, steps=10_000_000, evaluations=1))
    where = replace(studies.places(home), store=tmp_path)
    kept = Kept()
    LocalExecutor(workers, timeout=20.0).run([long, linear], where, kept)
    assert kept.records[linear.id].status == "done"
    assert kept.records[long.id].status == "failed"
    assert kept.records[long.id].reason == "The job exceeded --timeout 20."


def test_a_job_that_never_returns_to_python_is_ended(tmp_path: Path) -> None:
    code = (
        "import signal, time\nfrom peftbench.execution import signals\nsignals.GRACE = 0.5\n"
        "with signals.time_limit(0.5, ValueError('late')):\n"
        "    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGALRM})\n"
        "    time.sleep(60)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("Timeout")


def test_a_time_limit_raises_its_error_and_ends_with_the_block() -> None:
    with pytest.raises(JobError, match="late"), signals.time_limit(0.05, JobError("late")):
        time.sleep(60)
    with signals.time_limit(0.05, JobError("late")):
        pass
    time.sleep(0.1)


@pytest.mark.usefixtures("warm")
def test_the_first_ctrl_c_stops_after_a_checkpoint(jobs: list[Job], home: Path, tmp_path: Path) -> None:
    long = [replace(job, recipe=replace(job.recipe, steps=100_000, evaluations=100)) for job in jobs]
    where = replace(studies.places(home), store=tmp_path)
    steps: dict[str, int] = {}

    def press(tick: Tick) -> None:
        steps[tick.job_id] = tick.step
        if len(steps) == len(jobs):
            steps["pressed"] = 0
            os.kill(os.getpid(), signal.SIGINT)

    def once(tick: Tick) -> None:
        if "pressed" not in steps:
            press(tick)

    with pytest.raises(KeyboardInterrupt):
        LocalExecutor(2).run(long, where, Kept(once))
    for job in long:
        found = Checkpoint(Store(tmp_path).job(job.id)).read()
        assert found is not None
        assert found[0].step >= steps[job.id]


def test_jobs_that_have_not_begun_are_cancelled_although_a_worker_dies() -> None:
    """Without an InvalidStateError in the pool's thread, which pytest would report as an error."""
    before = set(multiprocessing.active_children())
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        pending: list[Future[Record | None]] = [pool.submit(time.sleep, 60) for _ in range(6)]
        workers = set(multiprocessing.active_children()) - before
        with pytest.raises(BrokenProcessPool):  # a worker that does not handle the request is ended by its signal
            local._stop_workers(pool, pending, workers)


@pytest.mark.parametrize("to", ["the parent", "everybody"])
def test_a_worker_without_a_job_does_not_take_the_others_with_it(
    jobs: list[Job], home: Path, tmp_path: Path, to: str
) -> None:
    """Asked by the terminal, or by a scheduler that tells every process of a group."""
    linear, bitfit = jobs
    long = replace(bitfit, recipe=replace(bitfit.recipe, steps=100_000, evaluations=10))
    where = replace(studies.places(home), store=tmp_path)
    ended: list[str] = []
    asked_at: list[int] = []

    def press(tick: Tick) -> None:
        if ended and not asked_at and tick.job_id == long.id and tick.step % SAVE_EVERY:
            asked_at.append(tick.step)
            children = psutil.Process().children(recursive=True) if to == "everybody" else []
            for process in (*children, psutil.Process()):
                process.send_signal(signal.SIGTERM)

    with pytest.raises(KeyboardInterrupt):
        LocalExecutor(2).run([linear, long], where, Kept(press, lambda job, _: ended.append(job.id)))
    assert ended == [linear.id]
    found = Checkpoint(Store(tmp_path).job(long.id)).read()
    assert found is not None
    assert found[0].step >= asked_at[0]


def test_workers_whose_parent_was_killed_end_after_a_checkpoint(home: Path, tmp_path: Path) -> None:
    words = ["run", "--methods", "bitfit,lora", "--datasets", f"folder:{home / 'images'}", "--recipe", "quick"]
    words += ["--steps", "100000", "--evaluations", "10000", "--batch", "4", "--no-baselines", "--jobs", "2"]
    process, store = studies.start(words, tmp_path), Store(tmp_path / "runs")
    children: list[psutil.Process] = []
    try:
        wait_for(lambda: len(list((tmp_path / "runs").glob("jobs/*/state/checkpoint.safetensors"))) == 2)
        children += psutil.Process(process.pid).children(recursive=True)
        assert len(children) >= 3  # two at work and the queue's keeper
        process.kill()
        process.join()
        wait_for(lambda: not any(child.is_running() for child in children))
    finally:
        process.kill()
        for child in children:
            with suppress(psutil.NoSuchProcess):
                child.kill()
    assert {store.job(name).state() for name in store.ids()} == {"interrupted"}


def wait_for(what: Callable[[], bool], seconds: float = 120.0) -> None:
    until = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < until, "it never came about"
        time.sleep(0.1)
