"""Which executor a study gets: the command line wins over the table [executor], and a wrong option is a sentence."""

from __future__ import annotations

from pathlib import Path

import pytest

from peftbench.cli.options import ExecutorOptions
from peftbench.core.registry import registry
from peftbench.core.spec import executor_table, load_study
from peftbench.errors import RequestError, UnknownNameError
from peftbench.execution import ray
from peftbench.execution.executor import make_executor
from peftbench.execution.local import LocalExecutor
from peftbench.execution.ray import RayExecutor
from tests import studies


def test_without_a_choice_jobs_run_on_this_machine() -> None:
    assert make_executor("", {}, {"parallel": None, "timeout": None}) == LocalExecutor()


def test_options_of_the_command_line_win_over_the_table() -> None:
    made = make_executor("", {"name": "local", "parallel": 4, "timeout": 60}, {"parallel": 2})
    assert made == LocalExecutor(2, 60.0)


def test_a_table_about_another_executor_is_ignored() -> None:
    assert make_executor("local", {"name": "slurm", "partition": "gpu"}, {}) == LocalExecutor()


def test_an_option_that_the_executor_lacks_is_refused() -> None:
    with pytest.raises(RequestError, match=r"executor local has no field 'partition'; its fields are parallel"):
        make_executor("", {"partition": "gpu"}, {})


def test_an_unknown_executor_is_refused_with_the_list() -> None:
    with pytest.raises(UnknownNameError, match=r"No executor is called 'slrum'"):
        make_executor("slrum", {}, {})
    assert set(registry("executors").names()) >= {"local", "slurm", "ray"}


def test_a_study_may_hold_where_it_runs(tmp_path: Path) -> None:
    file = tmp_path / "study.toml"
    file.write_text('methods = ["linear"]\n[executor]\nname = "local"\nparallel = 3\n')
    assert load_study(file).methods == studies.study(methods=("linear",)).methods
    assert executor_table(file) == {"name": "local", "parallel": 3}
    file.write_text('executor = "local"\n')
    with pytest.raises(RequestError, match=r"executor must be a table, \[executor\], got 'local'"):
        executor_table(file)


def test_without_ray_the_request_is_refused_in_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> None:
        raise ImportError(name)

    monkeypatch.setattr(ray, "import_module", absent)
    with (
        pytest.raises(RequestError, match=r"needs Ray; install it: pip install 'peftbench\[ray\]'"),
        ray._connected("auto"),
    ):
        pass


def test_options_of_ray_are_fields_of_its_executor() -> None:
    given = ExecutorOptions(address="ray://head:10001", gather=True).given()
    made = make_executor("ray", {"name": "ray", "gpus": 0.5}, given)
    assert made == RayExecutor(address="ray://head:10001", gather=True, gpus=0.5)
    assert made.wants_gpu
