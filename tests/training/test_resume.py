"""Jobs that are killed by SIGKILL and end with the same bits as jobs that were not interrupted."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from tests import studies

METHODS = ("--methods", "shpeft,lora,full")
RECIPES = {
    "adamw": ("--recipe", "quick", *studies.SHORT),
    "sgd": ("--recipe", "paper", *studies.SHORT, "--precision", "fp32"),
}
DEATHS = [  # before the n-th file of that name is in place
    ("job.json", 1),  # nothing is there yet
    ("checkpoint.safetensors", 1),  # the first checkpoint is a draft
    ("checkpoint.safetensors", 3),  # two steps after a checkpoint
    ("delta.safetensors", 1),  # trained, predicted, not written down
    ("record.json", 1),  # the record alone is missing
    ("checkpoint.safetensors", 5),  # in a later job of the study
]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return studies.draw(tmp_path_factory.mktemp("images"), 10)


def finish(arguments: tuple[str, ...], home: Path) -> str:
    """Run to the end; what was printed."""
    process = studies.start(arguments, home)
    process.join()
    printed = (home / "out.txt").read_text()
    assert process.exitcode == 0, printed
    return printed


def jobs(home: Path) -> dict[str, Path]:
    return {folder.name: folder for folder in sorted((home / "runs" / "jobs").iterdir())}


def assert_same(home: Path, undisturbed: Path) -> None:
    """Every job of `home` left what it left in `undisturbed`, bit for bit, and nothing else."""
    assert jobs(home).keys() <= jobs(undisturbed).keys()
    for name, folder in jobs(home).items():
        own, theirs = studies.left_by(folder), studies.left_by(jobs(undisturbed)[name])
        assert {key for key in own.keys() | theirs.keys() if own.get(key) != theirs.get(key)} == set()
        assert sorted(p.name for p in folder.iterdir()) == sorted(p.name for p in jobs(undisturbed)[name].iterdir())


@pytest.fixture(scope="module")
def command(images: Path) -> tuple[str, ...]:
    return ("run", *METHODS, "--datasets", f"folder:{images}", *RECIPES["adamw"])


@pytest.fixture
def part(command: tuple[str, ...]) -> tuple[str, ...]:
    """Two of its three jobs."""
    return tuple("shpeft,lora" if word == "shpeft,lora,full" else word for word in command)


@pytest.fixture(scope="module")
def undisturbed(command: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("undisturbed")
    finish(command, home)
    assert len(studies.records(home / "runs")) == 3
    return home


def test_jobs_killed_at_chosen_points_end_with_the_same_bits(
    command: tuple[str, ...], undisturbed: Path, tmp_path: Path
) -> None:
    assert_survives(DEATHS, command, undisturbed, tmp_path)


def test_jobs_of_the_paper_s_recipe_do_so_too(images: Path, tmp_path: Path) -> None:
    homes = [tmp_path / name for name in ("undisturbed", "disturbed")]
    for home in homes:
        home.mkdir()
    command = ("run", *METHODS, "--datasets", f"folder:{images}", *RECIPES["sgd"])
    finish(command, homes[0])
    assert_survives(DEATHS[2::2], command, *homes)


def assert_survives(deaths: Sequence[tuple[str, int]], command: tuple[str, ...], undisturbed: Path, home: Path) -> None:
    """Run `command` in `home`, dying each death in turn, then to its end."""
    for death in deaths:
        process = studies.start(command, home, die_at=death)
        process.join()
        assert process.exitcode == -signal.SIGKILL, (death, (home / "out.txt").read_text())
    finish(command, home)
    assert_same(home, undisturbed)


def test_jobs_killed_from_outside_end_with_the_same_bits(
    part: tuple[str, ...], undisturbed: Path, tmp_path: Path
) -> None:
    def some(pattern: str) -> Callable[[], bool]:
        return lambda: any(tmp_path.glob(pattern))

    for is_time in (some("runs/jobs/*/state/checkpoint.safetensors"), some("runs/jobs/*/record.json")):
        process = studies.start(part, tmp_path)
        while process.is_alive() and not is_time():
            time.sleep(0.005)
        process.kill()
        process.join()
    finish(part, tmp_path)
    assert_same(tmp_path, undisturbed)


def test_finished_jobs_are_never_run_again(command: tuple[str, ...], undisturbed: Path) -> None:
    files = [folder / "record.json" for folder in jobs(undisturbed).values()]
    before = [(file.stat().st_mtime_ns, file.stat().st_ino) for file in files]
    left = files[0].with_name("owner.json")
    left.touch()  # as by a process that was killed after it had written the record
    assert "3 of 3 jobs were done before." in finish(command, undisturbed)
    assert not left.exists()
    assert [(file.stat().st_mtime_ns, file.stat().st_ino) for file in files] == before


def test_two_runs_on_one_store_at_once_do_each_job_once(
    part: tuple[str, ...], undisturbed: Path, tmp_path: Path
) -> None:
    first, second = (studies.start(part, home) for home in homes(tmp_path))
    first.join()
    second.join()
    assert (first.exitcode, second.exitcode) == (0, 0)
    assert_same(tmp_path / "one", undisturbed)
    printed = "".join((home / "out.txt").read_text() for home in homes(tmp_path))
    assert printed.count("2 of 2 jobs done") == 2


def homes(folder: Path) -> list[Path]:
    """Two working folders with one store and two caches."""
    one, two = folder / "one", folder / "two"
    if not one.exists():
        (one / "runs").mkdir(parents=True)
        two.mkdir()
        (two / "runs").symlink_to(one / "runs")
    return [one, two]


def test_ctrl_c_leaves_one_line_and_a_store_that_goes_on(
    part: tuple[str, ...], undisturbed: Path, tmp_path: Path
) -> None:
    process = studies.start(part, tmp_path)
    while process.is_alive() and not any(tmp_path.glob("runs/jobs/*/state/checkpoint.safetensors")):
        time.sleep(0.005)
    os.kill(process.pid or 0, signal.SIGINT)
    process.join()
    printed = (tmp_path / "out.txt").read_text()
    assert process.exitcode == 130, printed
    assert printed.splitlines()[-1] == "peftbench: interrupted; run the same command again to resume."
    assert "Traceback" not in printed
    finish(part, tmp_path)
    assert_same(tmp_path, undisturbed)
