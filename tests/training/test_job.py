"""One job from start to end, and its files."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from peftbench.core.contract import Result
from peftbench.core.record import Record
from peftbench.core.registry import registry
from peftbench.core.spec import Job
from peftbench.data import batches, pixel_cache
from peftbench.errors import JobError
from peftbench.models import backbone, delta, sparse_ways
from peftbench.models.head import Classifier, Head
from peftbench.models.plan import Plan
from peftbench.profiling import counting
from peftbench.results.store import Store
from peftbench.training import loop
from peftbench.training.checkpoint import Checkpoint
from peftbench.training.job import give_up, run
from peftbench.training.loop import Learner, Progress, RunCallbacks, fit
from peftbench.training.trainee import make_task
from tests import studies

METHODS = ("majority", "linear", "bitfit", "lora", "shpeft[ratio=0.1%,batches=2]")


@pytest.fixture(scope="module", autouse=True)
def _permissive_umask() -> Iterator[None]:
    """Let every file be readable by all that is not made private on purpose."""
    before = os.umask(0)
    yield
    os.umask(before)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return studies.home(tmp_path_factory)


@pytest.fixture(scope="module")
def jobs(home: Path) -> dict[str, Job]:
    asked = studies.small(home / "images", methods=METHODS)
    return {job.method: job for job in studies.jobs(asked, studies.places(home))}


@pytest.fixture(scope="module")
def done(home: Path, jobs: dict[str, Job]) -> dict[str, Result]:
    """Every method's finished job."""
    where = studies.places(home)
    ran = {name: run(job, where) for name, job in jobs.items()}
    return {name: Result(r, Store(where.store).job(r.id).path) for name, r in ran.items() if r is not None}


def test_every_job_ends_well(done: dict[str, Result]) -> None:
    assert {name: (r.record.status, r.record.reason) for name, r in done.items()} == dict.fromkeys(done, ("done", ""))
    assert len(done) == len(METHODS)


def test_a_job_leaves_these_files_and_no_state(done: dict[str, Result]) -> None:
    left = {name: {path.name for path in result.folder.iterdir()} for name, result in done.items()}
    always = {".lock", "job.json", "predictions.npz", "private.json", "record.json"}
    trained = always | {"curve.csv", "delta.json", "delta.safetensors"}
    assert left == {name: always if name == "majority" else trained for name in done}


def test_the_record_on_disk_is_the_one_that_was_returned(done: dict[str, Result]) -> None:
    for result in done.values():
        assert (result.folder / "record.json").read_text() == result.record.model_dump_json(indent=1)


def test_notes_on_the_images_are_the_jobs_own(jobs: dict[str, Job], home: Path) -> None:
    """Cuts that keep the same images share them in the cache, but neither rule nor notes."""
    job = jobs["majority"]
    assert job.about is not None
    other = replace(job, split="70/10/20 stratified, grouped", about=(job.about[0], ("nothing left out",)))
    records = [run(one, replace(studies.places(home), store=home / "other")) for one in (job, other)]
    assert [record and record.data.split for record in records] == [job.split, other.split]
    assert records[1] is not None
    assert records[1].data.notes == ["nothing left out"]


def test_the_request_holds_what_decided_the_id(done: dict[str, Result], jobs: dict[str, Job]) -> None:
    noted = json.loads((done["lora"].folder / "job.json").read_text())
    assert noted["id"] == jobs["lora"].id == done["lora"].folder.name
    assert noted["identity"] == json.loads(json.dumps(jobs["lora"].identity(), default=list))


def test_names_and_groups_are_kept_apart(done: dict[str, Result]) -> None:
    private = done["lora"].folder / "private.json"
    names = json.loads(private.read_text())["names"]
    assert {part: len(found) for part, found in names.items()} == done["lora"].record.data.sizes


def test_every_file_and_folder_of_store_and_cache_is_private_whatever_the_umask(
    done: dict[str, Result], home: Path
) -> None:
    assert done
    made = [path for root in ("runs", "cache") for path in (home / root, *(home / root).rglob("*"))]
    assert {path.name for path in made} >= {"record.json", "private.json", "delta.safetensors", "pixels.npy", "probes"}
    assert {path: oct(path.stat().st_mode & 0o077) for path in made if path.stat().st_mode & 0o077} == {}


def test_no_image_name_lies_beside_the_private_file(done: dict[str, Result]) -> None:
    name = json.loads((done["lora"].folder / "private.json").read_text())["names"]["test"][0].encode()
    public = [path for path in done["lora"].folder.iterdir() if path.name != "private.json" and path.is_file()]
    assert [path.name for path in public if name in path.read_bytes()] == []


def test_counts_are_those_of_the_tensors_saved(done: dict[str, Result]) -> None:
    for name in ("linear", "bitfit", "lora", "shpeft"):
        tensors = load_file(done[name].folder / "delta.safetensors")
        own = sum(t.numel() for n, t in tensors.items() if not n.startswith(("head/", "index/")))
        head = sum(t.numel() for n, t in tensors.items() if n.startswith("head/"))
        counts = done[name].record.counts
        assert counts is not None
        assert (own, head) == (counts.trainable, counts.head)
    assert done["shpeft"].record.counts.trainable == round(0.001 * done["shpeft"].record.backbone.parameters)  # type: ignore[union-attr]


def test_three_rules_are_on_every_row(done: dict[str, Result]) -> None:
    for result in done.values():
        assert set(result.record.choices) == {"validation", "last", "oracle"}
        assert result.record.rule == "validation"
    last = done["lora"].record.choices["last"]
    assert last.step == 8
    assert done["lora"].record.choices["oracle"].test["macro_f1"] >= last.test["macro_f1"]  # type: ignore[operator]


def test_scores_are_those_of_the_stored_logits(done: dict[str, Result]) -> None:
    for result in done.values():
        for rule, choice in result.record.choices.items():
            logits, labels, groups = result.predictions(rule)
            assert logits.dtype == np.float32
            assert len(groups) == len(labels) == result.record.data.sizes["test"]
            assert choice.test["macro_f1"] == pytest.approx(registry("metrics").get("macro_f1")(logits, labels))


def test_the_curve_has_a_row_an_evaluation(done: dict[str, Result]) -> None:
    with (done["bitfit"].folder / "curve.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert [row["step"] for row in rows] == ["2", "4", "6", "8"]
    assert list(rows[0]) == ["step", "lr", "train_loss", "val_macro_f1", "val_loss"]


def test_majority_predicts_the_log_frequencies(done: dict[str, Result]) -> None:
    logits, _, _ = done["majority"].predictions("last")
    np.testing.assert_allclose(np.exp(logits), 1 / 3, atol=1e-6)
    assert done["majority"].record.counts.head == 0  # type: ignore[union-attr]


def test_the_saved_delta_gives_the_stored_logits(done: dict[str, Result], jobs: dict[str, Job], home: Path) -> None:
    job = jobs["shpeft"]
    vit = backbone.locate("mini").build(99)
    _, head = delta.restore(vit, done["shpeft"].folder, job.digest)
    model = Classifier(vit, Head(192, 3, "plain", 1.0, 99))
    model.head.load_state_dict(head)
    data = pixel_cache.open_prepared(job.fingerprint, job.preprocessing, home / "cache")
    images = batches.ImageBatches(data.pixels("test"), job.preprocessing, torch.device("cpu"))
    np.testing.assert_array_equal(loop.predict(model, images), done["shpeft"].predictions("validation")[0])


def test_the_linear_probe_learns_what_it_learns_through_the_network(
    done: dict[str, Result], jobs: dict[str, Job], home: Path
) -> None:
    job = jobs["linear"]
    data = pixel_cache.open_prepared(job.fingerprint, job.preprocessing, home / "cache")
    vit = backbone.locate("mini").build(0).requires_grad_(requires_grad=False)
    model = Classifier(vit, Head(192, 3, "plain", 1.0, job.seed))
    task = make_task(data, job.preprocessing, "cpu", ("val", "test"))
    learner = Learner(model, {f"head/{n}": t for n, t in model.head.state_dict(keep_vars=True).items()})
    progress = fit(learner, task, job.recipe, job.seed)
    stored = load_file(done["linear"].folder / "delta.safetensors")
    for name, tensor in progress.kept.items():
        torch.testing.assert_close(stored[name], tensor, rtol=0, atol=1e-6)


def test_every_method_starts_from_the_same_head(home: Path, tmp_path: Path) -> None:
    """Whatever random numbers a method draws when it plans and when its plan is carried out."""
    methods = ("linear", "bitfit", "lora", "spt_lora[budget=0.5%]", "vpt_deep", "shpeft[ratio=0.1%,batches=2]")
    where = replace(studies.places(home), store=tmp_path)
    heads = {}
    for job in studies.jobs(studies.small(home / "images", methods=methods), where):
        still = replace(job, recipe=replace(job.recipe, lr=1e-30, head_lr=0.0))  # trains, but moves no weight
        record = run(still, where)
        assert record is not None
        assert record.status == "done", record.reason
        heads[job.method] = load_file(Store(tmp_path).job(record.id).path / "delta.safetensors")["head/linear.weight"]
    assert len(heads) == len(methods)
    assert all(torch.equal(head, heads["linear"]) for head in heads.values())
    assert heads["linear"].std() == pytest.approx(0.02, rel=0.2)


def test_a_finished_job_is_not_run_again(done: dict[str, Result], jobs: dict[str, Job], home: Path) -> None:
    file = done["lora"].folder / "record.json"
    before = file.stat()
    assert run(jobs["lora"], studies.places(home)) == Record.model_validate_json(file.read_bytes())
    assert (file.stat().st_ino, file.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


# --- costs -----------------------------------------------------------------------------------------------------------


def test_the_record_states_what_a_step_holds_and_computes(done: dict[str, Result], home: Path) -> None:
    costs = {name: result.record.costs for name, result in done.items()}
    assert all(found for found in costs.values())
    held = {name: found.memory for name, found in costs.items() if found and found.memory}
    assert set(held) == set(done) - {"majority"}
    for name, memory in held.items():
        counts = done[name].record.counts
        assert counts
        assert memory.gradients == 4 * (counts.trainable + counts.head)
        assert (memory.activations == 0) == (name == "linear")  # its head trains on stored features
    pixels_ = next((home / "cache" / "pixels").rglob("pixels.npy")).stat().st_size
    assert 0 < held["lora"].pixels - 4 * 3 * studies.SIDE**2 * 5 <= pixels_
    assert costs["lora"] and costs["linear"]  # noqa: PT018 - for the type checker
    assert (costs["lora"].flops_forward or 0) > (costs["linear"].flops_forward or 0) > 0
    assert (costs["lora"].predicted_per_second or 0) > 0
    assert costs["linear"].predicted_per_second is None


@pytest.mark.parametrize("method", ["bitfit", "linear"])
def test_counting_changes_no_bit_of_a_job_and_failing_undoes_none(
    method: str, jobs: dict[str, Job], done: dict[str, Result], home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise RuntimeError

    monkeypatch.setattr(counting, "count", refuse)
    uncounted = replace(studies.places(home), store=home / "uncounted")
    record = run(jobs[method], uncounted)
    assert record is not None
    assert record.costs is not None
    assert record.costs.memory is None
    assert studies.left_by(Store(uncounted.store).job(record.id).path) == studies.left_by(done[method].folder)


def test_an_older_record_can_still_be_read(done: dict[str, Result]) -> None:
    old = json.loads(done["lora"].record.model_dump_json())
    for name in ("memory", "flops_forward", "flops_training", "predicted_per_second"):
        del old["costs"][name]
    found = Record.model_validate_json(json.dumps(old)).costs
    assert found is not None
    assert found.memory is None


# --- trials ----------------------------------------------------------------------------------------------------------


def test_a_trial_never_sees_test(jobs: dict[str, Job], home: Path) -> None:
    trial = replace(jobs["bitfit"], role="trial")
    record = run(trial, studies.places(home))
    assert record is not None
    assert (record.role, record.status) == ("trial", "done")
    assert set(record.choices) == {"validation", "last"}
    assert all(choice.test == {} for choice in record.choices.values())
    folder = Store(home / "runs").job(trial.id).path
    with np.load(folder / "predictions.npz") as stored:
        assert {name.partition("/")[0] for name in stored.files} == {"val"}
    assert not (folder / "delta.safetensors").exists()


# --- what goes wrong -------------------------------------------------------------------------------------------------


def failing(kind: type[Exception]) -> Callable[..., Plan]:
    """A `plan` that fails."""

    def plan(*_: object) -> Plan:
        raise kind("it was not to be")

    return plan


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        (JobError, "it was not to be"),
        (MemoryError, "Out of memory, also with every batch in 4 pieces (it was not to be); try a smaller --batch."),
        (ZeroDivisionError, "ZeroDivisionError: it was not to be"),
    ],
)
def test_a_job_that_fails_is_a_record(
    kind: type[Exception],
    reason: str,
    jobs: dict[str, Job],
    tmp_path: Path,
    home: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(registry("methods").get("bitfit"), "plan", failing(kind))
    failed = run(jobs["bitfit"], replace(studies.places(home), store=tmp_path))
    assert failed is not None
    assert (failed.status, failed.reason, failed.choices) == ("failed", reason, {})
    assert Store(tmp_path).job(failed.id).state() == "failed"


def test_a_failed_job_is_tried_again(
    jobs: dict[str, Job], tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    where = replace(studies.places(home), store=tmp_path)
    with monkeypatch.context() as broken:
        broken.setattr(registry("methods").get("linear"), "plan", failing(JobError))
        failed = run(jobs["linear"], where)
    again = run(jobs["linear"], where)
    assert failed is not None
    assert again is not None
    assert (failed.status, again.status, again.reason) == ("failed", "done", "")


def test_a_diverged_job_names_its_rate(jobs: dict[str, Job], tmp_path: Path, home: Path) -> None:
    wild = replace(jobs["bitfit"], recipe=replace(jobs["bitfit"].recipe, lr=1e30, warmup=0.0))
    record = run(wild, replace(studies.places(home), store=tmp_path))
    assert record is not None
    assert record.status == "failed"
    assert record.reason.startswith("Non-finite loss by step")
    assert "learning rate 1e+30" in record.reason


def test_a_job_that_another_holds_is_left_alone(jobs: dict[str, Job], tmp_path: Path, home: Path) -> None:
    where = replace(studies.places(home), store=tmp_path)
    with Store(tmp_path).job(jobs["linear"].id).claim():
        assert run(jobs["linear"], where) is None


def test_giving_up_takes_nothing_from_another_process(jobs: dict[str, Job], tmp_path: Path, home: Path) -> None:
    """Another process may have taken the job over, or finished it, before this one notices that a worker died."""
    where, job = replace(studies.places(home), store=tmp_path), jobs["bitfit"]
    with Store(tmp_path).job(job.id).claim():
        assert give_up(job, where, "it died") is None
    assert Store(tmp_path).job(job.id).record() is None
    run(job, where)
    done = Store(tmp_path).job(job.id).record()
    assert give_up(job, where, "it died") == Store(tmp_path).job(job.id).record() == done


class Fifth:
    """A request to stop that is true from the fifth call on."""

    def __init__(self) -> None:
        self.times = 0

    def __call__(self) -> bool:
        self.times += 1
        return self.times >= 5


def test_a_job_that_was_interrupted_counts_the_time_before_it_was_interrupted(
    jobs: dict[str, Job], tmp_path: Path, home: Path
) -> None:
    where, job = replace(studies.places(home), store=tmp_path), jobs["bitfit"]
    with pytest.raises(KeyboardInterrupt):
        run(job, where, RunCallbacks(stop=Fifth()))
    begun = Checkpoint(Store(tmp_path).job(job.id)).read()
    assert begun is not None
    progress, *tensors = begun
    assert progress.seconds > progress.train_seconds
    Checkpoint(Store(tmp_path).job(job.id)).write(replace(progress, seconds=1000.0), *tensors)
    record = run(job, where)
    assert record is not None
    assert record.costs is not None
    assert 1000 < record.costs.seconds < 2000


def starved_once() -> Callable[..., Plan]:
    """The plan of BitFit, which runs out of memory the first time."""
    plan, calls = registry("methods").get("bitfit").plan, [0]

    def starved(*given: object) -> Plan:
        calls[0] += 1
        if calls[0] == 1:
            raise MemoryError
        planned: Plan = plan(*given)
        return planned

    return starved


def test_a_job_in_pieces_stays_in_pieces_when_it_goes_on(
    jobs: dict[str, Job], tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    where, job = replace(studies.places(home), store=tmp_path), jobs["bitfit"]
    whole = run(job, replace(where, store=tmp_path / "whole"))
    monkeypatch.setattr(registry("methods").get("bitfit"), "plan", starved_once())
    with pytest.raises(KeyboardInterrupt):
        run(job, where, RunCallbacks(stop=Fifth()))
    monkeypatch.undo()
    cut = run(job, where)
    memory = [r.costs.memory.activations for r in (whole, cut) if r and r.costs and r.costs.memory]
    assert memory[1] == pytest.approx(memory[0] / 4, rel=0.01)


def test_a_resumed_job_keeps_the_ways_to_its_gradients(
    jobs: dict[str, Job], tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    where, job = replace(studies.places(home), store=tmp_path), jobs["shpeft"]

    def prefer(way: str) -> None:
        """As a machine would on which this way is the fastest for every layer."""
        monkeypatch.setattr(sparse_ways, "choose", lambda root, *_: dict.fromkeys(sparse_ways.patterns(root), way))

    prefer("rows")
    whole = run(job, replace(where, store=tmp_path / "whole"))
    with pytest.raises(KeyboardInterrupt):
        run(job, where, RunCallbacks(stop=Fifth()))
    prefer("columns")
    resumed = run(job, where)
    assert resumed is not None
    assert whole is not None
    assert set(resumed.ways.values()) == {"rows"}
    left = [studies.left_by(Store(store).job(job.id).path) for store in (tmp_path, tmp_path / "whole")]
    assert left[0] == left[1]


def test_the_rate_that_is_shown_is_known_from_the_first_look(jobs: dict[str, Job], tmp_path: Path, home: Path) -> None:
    seen: list[tuple[int, float]] = []
    callbacks = RunCallbacks(lambda progress: seen.append((progress.step, progress.train_seconds)))
    run(jobs["bitfit"], replace(studies.places(home), store=tmp_path), callbacks)
    assert [step for step, _ in seen] == [2, 4, 6, 8]
    assert all(seconds > 0 for _, seconds in seen)


@pytest.fixture
def one_thread_more() -> Iterator[int]:
    before = torch.get_num_threads()
    yield before + 1
    torch.set_num_threads(before)


def test_a_job_runs_on_its_own_number_of_threads(
    one_thread_more: int, jobs: dict[str, Job], tmp_path: Path, home: Path
) -> None:
    seen: list[int] = []

    def watch(_: Progress) -> None:
        seen.append(torch.get_num_threads())

    job = replace(jobs["linear"], threads=one_thread_more)
    run(job, replace(studies.places(home), store=tmp_path), RunCallbacks(watch))
    assert set(seen) == {one_thread_more}


@pytest.mark.parametrize("method", ["full", "linear", "bitfit", "lora", "shpeft[batches=2]"])
def test_the_paper_s_recipe_takes_three_steps_on_a_random_network(method: str, home: Path, tmp_path: Path) -> None:
    asked = studies.small(
        home / "images", methods=(method,), recipe="paper", backbone="timm:vit_tiny_patch16_224[depth=2]@random"
    )
    where = replace(studies.places(home), store=tmp_path)
    (job,) = studies.jobs(replace(asked, image_size=64, steps=3, batch=4, evaluations=1), where)
    record = run(job, where)
    assert record is not None
    assert (record.status, record.reason, record.rule, record.recipe["head"]) == ("done", "", "last", "l2")
