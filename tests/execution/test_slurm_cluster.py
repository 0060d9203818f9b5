"""A study on a real Slurm of two nodes on this machine: lost nodes, preemption and a dead controller change no bit.

Run by `nox -s slurm`.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from peftbench.execution import slurm_queue
from peftbench.results import owner
from peftbench.results.store import Store
from tests import slurm_cluster, studies
from tests.slurm_cluster import SlurmCluster, wait_for

if not os.environ.get("PEFTBENCH_TEST_SLURM"):
    pytest.skip("starts a cluster: `nox -s slurm` does so", allow_module_level=True)
if lacking := slurm_cluster.missing():
    pytest.skip(f"Slurm is not installed: no {', '.join(lacking)}", allow_module_level=True)

STUDY = """\
methods = ["bitfit", "lora"]
datasets = ["folder:{images}"]
seeds = [0, 1]
backbone = "mini"
recipe = "standard"
tune = 5
steps = 24
batch = 4
evaluations = 6
baselines = false
precision = "fp32"
augmentation = "light"

[executor]
name = "slurm"
parallel = 2
"""
MANY = 900.0  # seconds


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SlurmCluster]:
    with slurm_cluster.running(tmp_path_factory.mktemp("slurm") / "s") as made, pytest.MonkeyPatch.context() as patch:
        for name, value in made.environment.items():
            patch.setenv(name, value)
        yield made


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a study, whose jobs have a known duration, so that they are bundled."""
    folder = studies.home(tmp_path_factory)
    (folder / "study.toml").write_text(STUDY.format(images=folder / "images"))
    words = ("--methods", "bitfit,lora", "--backbone", "mini@random", "--precision", "fp32", "--seconds", "0.5")
    assert start(folder, "measure", "measured", *words).wait(MANY) == 0
    return folder


def run(home: Path, store: str, *words: str) -> subprocess.Popen[bytes]:
    """`peftbench run study.toml` in a process of its own, what it prints in STORE.txt."""
    return start(home, "run", store, "study.toml", "--store", store, *words)


def start(home: Path, verb: str, out_name: str, *words: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "peftbench", verb, *words]
    environment = os.environ | {"PEFTBENCH_CACHE": str(home / "cache")}
    with (home / f"{out_name}.txt").open("ab") as out:
        return subprocess.Popen(command, cwd=home, env=environment, stdout=out, stderr=subprocess.STDOUT)


def ended(store: Path) -> int:
    return len(list(store.glob("jobs/*/record.json")))


def running(store: Path) -> list[str]:
    """The ids of Slurm's tasks whose job has a checkpoint."""
    owners = {file.parent: owner.read(file.parent) for file in store.glob("jobs/*/owner.json")}
    alive = [folder for folder in owners if (owner.age(folder) or 0) < 2 * owner.BEAT]
    begun = [folder for folder in alive if (folder / "state" / "checkpoint.safetensors").exists()]
    return [found.slurm for folder in begun if (found := owners[folder])]


def node_of(cluster: SlurmCluster, task: str) -> str:
    return cluster.call("squeue", "-h", f"--jobs={task}", "-o", "%N").strip()


def tasks_of(node: str) -> list[psutil.Process]:
    """The processes that run on a node of the cluster, slurmd's own last."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("SLURMD_NODENAME") == node:
                found.append(process)
        except psutil.Error:
            continue
    return found


def kill_node(cluster: SlurmCluster, node: str) -> None:
    """Kill slurmd, its steps and their jobs, as when the node's power fails."""
    daemon = psutil.Process(int((cluster.root / f"slurmd-{node}.pid").read_text()))
    steps = [one for one in psutil.process_iter(["name"]) if one.info["name"] == "slurmstepd"]
    jobs = tasks_of(node)
    parents = {job.ppid() for job in jobs}
    for process in (daemon, *(step for step in steps if step.pid in parents), *jobs):
        process.kill()


def logs(store: Path) -> str:
    return "".join(file.read_text() for file in sorted(store.glob("slurm/*/log/*.txt")))


def hold(what: Callable[[], bool]) -> None:
    wait_for(what, MANY)


def test_a_study_ends_with_the_bits_of_a_local_run_whatever_happens_to_the_cluster(
    cluster: SlurmCluster, home: Path
) -> None:
    store = home / "runs"
    head = run(home, "runs")
    hold(lambda: bool(running(store)))

    head.send_signal(signal.SIGINT)  # the head is not needed
    assert head.wait(60) == 130
    printed = (home / "runs.txt").read_text().splitlines()
    assert "runs without this process: `peftbench status" in printed[-2]
    assert not (store / "study.json").exists()

    hold(lambda: bool(running(store)))  # a job of higher priority takes the node of a task
    node = node_of(cluster, running(store)[0])
    urgent = cluster.call(
        "sbatch", "--parsable", "-purgent", f"--nodelist={node}", "-o/dev/null", "--wrap=sleep 5"
    ).strip()
    hold(lambda: "PREEMPTION" in logs(store))
    hold(lambda: urgent not in cluster.call("squeue", "-h", "-o%i"))

    hold(lambda: bool(running(store)))  # a node loses its power
    node = node_of(cluster, running(store)[0])
    kill_node(cluster, node)
    hold(lambda: "down" in cluster.call("sinfo", "-hN", "-pcpu", f"-n{node}", "-o%T"))
    cluster.start_node(node)
    time.sleep(
        15
    )  # the controller writes its state every few seconds; one that died before would wait for the lost task

    hold(lambda: bool(running(store)))  # the controller dies, and comes back
    cluster.kill("slurmctld")
    assert slurm_queue.states(store)[0].startswith("The queue of Slurm is unknown")
    time.sleep(5)
    cluster.start_controller()

    second = run(home, "runs")  # a second head watches what is in the queue
    assert second.wait(MANY) == 0
    assert "This study is in the queue already" in (home / "runs.txt").read_text()
    assert ended(store) == 24
    studies.assert_equal(store, run_locally(home))
    assert len(list((store / "slurm").glob("2*"))) == 1


def run_locally(home: Path) -> Path:
    """A store of the same study, run on this machine one job after the other."""
    assert run(home, "local", "--executor", "local", "--jobs", "1").wait(MANY) == 0
    return home / "local"


def test_cancelled_tasks_stop_after_a_checkpoint(cluster: SlurmCluster, home: Path) -> None:
    store = home / "cancelled"
    head = run(home, "cancelled", "--steps", "2000", "--tune", "0", "--lr", "0.001", "--seeds", "0")
    hold(lambda: bool(running(store)))
    assert slurm_queue.cancel(store)
    hold(lambda: not cluster.call("squeue", "-h"))
    assert head.wait(MANY) == 1
    assert {Store(store).job(name).state() for name in Store(store).ids()} == {"interrupted"}
    assert "Slurm has no more tasks of this study, and 2 jobs have no record" in (home / "cancelled.txt").read_text()


@pytest.mark.usefixtures("cluster")
def test_a_task_whose_time_is_up_goes_back_into_the_queue(home: Path) -> None:
    """A limit of four minutes: the warning comes within the first one."""
    store = home / "short"
    words = ("--steps", "3000", "--tune", "0", "--lr", "0.001", "--seeds", "0", "--methods", "bitfit")
    head = run(home, "short", *words, "--slurm", "time=0:04:00")
    hold(lambda: "the task is back in the queue" in logs(store))
    head.send_signal(signal.SIGINT)
    head.wait(60)
    slurm_queue.cancel(store)
