"""Jobs as tasks of Ray: one for each bundle of jobs, on the machines of a cluster that runs already.

Nodes see the store and the cache of decoded images on a shared file system; every node proves it at the start. With
`gather` nothing is shared: decoded images travel through Ray once a node, and finished jobs come back whole.
"""

from __future__ import annotations

import os
import signal
import tempfile
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, ClassVar, TypeAlias

from pydantic import Field

from peftbench.core.contract import Preprocessing
from peftbench.core.fields import Positive, checked
from peftbench.core.spec import Job, Places
from peftbench.data import audit, pixel_cache
from peftbench.errors import JobError, RequestError
from peftbench.execution.bundles import bundled, forecasts
from peftbench.execution.executor import LATE, Monitor, Parallel, Tick, Timeout, run_in_rounds, ticker
from peftbench.execution.signals import Stop, stop_on, time_limit
from peftbench.results.merging import copy_job
from peftbench.results.store import JobFolder, Store
from peftbench.storage import files
from peftbench.study.resolve import Resolved
from peftbench.training.job import give_up, run
from peftbench.training.loop import RunCallbacks

POLL = 1.0  # seconds between two looks at the tasks
PATIENCE = 300.0  # seconds that a node has to answer at the start: it imports torch
DIED = "The process of this job died on every try, perhaps out of memory; try a smaller --batch."
LEFT_OUT = "Left out the node {node}: {why}."
Entry: TypeAlias = tuple[str, Preprocessing]  # decoded images: their fingerprint and how they were decoded
Packed: TypeAlias = Mapping[str, bytes]  # files of a folder by name


@checked
class RayExecutor:
    """Runs a study on a Ray cluster."""

    called: ClassVar[str] = "executor ray"

    parallel: Parallel = 0  # tasks at the same time; 0: as many as the cluster has room for
    timeout: Timeout | None = None  # seconds after which a job fails
    address: str = "auto"  # of the cluster, such as ray://head:10001
    gather: bool = False  # the nodes share no file system
    bundle: Positive = 30.0  # minutes: the length of a task by the forecast
    gpus: Annotated[float, Field(ge=0)] | None = None  # of a task; None: 1 with --device cuda, else 0
    retries: Parallel = 3  # of a task whose node was lost

    @property
    def elsewhere(self) -> bool:
        """Whether jobs run on other machines."""
        return True

    @property
    def wants_gpu(self) -> bool:
        """Whether GPUs are asked for."""
        return bool(self.gpus)

    def run_study(self, resolved: Resolved, places: Places, monitor: Monitor) -> None:
        """Run a study in rounds on the cluster.

        Raises RequestError without Ray, JobError if no node can be used, KeyboardInterrupt when asked to stop.
        """
        with _connected(self.address) as ray:
            cluster = _Cluster(ray, self, _entries(resolved), uuid.uuid4().hex)
            run_in_rounds(cluster.run, resolved, places.absolute(), monitor)


plugin = RayExecutor


@contextmanager
def _connected(address: str) -> Iterator[Any]:
    """Yield the module `ray`, connected to a cluster. Raises RequestError."""
    try:
        ray = import_module("ray")
    except ImportError:
        raise RequestError("--executor ray needs Ray; install it: pip install 'peftbench[ray]'.") from None
    try:
        ray.init(address=address, log_to_driver=False, logging_level="ERROR")
    except (ConnectionError, ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise RequestError(
            f"--address {address}: no Ray cluster answers ({reason}); start one with `ray start`."
        ) from None
    try:
        yield ray
    finally:
        ray.shutdown()


def _entries(resolved: Resolved) -> list[Entry]:
    """Return the decoded images that the jobs of a study read."""
    jobs = [job for draft in resolved.drafts for job in (draft.job, *([draft.search.job] if draft.search else []))]
    return list(
        {(job.fingerprint, str(job.preprocessing)): (job.fingerprint, job.preprocessing) for job in jobs}.values()
    )


# --- in the head -----------------------------------------------------------------------------------------------------


@dataclass
class _Cluster:
    """A connected cluster, and what its tasks need."""

    ray: Any
    options: RayExecutor
    entries: Sequence[Entry]
    token: str
    barred: set[str] = field(default_factory=set)  # ids of nodes that cannot be used
    seen: set[str] = field(default_factory=set)  # ids of nodes that were tried
    packed: Any = None  # reference to the decoded images

    def run(self, jobs: Sequence[Job], places: Places, monitor: Monitor) -> None:
        """Run every job until it has a record. Raises JobError, or KeyboardInterrupt when asked to stop."""
        token = places.store / f".{self.token}.draft"
        files.write_text(token, self.token, private=True)
        try:
            with stop_on(signal.SIGINT, signal.SIGTERM) as stop:
                self._prepare(token, places, monitor)
                _Round(self, places, monitor, stop, token, {job.id: job for job in jobs}).run()
        finally:
            for file in places.store.glob(f".{self.token}*.draft"):
                file.unlink(missing_ok=True)

    def _prepare(self, token: Path, places: Places, monitor: Monitor) -> None:
        """Pack the decoded images, or let every new node prove that it sees them and the store."""
        if self.options.gather:
            if self.packed is None:
                self.packed = [(entry, self.ray.put(_pack_images(entry, places.cache))) for entry in self.entries]
            return
        nodes = {node["NodeID"]: node["NodeManagerHostname"] for node in self.ray.nodes() if node["Alive"]}
        visit = self.ray.remote(num_cpus=0, max_retries=0)(_visit)
        answers = {
            name: visit.options(scheduling_strategy=self._on(name)).remote(
                token, self.token, self.entries, places.cache, name
            )
            for name in nodes.keys() - self.seen
        }
        if answers:
            self.ray.wait(list(answers.values()), num_returns=len(answers), timeout=PATIENCE)
        for name, answer in answers.items():
            self.seen.add(name)
            if why := self._fault(answer, token.with_name(f".{self.token}-{name}.draft"), places.store):
                self.barred.add(name)
                monitor.warn(LEFT_OUT.format(node=nodes[name], why=why))
        if nodes and self.barred >= nodes.keys():
            raise JobError("No node of the Ray cluster can be used; without a shared file system, pass --gather.")

    def _fault(self, answer: Any, file: Path, store: Path) -> str:  # noqa: ANN401 - a reference of Ray
        """Return why a node cannot be used, from its answer and the file that it wrote."""
        try:
            why = str(self.ray.get(answer, timeout=0))
        except Exception as error:  # noqa: BLE001 - a node that is lost while it answers may raise anything
            return f"it does not answer ({type(error).__name__})"
        return why or ("" if file.exists() else f"what it writes into {store} does not arrive here")

    def _on(self, node: str) -> Any:  # noqa: ANN401 - a class of Ray
        strategies = import_module("ray.util.scheduling_strategies")
        return strategies.NodeAffinitySchedulingStrategy(node_id=node, soft=False)

    def relay(self) -> Any:  # noqa: ANN401 - an actor
        """Return an actor beside this process that takes the ticks of all tasks."""
        here = self._on(self.ray.get_runtime_context().get_node_id())
        return self.ray.remote(num_cpus=0, scheduling_strategy=here, max_concurrency=64)(_Relay).remote()

    def submit(self, jobs: Sequence[Job], places: Places, token: Path, relay: Any) -> Any:  # noqa: ANN401 - of Ray
        """Start the task of a bundle; return its reference."""
        cuda = places.device == "cuda"
        gpus = self.options.gpus if self.options.gpus is not None else float(cuda)
        wanted: dict[str, Any] = {"num_cpus": max(job.threads or 1 for job in jobs), "num_gpus": gpus}
        if self.barred:
            wanted["label_selector"] = {"ray.io/node-id": f"!in({','.join(sorted(self.barred))})"}
        task = self.ray.remote(max_retries=self.options.retries, **wanted)(_run_bundle)
        return task.remote(list(jobs), places, self.options.timeout, token, self.token, self.packed, relay)


@dataclass
class _Round:
    """The jobs that run together."""

    cluster: _Cluster
    places: Places
    monitor: Monitor
    stop: Stop
    token: Path
    left: dict[str, Job]  # without a record
    tasks: dict[Any, list[Job]] = field(default_factory=dict)  # reference -> jobs, while they run
    waiting: list[list[Job]] = field(default_factory=list)
    relay: Any = None

    def run(self) -> None:
        """Run all jobs. Raises KeyboardInterrupt when asked to stop, after running jobs have stopped."""
        ray, options = self.cluster.ray, self.cluster.options
        jobs = list(self.left.values())
        slots = options.parallel or max(1, int(ray.cluster_resources().get("CPU", 1)))
        whole = [[job] for job in jobs]
        self.waiting = (
            whole if options.gather else bundled(jobs, forecasts(jobs, self.places), 60 * options.bundle, slots)
        )
        self.relay = self.cluster.relay()
        while self.waiting or self.tasks:
            self._start(options.parallel)
            done, _ = ray.wait(list(self.tasks), num_returns=1, timeout=POLL)
            self._show()
            for task in done:
                self._end(task)
            if self.stop():
                self._stop()
        ray.kill(self.relay)

    def _start(self, parallel: int) -> None:
        """Start as many tasks as may run at the same time; Ray itself queues the others."""
        while self.waiting and (not parallel or len(self.tasks) < parallel):
            bundle = self.waiting.pop(0)
            self.tasks[self.cluster.submit(bundle, self.places, self.token, self.relay)] = bundle

    def _show(self) -> None:
        """Report the progress, and the records that have arrived in the store."""
        ticks: list[Tick] = self.cluster.ray.get(self.relay.take.remote())
        for tick in ticks:
            if tick.job_id in self.left:
                self.monitor.tick(tick)
        for job in [job for bundle in self.tasks.values() for job in bundle if job.id in self.left]:
            self._report(job)

    def _report(self, job: Job) -> bool:
        """Report the record of a job that has ended, once; return whether it has one."""
        folder = Store(self.places.store).job(job.id)
        if job.id in self.left and folder.record_file.exists() and not folder.checkpoint_file.parent.exists():
            record = folder.record()
            if record is not None:
                del self.left[job.id]
                self.monitor.ended(job, record)
        return job.id not in self.left

    def _end(self, task: Any) -> None:  # noqa: ANN401 - a reference of Ray
        """Take in what a task has returned; a lost one begins again, a job that ends every process fails."""
        jobs, ray = self.tasks.pop(task), self.cluster.ray
        try:
            answer: _Answer = ray.get(task)
        except ray.exceptions.RayError as error:
            self._lost(jobs, error)
            return
        if answer.foreign_node:
            self.cluster.barred.add(answer.foreign_node)
            self.monitor.warn(LEFT_OUT.format(node=answer.foreign_node, why=answer.problem))
            self.waiting.append(jobs)
            return
        if answer.problem:
            raise JobError(answer.problem)
        for name, packed in answer.folders.items():
            _unpack_job(packed, Store(self.places.store).job(name))
        unfinished = [job for job in jobs if not self._report(job)]
        if unfinished and not answer.stopped:
            self.waiting.append(unfinished)

    def _lost(self, jobs: Sequence[Job], error: Exception) -> None:
        """Run the jobs of a bundle whose process died each by itself; one that was alone has failed."""
        unfinished = [job for job in jobs if not self._report(job)]
        if len(jobs) > 1:
            self.monitor.warn(f"A task of Ray ended unexpectedly ({type(error).__name__}); its jobs run once more.")
            self.waiting += [[job] for job in unfinished]
            return
        for job in unfinished:
            if (record := give_up(job, self.places, f"{DIED} ({type(error).__name__})")) is not None:
                self.left.pop(job.id, None)
                self.monitor.ended(job, record)

    def _stop(self) -> None:
        """Ask all tasks to stop after a checkpoint, wait until they have, and raise KeyboardInterrupt."""
        ray = self.cluster.ray
        ray.get(self.relay.stop.remote())
        with stop_on(signal.SIGINT, signal.SIGTERM) as again:
            left = list(self.tasks)
            while left and not again():
                _, left = ray.wait(left, num_returns=1, timeout=POLL)
                running = ray.get(self.relay.running.remote())
                if not running:
                    break  # what is left has not begun
        raise KeyboardInterrupt


class _Relay:
    """An actor: takes progress from tasks, and answers whether they should stop."""

    def __init__(self) -> None:
        self._ticks: dict[str, Tick] = {}
        self._running: set[str] = set()
        self._stopping = False

    def begin(self, job: str) -> bool:
        """Note that a job begins; return whether it should not."""
        if not self._stopping:
            self._running.add(job)
        return self._stopping

    def end(self, job: str) -> None:
        """Note that a job has ended or stopped."""
        self._running.discard(job)

    def put(self, tick: Tick) -> bool:
        """Keep the last tick of a job; return whether it should stop."""
        self._ticks[tick.job_id] = tick
        return self._stopping

    def take(self) -> list[Tick]:
        """Return the ticks since the last call."""
        found, self._ticks = list(self._ticks.values()), {}
        return found

    def running(self) -> list[str]:
        """Return the jobs that have begun and not ended."""
        return sorted(self._running)

    def stop(self) -> None:
        """Answer from now on that jobs should stop."""
        self._stopping = True


# --- on a node -------------------------------------------------------------------------------------------------------


@dataclass
class _Answer:
    """What a task returns."""

    folders: dict[str, Packed] = field(default_factory=dict)  # job -> its files, with `gather`
    problem: str = ""
    foreign_node: str = ""  # the id of this node, if it does not see the store
    stopped: bool = False


def _visit(token: Path, text: str, entries: Sequence[Entry], cache: Path, node: str) -> str:
    """Return why this node cannot be used, empty if it can; write a file that the head looks for."""
    try:
        if token.read_text() != text:
            return f"it sees another store at {token.parent}"
        files.write_text(token.with_name(f".{text}-{node}.draft"), node, private=True)
    except OSError as error:
        return f"it does not see the store {token.parent} ({error.strerror})"
    absent = [entry for entry in entries if not pixel_cache.is_whole(pixel_cache.entry_folder(*entry, cache))]
    return f"it does not see the decoded images in {cache}; name a shared folder with --cache" if absent else ""


def _run_bundle(
    jobs: list[Job],
    places: Places,
    timeout: float | None,
    token: Path,
    text: str,
    packed: Any,  # noqa: ANN401 - references of Ray
    relay: Any,  # noqa: ANN401 - an actor
) -> _Answer:
    """Run the jobs of a bundle, one after the other."""
    ray = import_module("ray")
    answer = _Answer()
    if packed is not None:
        places = _unpack_places(places, text, packed)
    elif not _sees(token, text):
        node = str(ray.get_runtime_context().get_node_id())
        return _Answer(problem=f"it does not see the store {places.store}", foreign_node=node)
    for job in jobs:
        if ray.get(relay.begin.remote(job.id)):
            answer.stopped = True
            return answer
        try:
            _run_job(job, places, timeout, ray, relay)
        except KeyboardInterrupt:
            answer.stopped = True
            return answer
        except Exception as error:  # noqa: BLE001 - what is no failure of a job: a full disk, lost images
            answer.problem = f"{os.uname().nodename}: {error}"
            return answer
        finally:
            ray.get(relay.end.remote(job.id))
        if packed is not None:
            answer.folders[job.id] = _pack(Store(places.store).job(job.id).path)
    return answer


def _sees(token: Path, text: str) -> bool:
    try:
        return token.read_text() == text
    except OSError:
        return False


def _run_job(job: Job, places: Places, timeout: float | None, ray: Any, relay: Any) -> None:  # noqa: ANN401 - of Ray
    """Run a job until it has a record; while another process holds it, wait. Raises KeyboardInterrupt to stop."""
    stop = Stop()

    def send(tick: Tick) -> None:
        stop.requested = bool(ray.get(relay.put.remote(tick)))

    late = JobError(LATE.format(timeout=timeout)) if timeout else None
    with time_limit(timeout, late):
        while run(job, places, RunCallbacks(ticker(job, send), stop=stop)) is None:
            time.sleep(POLL)
            send(Tick(job.id, 0, 0.0, None))
            if stop():
                raise KeyboardInterrupt


# --- without a shared file system ------------------------------------------------------------------------------------


def _pack_images(entry: Entry, cache: Path) -> Packed:
    """Return decoded images and what the audit counted on them, by their paths within the cache."""
    counts = audit.counts_file(cache, entry[0])
    found = [*pixel_cache.entry_folder(*entry, cache).iterdir(), *([counts] if counts.exists() else [])]
    return {str(file.relative_to(cache)): file.read_bytes() for file in sorted(found) if file.is_file()}


def _pack(folder: Path) -> Packed:
    """Return the contents of a folder's files."""
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir()) if file.is_file() and file.name[0] != "."}


def _unpack_places(places: Places, text: str, packed: Sequence[tuple[Entry, Any]]) -> Places:
    """Return places on this node, with the decoded images in its cache; they travel once a node."""
    root = Path(tempfile.gettempdir()) / f"peftbench-{text}"
    here = replace(places, store=root / "store", cache=root / "cache")
    for entry, reference in packed:
        if not pixel_cache.is_whole(pixel_cache.entry_folder(*entry, here.cache)):
            for name, content in import_module("ray").get(reference).items():
                files.make_private_folder((here.cache / name).parent)
                files.write_bytes(here.cache / name, content, private=True)
    return here


def _unpack_job(packed: Packed, target: JobFolder) -> None:
    """Write a job that came back into the store, its digests verified. Raises StoreError."""
    if target.state() == "done":
        return
    with tempfile.TemporaryDirectory(prefix=".", dir=target.store) as folder:
        source = Store(Path(folder)).job(target.id)
        files.make_private_folder(source.path)
        for name, content in packed.items():
            files.write_bytes(source.path / name, content, private=True)
        with suppress(FileNotFoundError):
            copy_job(source, target, with_private=True)
