"""One job, from its images to its record. Read this file first.

`run` claims the job, follows STEPS and writes the record last. Every step reads from the `Run` what earlier steps put
there and adds its own result.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from peftbench.core.fields import build
from peftbench.core.guarded import first_line
from peftbench.core.recipe import Recipe
from peftbench.core.record import Counts, Record
from peftbench.core.registry import registry
from peftbench.core.spec import Job, Places
from peftbench.data import augmentation, pixel_cache
from peftbench.data.batches import ImageBatches
from peftbench.data.pixel_cache import Data
from peftbench.errors import PeftbenchError, StoreError
from peftbench.models import backbone, delta
from peftbench.models.compiled import compiled
from peftbench.models.head import Classifier
from peftbench.models.method import Method
from peftbench.models.plan import Plan
from peftbench.profiling import counting, hardware
from peftbench.profiling.clock import Clock
from peftbench.profiling.hardware import PRECISIONS, OutOfMemory
from peftbench.results.owner import Heartbeat, runs_elsewhere
from peftbench.results.store import JobFolder, Store
from peftbench.storage.files import is_disk_full, sha256_json
from peftbench.training import record_writer, trainee
from peftbench.training.checkpoint import Checkpoint
from peftbench.training.feature_fit import fit_features
from peftbench.training.loop import CheckpointContents, Chosen, Progress, RunCallbacks, Task, fit
from peftbench.training.model_card import model_card
from peftbench.training.record_writer import Outcome, make_record
from peftbench.training.trainee import Trainee

PIECES = 4  # into which a batch is cut when the whole does not fit into memory


@dataclass
class Run:
    """A job that is running: the request, and the results of the steps so far."""

    job: Job
    places: Places
    folder: JobFolder
    data: Data
    callbacks: RunCallbacks
    pieces: int = 1  # that a batch is cut into
    begun: CheckpointContents | None = None  # the checkpoint to resume from
    outcome: Outcome = field(default_factory=Outcome)
    model: Classifier = field(init=False, repr=False)
    task: Task = field(init=False, repr=False)
    plan: Plan = field(init=False, repr=False)
    trainee: Trainee = field(init=False, repr=False)

    @cached_property
    def method(self) -> Method:
        """The method with its hyper-parameters."""
        return make_method(self.job.method, self.job.fields)

    @property
    def autocast(self) -> torch.dtype | None:
        """The type that the network computes in, None for float32."""
        return PRECISIONS[self.job.recipe.precision]

    @property
    def evaluated(self) -> tuple[str, ...]:
        """The parts that are predicted: a trial never sees test."""
        parts = ("val",) if self.job.role == "trial" else ("val", "test")
        return tuple(part for part in parts if self.data.sizes[part])


# --- the steps -------------------------------------------------------------------------------------------------------


def resume(run: Run) -> None:
    """Read the checkpoint, if there is one; a run that was cut into pieces stays so."""
    run.begun = Checkpoint(run.folder).read()
    if run.begun:
        run.pieces = run.begun[0].pieces


def build_model(run: Run) -> None:
    """Build the pretrained backbone and the head on top of it."""
    job, device = run.job, run.places.device
    weights = None if job.digest.startswith("random:") else run.places.weights
    vit = backbone.locate(job.backbone, job.image_size, weights).build(job.seed)
    backbone.choose_attention(vit, device, run.autocast)
    run.model = trainee.make_classifier(vit, len(run.data.card.classes), job.recipe, job.seed).to(device)


def build_task(run: Run) -> None:
    """Open the images and labels to train on and to predict; in pieces, images go to the GPU batch by batch."""
    job = run.job
    augment = augmentation.augmentation_for(job.recipe.augmentation, job.policy, job.preprocessing)
    augment = None if run.method.fits_features else augment
    whole = run.pieces == 1
    run.task = trainee.make_task(run.data, job.preprocessing, run.places.device, run.evaluated, augment, resident=whole)


def select(run: Run) -> None:
    """Let the method choose what will train."""
    job, vit = run.job, run.model.vit
    probe = trainee.make_probe(
        run.model, run.task, job.recipe, job.seed, probe_cache(job.identity(), job.recipe, run.places)
    )
    started = time.perf_counter()
    run.plan = run.method.plan(vit, probe)
    hardware.free()  # training can use the memory of the selection
    run.outcome.selection_seconds = time.perf_counter() - started
    run.outcome.facts = run.plan.facts
    head = sum(p.numel() for p in run.model.head.parameters()) if run.method.trains else 0
    run.outcome.counts = Counts(trainable=run.plan.count(vit), head=head)


def carry_out(run: Run) -> None:
    """Change the network as planned; where the backbone stays as it is, its features are computed once."""
    torch.manual_seed(run.job.seed)
    run.trainee = trainee.carry_out(run.model, run.plan, run.task, run.autocast)
    if run.trainee.freezes_features:
        cache = _feature_cache(run.job, run.places)
        run.trainee = run.trainee.on_features(trainee.stored_features(run.model, run.task, run.job.recipe, cache))


def choose_ways(run: Run) -> None:
    """Choose how the gradients of single weights are computed: as before an interruption, else as is fastest here."""
    former = run.begun[0].ways if run.begun else None
    run.trainee = trainee.choose_ways(run.trainee, run.job.recipe, run.places.cache, run.pieces, former)


def train(run: Run) -> None:
    """Train to the last step, or from the checkpoint to the last step."""
    recipe, learner, task = run.job.recipe, run.trainee.learner, run.trainee.task
    with compiled(run.model.vit, enabled=recipe.compile and not run.trainee.head_only):
        run.outcome.progress = fit(
            learner, task, recipe, run.job.seed, run.autocast, run.begun, run.callbacks, run.pieces
        )


def fit_on_features(run: Run) -> None:
    """Let the method fit the stored features, without the recipe's steps."""
    run.outcome.fitted_features = True
    run.outcome.progress = fit_features(run.method, run.trainee, run.job.recipe)


def write_results(run: Run) -> None:
    """Write the learning curve and the predictions of the chosen steps."""
    record_writer.write_results(run.folder, run.data, run.outcome.progress)


def write_delta(run: Run) -> None:
    """Write what was trained, with all that prediction needs; trials leave none."""
    if run.job.role == "final":
        card = model_card(run.job, run.data, run.outcome.progress)
        run.outcome.delta_bytes = delta.write(run.folder.path, run.plan, run.outcome.progress.kept, card)


def count_cost(run: Run) -> None:
    """Count the memory and the FLOPs of a training step; a job does not fail where that is impossible."""
    if run.job.role == "trial":
        return
    side, pixels = run.job.preprocessing.size, _pixels_in_memory(run)
    try:
        run.outcome.counted = trainee.count_step(
            run.model,
            run.job.recipe,
            side,
            run.places.device,
            pixels,
            run.pieces,
            head_only=run.trainee.head_only,
        )
    except Exception:  # noqa: BLE001 - the job is done, and a cost that cannot be counted must not undo it
        run.outcome.counted = None


def predict_majority(run: Run) -> None:
    """Predict for every image the log frequency of each class in train, or the log odds of each label."""
    labels, classes = run.data.labels["train"], len(run.data.card.classes)
    if run.data.card.task == "multi_label":
        share = labels.mean(0).clip(0.5 / len(labels), 1 - 0.5 / len(labels))  # finite odds
        row = np.log(share / (1 - share)).astype(np.float32)
    else:
        row = np.log(np.bincount(labels, minlength=classes) / len(labels)).astype(np.float32)
    logits = {part: np.tile(row, (run.data.sizes[part], 1)) for part in run.evaluated}
    rules = {"last": "", "validation": "val", "oracle": "test"}  # and the part that each looks at
    rules.setdefault(run.job.recipe.selection, "val")
    chosen = {rule: Chosen(0, 0.0, logits) for rule, part in rules.items() if not part or part in logits}
    run.outcome.progress = Progress(chosen=chosen)


JobStep: TypeAlias = Callable[[Run], None]
STEPS: tuple[JobStep, ...] = (
    resume,
    build_model,
    build_task,
    select,
    carry_out,
    choose_ways,
    train,
    write_results,
    write_delta,
    count_cost,
)
ON_FEATURES: tuple[JobStep, ...] = (
    build_model,
    build_task,
    select,
    carry_out,
    fit_on_features,
    write_results,
)
UNTRAINED: tuple[JobStep, ...] = (predict_majority, write_results)


def steps_for(method: Method) -> tuple[JobStep, ...]:
    """Return the steps of a job of this method; without a head there is no delta."""
    if method.fits_features:
        return (*ON_FEATURES, write_delta) if method.trains else ON_FEATURES
    return STEPS if method.trains else UNTRAINED


# --- from claim to record --------------------------------------------------------------------------------------------


def run(job: Job, places: Places, callbacks: RunCallbacks | None = None) -> Record | None:
    """Run a job, or resume it; return its record, or None where another process is running it.

    Any error within the job becomes a failed record, so that the rest of a study goes on. Raises KeyboardInterrupt,
    after a checkpoint, when `callbacks` asks to stop, and StoreError when the disk is full.
    """
    folder = Store(places.store).job(job.id)
    with folder.claim() as claimed:
        if not claimed:
            return None
        record = folder.record()
        if record is not None and record.status == "done":
            Checkpoint(folder).clear()  # a process may have died between the record and this
            return record
        if runs_elsewhere(folder.path):
            return None
        folder.sweep()
        if record is not None:
            folder.forget()
        with _full_disk_is_no_failure(places), Heartbeat(folder.path) as heart:
            return _run_claimed(job, places, folder, _shown(callbacks or RunCallbacks(), job, heart))


def _shown(callbacks: RunCallbacks, job: Job, heart: Heartbeat) -> RunCallbacks:
    """Return callbacks that also show the progress in the owner's file."""

    def watch(progress: Progress) -> None:
        heart.progress(progress.step, progress.rate(job.recipe.batch), progress.best)
        callbacks.watch(progress)

    return replace(callbacks, watch=watch)


def give_up(job: Job, places: Places, reason: str) -> Record | None:
    """Write a failed record for a job whose worker died; None where another process has taken the job over."""
    data, folder = _open_data(job, places.cache), Store(places.store).job(job.id)
    with folder.claim() as claimed:
        if not claimed:
            return None
        record = folder.record()
        if record is not None and record.status == "done":
            return record
        record = folder.write_record(make_record(job, places, data, reason))
        Checkpoint(folder).clear()
    return record


def make_method(name: str, fields: Mapping[str, object]) -> Method:
    """Return the method with its hyper-parameters."""
    kind: type[Method] = registry("methods").get(name)
    return build(kind, fields, name)


@contextmanager
def _full_disk_is_no_failure(places: Places) -> Iterator[None]:
    """Leave the job at its last checkpoint when the disk is full. Raises StoreError."""
    try:
        yield
    except Exception as error:
        if not is_disk_full(error):
            raise
        reason = f"{error.filename}: {error.strerror}" if isinstance(error, OSError) and error.filename else str(error)
        where = f"{places.store} (results) or {places.cache} (cache)"
        raise StoreError(
            f"The disk is full ({reason}): {where}. Free some space and run the same command to resume."
        ) from None


def _run_claimed(job: Job, places: Places, folder: JobFolder, callbacks: RunCallbacks) -> Record:
    """Run a job that this process has claimed, and write its record."""
    clock = Clock()
    folder.write_request(asdict(job) | {"identity": job.identity(), "id": job.id})
    if job.threads:
        torch.set_num_threads(job.threads)
    data, checkpoint = _open_data(job, places.cache), Checkpoint(folder)

    def save(progress: Progress, learner: Mapping[str, Tensor], optimizer: Mapping[str, Tensor]) -> None:
        passed = clock.total()
        seconds, cpu_seconds = progress.seconds + passed.wall, progress.cpu_seconds + passed.cpu
        checkpoint.write(replace(progress, seconds=seconds, cpu_seconds=cpu_seconds), learner, optimizer)

    with hardware.repeatable(asked=job.recipe.deterministic), hardware.peak_memory(places.device) as peak:
        outcome = _retried(job, places, folder, data, replace(callbacks, save=save))
    if isinstance(outcome, Outcome):
        passed = clock.total()
        outcome.seconds = outcome.progress.seconds + passed.wall
        outcome.cpu_seconds = outcome.progress.cpu_seconds + passed.cpu
        outcome.peak_memory = peak.bytes
    record = folder.write_record(_record(job, places, data, outcome))
    checkpoint.clear()
    return record


def _record(job: Job, places: Places, data: Data, outcome: Outcome | str) -> Record:
    """Return the record of an outcome; a failed one if its scores cannot be computed, for lack of memory, say."""
    try:
        return make_record(job, places, data, outcome)
    except Exception as error:
        if is_disk_full(error):
            raise
        reason = str(error) if isinstance(error, PeftbenchError) else first_line(error)
        return make_record(job, places, data, reason)


def _retried(job: Job, places: Places, folder: JobFolder, data: Data, callbacks: RunCallbacks) -> Outcome | str:
    """Follow the steps, once more in smaller pieces when memory runs out; the outcome, or the reason of the failure."""
    outcome = _followed(job, places, folder, data, callbacks, 1)
    if isinstance(outcome, OutOfMemory):
        Checkpoint(folder).clear()
        hardware.free()
        outcome = _followed(job, places, folder, data, callbacks, PIECES)
    if not isinstance(outcome, OutOfMemory):
        return outcome
    return f"Out of memory, also with every batch in {PIECES} pieces ({outcome.message}); try a smaller --batch."


def _followed(
    job: Job, places: Places, folder: JobFolder, data: Data, callbacks: RunCallbacks, pieces: int
) -> Outcome | str | OutOfMemory:
    """Follow the steps once."""
    run = Run(job, places, folder, data, callbacks, pieces)
    try:
        for step in steps_for(run.method):
            step(run)
    except KeyboardInterrupt:
        raise
    except PeftbenchError as error:
        return str(error)
    except BaseException as error:  # a plug-in may raise anything, and the study must go on
        if is_disk_full(error):
            raise
        return hardware.out_of_memory(error) or first_line(error)
    return run.outcome


def _open_data(job: Job, cache: Path) -> Data:
    """Return the decoded images with the job's own card and notes, as other jobs may describe the same images."""
    found = pixel_cache.open_prepared(job.fingerprint, job.preprocessing, cache)
    card, notes = job.about or (found.card, found.notes)
    return replace(found, card=card, notes=notes, rule=job.split)


def _pixels_in_memory(run: Run) -> int:
    """Return the bytes of decoded images that are mapped from the disk, or that lie on the GPU for good."""
    if run.places.device == "cpu":
        return counting.mapped_bytes(run.data.folder / "pixels.npy")
    inputs = [run.task.train, *(images for images, _ in run.task.parts.values())]
    return sum(images.pixels.nbytes for images in inputs if isinstance(images, ImageBatches) and images.resident)


def probe_cache(identity: Mapping[str, Any], recipe: Recipe, places: Places) -> Path:
    """Return the folder of a job's gradient estimates; its name holds everything that decides them."""
    key = {
        **identity,
        "method": "probe",
        "recipe": [recipe.batch, recipe.head, recipe.head_scale],
        "precision": recipe.precision,
        "loss": recipe.class_weights,
        "role": "",
        "device": places.device,
    }
    return places.cache / "probes" / sha256_json(key)[:24]


def _feature_cache(job: Job, places: Places) -> Path:
    """Return the folder of the frozen backbone's features, which all jobs of a sweep share."""
    key = {name: job.identity()[name] for name in ("data", "backbone", "threads")}
    return places.cache / "features" / sha256_json([key, job.recipe.precision, places.device])[:24]
