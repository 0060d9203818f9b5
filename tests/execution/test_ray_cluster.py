"""Jobs on a real Ray cluster of three nodes on this machine, one of which is killed. Run by `nox -s ray`."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from peftbench.core.spec import Places
from peftbench.errors import JobError
from peftbench.execution.executor import Executor
from peftbench.execution.local import LocalExecutor
from peftbench.execution.ray import RayExecutor
from peftbench.results.store import Store
from peftbench.study.resolve import Resolved, resolve
from tests import studies
from tests.execution.test_local import Kept

ray: Any = pytest.importorskip("ray", reason="Ray is not installed; `nox -s ray` installs it")
cluster_utils: Any = pytest.importorskip("ray.cluster_utils")
if not os.environ.get("PEFTBENCH_TEST_RAY"):
    pytest.skip("starts a cluster: `nox -s ray` does so", allow_module_level=True)
pytestmark = pytest.mark.filterwarnings("ignore")  # of Ray's own


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A head without room for jobs, and two nodes for one job each."""
    made = cluster_utils.Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    for _ in range(2):
        made.add_node(num_cpus=1)
    yield made
    made.shutdown()


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return studies.home(tmp_path_factory)


@pytest.fixture(scope="module")
def resolved(home: Path) -> Resolved:
    few: dict[str, Any] = {"methods": ("bitfit", "lora"), "seeds": (0, 1), "recipe": "standard", "tune": 2, "steps": 24}
    asked = studies.small(home / "images", **few)
    return resolve(asked, studies.places(home))


@pytest.fixture(scope="module")
def alone(home: Path, resolved: Resolved) -> Path:
    """A store of the same study, run on this machine one job after the other."""
    places = studies.places(home)
    LocalExecutor(1).run_study(resolved, places, Kept())
    return places.store


def test_a_study_ends_with_the_bits_of_a_local_run_although_a_node_is_killed(
    cluster: Any, home: Path, resolved: Resolved, alone: Path, tmp_path: Path
) -> None:
    places = replace(studies.places(home), store=tmp_path / "runs")
    lost: list[str] = []

    def kill() -> None:
        """Kill a node as soon as a job has a checkpoint; another takes its place."""
        while not list(places.store.glob("jobs/*/state/checkpoint.safetensors")):
            time.sleep(0.05)
        cluster.remove_node(cluster.list_all_nodes()[-1], allow_graceful=False)
        lost.append("killed")
        cluster.add_node(num_cpus=1)

    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    kept = Kept()
    Store(places.store).prepare()
    RayExecutor(address=cluster.address).run_study(resolved, places, kept)
    killer.join()
    assert lost == ["killed"]
    studies.assert_equal(places.store, alone)
    assert {record.status for record in kept.records.values()} == {"done"}
    assert kept.records.keys() == set(Store(places.store).ids())
    assert not list(places.store.glob(".*.draft"))


def test_without_a_shared_file_system_jobs_come_back_whole(
    cluster: Any, home: Path, resolved: Resolved, tmp_path: Path
) -> None:
    few = replace(resolved, drafts=tuple(replace(draft, search=None) for draft in resolved.drafts[:2]))
    stores = {}
    gathering: Executor = RayExecutor(address=cluster.address, gather=True)
    executors: dict[str, Executor] = {"gathered": gathering, "local": LocalExecutor(1)}
    for name, executor in executors.items():
        stores[name] = replace(studies.places(home), store=tmp_path / name)
        Store(stores[name].store).prepare()
        executor.run_study(few, stores[name], Kept())
    studies.assert_equal(stores["gathered"].store, stores["local"].store)
    store = Store(stores["gathered"].store)
    assert not [name for name in store.ids() if store.job(name).damage()]


def test_nodes_that_do_not_see_the_store_are_named(
    cluster: Any, home: Path, resolved: Resolved, tmp_path: Path
) -> None:
    places: Places = replace(studies.places(home), store=tmp_path / "runs", cache=tmp_path / "empty")
    Store(places.store).prepare()
    kept = Kept()
    with pytest.raises(JobError, match="No node of the Ray cluster can be used; without a shared file system"):
        RayExecutor(address=cluster.address).run_study(resolved, places, kept)
    why = f"it does not see the decoded images in {places.cache}; name a shared folder with --cache."
    assert [text.partition(": ")[2] for text in kept.warnings] == [why] * 3
