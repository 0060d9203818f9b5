"""What is sent to Slurm and read from it. Runs without Slurm; `nox -s slurm` uses a real one."""

from __future__ import annotations

import os
import signal
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from peftbench.cli.options import ExecutorOptions, sbatch_options
from peftbench.core.spec import Places
from peftbench.errors import JobError, RequestError
from peftbench.execution import job_list, node, slurm, slurm_queue
from peftbench.execution.executor import make_executor
from peftbench.execution.job_list import Bundling, JobList
from peftbench.execution.slurm import SlurmExecutor
from peftbench.execution.slurm_queue import Submission
from peftbench.results import owner
from peftbench.results.store import Store
from peftbench.study.resolve import Resolved, resolve
from peftbench.training.job import run
from tests import studies
from tests.execution.test_local import Kept

QUEUE = """\
12|12_0|RUNNING|n1
12|12_1|PENDING|(Resources)
13|13_0|PENDING|(Dependency)
99|99|RUNNING|n2
a line of another form
"""
PROGRAM = """\
#!/bin/sh
echo "$(basename $0) $*" >> {log}
case "$(basename $0)" in
sbatch) n=$(grep -c ^sbatch {log}); echo "$((10 + n));t" ;;
squeue) cat {queue} ;;
scontrol) echo 'MaxArraySize            = 3' ;;
esac
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return studies.home(tmp_path_factory)


@pytest.fixture(scope="module")
def resolved(home: Path) -> Resolved:
    asked = studies.small(home / "images", methods=("linear", "bitfit"), recipe="standard", tune=4, seeds=(0, 1))
    return resolve(asked, studies.places(home))


@pytest.fixture
def places(home: Path, tmp_path: Path) -> Places:
    return replace(studies.places(home), store=tmp_path / "runs")


@pytest.fixture
def commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Programs in place of Slurm's; a file with their calls. `queue.txt` beside it is what squeue prints."""
    log, queue, programs = tmp_path / "calls.txt", tmp_path / "queue.txt", tmp_path / "bin"
    programs.mkdir()
    log.touch()
    queue.touch()
    for name in ("sbatch", "squeue", "scontrol", "scancel"):
        (programs / name).write_text(PROGRAM.format(log=log, queue=queue))
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    return log


def listed(resolved: Resolved, places: Places) -> JobList:
    return job_list.make(resolved, places, Bundling(600))


# --- options ---------------------------------------------------------------------------------------------------------


def test_options_of_sbatch_are_read_as_they_are_written() -> None:
    assert sbatch_options(["partition=a,b,gres=gpu:1", "--time=4:00:00", "exclusive=true"]) == {
        "partition": "a,b",
        "gres": "gpu:1",
        "time": "4:00:00",
        "exclusive": True,
    }
    with pytest.raises(RequestError, match="--slurm must be NAME=VALUE"):
        sbatch_options(["gpu"])


def test_the_table_of_a_study_holds_options_of_sbatch_and_the_command_line_wins() -> None:
    table = {"name": "slurm", "parallel": 16, "partition": "gpu", "time": "4:00:00"}
    given = ExecutorOptions(slurm=["time=1:00:00"]).given()
    made = make_executor("", table, given)
    assert made == SlurmExecutor(parallel=16, options={"partition": "gpu", "time": "1:00:00"})


def test_options_that_are_set_here_are_refused() -> None:
    with pytest.raises(RequestError, match="--slurm array: peftbench sets this option of sbatch itself"):
        SlurmExecutor(options={"array": "0-3"})


def test_an_option_of_slurm_needs_slurm() -> None:
    with pytest.raises(RequestError, match="--dry-run needs --executor slurm, and the executor is local"):
        ExecutorOptions(dry_run=True).check({})


def test_gpus_that_are_asked_for_decide_the_device() -> None:
    assert SlurmExecutor(options={"gres": "gpu:1"}).wants_gpu
    assert SlurmExecutor(options={"gpus-per-task": 1}).wants_gpu
    assert not SlurmExecutor(options={"partition": "gpu"}).wants_gpu


# --- the script ------------------------------------------------------------------------------------------------------


def test_a_script_is_an_array_that_is_requeued_and_warned_and_becomes_python(
    resolved: Resolved, places: Places, tmp_path: Path
) -> None:
    executor = SlurmExecutor(parallel=2, options={"partition": "gpu", "comment": "two words", "exclusive": True})
    lines = executor.script(Submission(tmp_path), listed(resolved, places), "trials").splitlines()
    assert lines[0] == "#!/bin/sh"
    assert {
        "#SBATCH --array=0-15%2",
        "#SBATCH --signal=B:TERM@180",
        "#SBATCH --requeue",
        "#SBATCH --open-mode=append",
        "#SBATCH --partition=gpu",
        '#SBATCH --comment="two words"',
        "#SBATCH --exclusive",
        "#SBATCH --cpus-per-task=1",
    } <= set(lines)
    assert lines[-1].startswith("exec ")
    assert lines[-1].endswith(f'-m peftbench.execution.node {tmp_path}/jobs.json trials 20 "$SLURM_ARRAY_TASK_ID"')


def test_the_time_limit_is_twice_the_forecast_unless_it_is_given(
    resolved: Resolved, places: Places, tmp_path: Path
) -> None:
    known = replace(listed(resolved, places), seconds=dict.fromkeys(job_list.PHASES, 3600.0))
    assert "#SBATCH --time=2:13:00" in SlurmExecutor().script(Submission(tmp_path), known, "trials")
    asked = SlurmExecutor(options={"time": "1:00:00"}).script(Submission(tmp_path), known, "trials")
    assert [line for line in asked.splitlines() if "--time" in line] == ["#SBATCH --time=1:00:00"]
    assert "--time" not in SlurmExecutor().script(Submission(tmp_path), listed(resolved, places), "trials")


def test_a_script_is_valid_shell(
    resolved: Resolved, places: Places, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", '/it\'s a "folder"')
    file = tmp_path / "it's.sh"
    file.write_text(SlurmExecutor().script(Submission(tmp_path / "it's"), listed(resolved, places), "finals"))
    subprocess.run(["/bin/sh", "-n", str(file)], check=True)


# --- submitting ------------------------------------------------------------------------------------------------------


def test_each_phase_begins_after_the_one_before_and_arrays_fit_the_cluster(
    resolved: Resolved, places: Places, commands: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slurm, "run_in_rounds", lambda *_: None)
    SlurmExecutor().run_study(resolved, places, Kept())
    calls = [line.split() for line in commands.read_text().splitlines() if line.startswith("sbatch")]
    assert [words[-1].rpartition("/")[2] for words in calls] == ["trials.sh", "resolve.sh", "finals.sh"]
    assert [words[-2] for words in calls] == ["--parsable", "--dependency=afterany:11", "--dependency=afterany:12"]
    (submission,) = slurm_queue.submissions(places.store)
    assert submission.ids() == {"trials": "11", "resolve": "12", "finals": "13"}
    assert "#SBATCH --array=0-2\n" in (submission.folder / "trials.sh").read_text()  # MaxArraySize is 3


def test_a_study_that_is_in_the_queue_is_watched_and_not_submitted_again(
    resolved: Resolved, places: Places, commands: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slurm, "run_in_rounds", lambda *_: None)
    SlurmExecutor().run_study(resolved, places, Kept())
    commands.with_name("queue.txt").write_text("13|13_0|PENDING|(Dependency)\n")
    SlurmExecutor().run_study(resolved, places, Kept())
    assert commands.read_text().count("sbatch") == 3
    commands.with_name("queue.txt").write_text("")
    SlurmExecutor().run_study(resolved, places, Kept())
    assert commands.read_text().count("sbatch") == 6


@pytest.mark.usefixtures("commands")
def test_ctrl_c_leaves_the_tasks_and_shows_how_to_cancel_them(
    resolved: Resolved, places: Places, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(slurm, "run_in_rounds", interrupted)
    kept = Kept()
    with pytest.raises(KeyboardInterrupt):
        SlurmExecutor().run_study(resolved, places, kept)
    where = places.store
    ids = "Slurm 11 (trials), 12 (resolve), 13 (finals)"
    verbs = f"`peftbench status {where}` shows its jobs, `peftbench cancel {where}` ends them"
    assert kept.warnings == [f"{ids} runs without this process: {verbs}."]


def test_a_dry_run_writes_scripts_and_list_and_submits_nothing(
    resolved: Resolved, places: Places, commands: Path
) -> None:
    SlurmExecutor(dry_run=True).run_study(resolved, places, Kept())
    assert commands.read_text() == ""
    (submission,) = slurm_queue.submissions(places.store)
    assert len(job_list.read(submission.list_file).drafts) == len(resolved.drafts)
    assert (submission.folder / "finals.sh").exists()


def test_without_slurm_the_request_is_refused_in_a_sentence(
    resolved: Resolved, places: Places, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(JobError, match="Slurm's command scontrol is not on this machine"):
        SlurmExecutor().run_study(resolved, places, Kept())


# --- the queue -------------------------------------------------------------------------------------------------------


def test_the_queue_is_read_and_described(tmp_path: Path) -> None:
    tasks = slurm_queue.parse_queue(QUEUE)
    assert [task.task for task in tasks] == ["12_0", "12_1", "13_0", "99"]
    submission = Submission(tmp_path)
    submission.write_ids({"finals": "13", "trials": "12"})
    assert [task.task for task in submission.queued(tasks)] == ["12_0", "12_1", "13_0"]
    assert submission.describe(tasks) == (
        "Slurm 12 (trials): 1 running, 1 pending (Resources); 13 (finals): 1 pending (Dependency)."
    )
    assert submission.describe([]) == ""


def test_the_size_of_arrays_is_read() -> None:
    assert slurm_queue.parse_max_array_size("MaxArraySize            = 4001\nMaxDBDMsgs = 2") == 4001
    assert slurm_queue.parse_max_array_size("") == 1001


def test_cancel_ends_what_is_in_the_queue_and_marks_it(tmp_path: Path, commands: Path) -> None:
    submission = Submission(tmp_path / "runs" / "slurm" / "1-a")
    submission.folder.mkdir(parents=True)
    submission.write_ids({"trials": "12", "finals": "13"})
    commands.with_name("queue.txt").write_text(QUEUE)
    assert slurm_queue.cancel(tmp_path / "runs") == ["12", "13"]
    assert submission.is_cancelled
    assert commands.read_text().splitlines()[-1] == "scancel 12 13"


def test_status_without_the_controller_says_that_the_queue_is_unknown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    submission = Submission(tmp_path / "slurm" / "1-a")
    submission.folder.mkdir(parents=True)
    submission.write_ids({"trials": "12"})
    monkeypatch.setenv("PATH", "")
    assert slurm_queue.states(tmp_path)[0].startswith("The queue of Slurm is unknown: Slurm's command squeue is not")


@pytest.mark.parametrize(
    ("state", "restarts", "code", "requeued"),
    [("RUNNING", "0", 0, True), ("RUNNING", "20", 75, False), ("CANCELLED", "0", 75, False)],
)
def test_a_task_that_is_ended_goes_back_into_the_queue_unless_it_was_cancelled_or_too_often(
    state: str,
    restarts: str,
    code: int,
    requeued: bool,  # noqa: FBT001 - a value of the parameters
    tmp_path: Path,
    commands: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def interrupted(*_: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(node, "run_task", interrupted)
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    for name, value in {"ARRAY_JOB_ID": "12", "ARRAY_TASK_ID": "3", "RESTART_COUNT": restarts}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    commands.with_name("queue.txt").write_text(f"{state}\n")
    assert node.main([str(tmp_path / "jobs.json"), "finals", "20", "3"]) == code
    assert ("scontrol requeue 12_3" in commands.read_text()) is requeued


# --- owners ----------------------------------------------------------------------------------------------------------


def test_a_job_that_a_living_process_of_another_machine_runs_is_left_to_it(
    resolved: Resolved, places: Places, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a network file system whose locks hold for one machine alone."""
    job = resolved.drafts[0].job
    folder = Store(places.store).job(job.id)
    folder.path.mkdir(parents=True)
    with owner.Heartbeat(folder.path, owner.Owner("elsewhere", 1, "12_3")):
        monkeypatch.setattr(owner, "this_process", lambda: owner.Owner("here", 2))
        assert run(job, places) is None
        assert folder.state() == "running"
        monkeypatch.setattr(owner, "this_process", lambda: owner.Owner("here", 2, "12_3"))
        assert not owner.runs_elsewhere(folder.path)  # the same task of Slurm, requeued
        monkeypatch.setattr(owner, "this_process", lambda: owner.Owner("elsewhere", 2))
        assert not owner.runs_elsewhere(folder.path)  # on the same machine, the lock decides
    assert folder.state() == "interrupted"
