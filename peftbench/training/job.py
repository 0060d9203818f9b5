"""ONE job from start to end. Read this file first.

data -> network -> plan -> carry out -> fit -> logits -> delta -> record, the record last and in one piece.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, replace
from typing import Any, TypeAlias

import numpy as np
import torch

from peftbench.core.fields import build
from peftbench.core.record import Counts, Record
from peftbench.core.registry import registry
from peftbench.core.spec import Job, Places
from peftbench.data import augmentation, pixel_cache
from peftbench.data.batches import Features, Images, fits_on_device
from peftbench.data.pixel_cache import Data
from peftbench.errors import PeftbenchError, StoreError
from peftbench.models import backbone, delta
from peftbench.models.compiled import compiled
from peftbench.models.gradient_probe import Batch, GradientProbe
from peftbench.models.head import Classifier, Head
from peftbench.models.method import Method
from peftbench.profiling import counting, hardware
from peftbench.profiling.counting import Alone, Counted
from peftbench.profiling.hardware import PRECISIONS
from peftbench.results.store import Store
from peftbench.storage.checked_tensors import cached
from peftbench.storage.files import is_disk_full, sha256_json
from peftbench.training.checkpoint import Checkpoint
from peftbench.training.loop import Chosen, Inputs, Learner, Outside, Progress, Task, fit, forward
from peftbench.training.model_card import about
from peftbench.training.optimizer import make_loss
from peftbench.training.record_writer import Outcome, make_record, write_results

LONGEST = 300  # letters of a reason
Tensors: TypeAlias = Mapping[str, torch.Tensor]
PIECES = 4  # into which a batch is cut when there was not enough memory for the whole


def run(job: Job, places: Places, outside: Outside | None = None) -> Record | None:
    """Do a job that is not done, or go on with it; its record, or None where another process is at it.

    Whatever goes wrong within the job becomes a failed record, so that the rest of a study goes on. Raises
    KeyboardInterrupt, behind a checkpoint, when `outside` asks to stop.
    """
    here = Store(places.store)
    with here.job(job.id).claim() as mine:
        if not mine:
            return None
        done = here.job(job.id).record()
        if done is not None and done.status == "done":
            Checkpoint(here.job(job.id).path).clear()  # a process may have died between the record and this
            return done
        here.job(job.id).sweep()
        if done is not None:
            here.job(job.id).forget()
        with _room(places):
            return _do(job, places, outside or Outside())


@contextmanager
def _room(places: Places) -> Iterator[None]:
    """A full disk is nobody's failure: the job stays as it is at its last checkpoint. Raises StoreError."""
    try:
        yield
    except Exception as error:
        if not is_disk_full(error):
            raise
        where = f"{places.store} (results) or {places.cache} (cache)"
        raise StoreError(f"The disk is full: {where}; make room, and the same command goes on.") from None


def _do(job: Job, places: Places, outside: Outside) -> Record:
    """Do a job that this process holds, or go on with it, and write its record."""
    started, here = time.perf_counter(), Store(places.store)
    here.job(job.id).write_request(asdict(job) | {"identity": job.identity(), "id": job.id})
    if job.threads:
        torch.set_num_threads(job.threads)
    data, checkpoint = _data(job, places), Checkpoint(here.job(job.id).path)

    def taken(before: float) -> float:
        return before + time.perf_counter() - started

    def save(progress: Progress, learner: Tensors, optimizer: Tensors) -> None:
        checkpoint.write(replace(progress, seconds=taken(progress.seconds)), learner, optimizer)

    with hardware.repeatable(asked=job.recipe.deterministic), hardware.peak_memory(places.device) as peak:
        outcome = _guarded(job, places, data, replace(outside, save=save))
    before = outcome.progress.seconds if isinstance(outcome, Outcome) else 0.0
    record = make_record(job, places, data, outcome, taken(before), peak.bytes)
    record = here.job(record.id).write_record(record)
    checkpoint.clear()
    return record


def give_up(job: Job, places: Places, reason: str) -> Record | None:
    """Write down that a job failed without being able to say so itself; None where another process is at it by now."""
    data, here = _data(job, places), Store(places.store)
    with here.job(job.id).claim() as mine:
        if not mine:
            return None
        done = here.job(job.id).record()
        if done is not None and done.status == "done":
            return done
        record = make_record(job, places, data, reason, 0.0, 0)
        record = here.job(record.id).write_record(record)
        Checkpoint(here.job(job.id).path).clear()
    return record


def _guarded(job: Job, places: Places, data: Data, outside: Outside) -> Outcome | str:
    """The outcome, or the reason of the failure in a sentence. For want of memory, one more try in smaller pieces."""
    checkpoint = Checkpoint(Store(places.store).job(job.id).path)
    outcome = _tried(job, places, data, outside, 1)
    if isinstance(outcome, hardware.Wanted):
        checkpoint.clear()
        outcome = _tried(job, places, data, outside, PIECES)
    if isinstance(outcome, hardware.Wanted):
        return f"Out of memory, also with every batch in {PIECES} pieces ({outcome.words}); a smaller --batch may do."
    return outcome


def _tried(job: Job, places: Places, data: Data, outside: Outside, pieces: int) -> Outcome | str | hardware.Wanted:
    try:
        hardware.free()
        return _work(job, places, data, outside, pieces)
    except PeftbenchError as error:
        return str(error)
    except Exception as error:  # a plug-in may raise anything, and the study must go on
        if is_disk_full(error):
            raise
        return hardware.wanted(error) or _in_a_line(error)


def _in_a_line(error: Exception) -> str:
    """What a plug-in or torch raised, without the frames that some put behind their sentence."""
    first = next((line for line in str(error).splitlines() if line.strip()), "")
    return f"{type(error).__name__}: {first[:LONGEST]}"


def _work(job: Job, places: Places, data: Data, outside: Outside, pieces: int) -> Outcome:
    """The job itself."""
    method, folder = make_method(job), Store(places.store).job(job.id).path
    if not method.trains:
        progress = _untrained(job, data)
        write_results(job, places, data, progress)
        return Outcome(progress, Counts(trainable=0, head=0), {}, 0.0, 0)

    begun = Checkpoint(folder).read()
    pieces = begun[0].parts if begun else pieces
    weights = None if job.digest.startswith("random:") else places.weights
    vit = backbone.locate(job.backbone, job.image_size, weights).build(job.seed)
    autocast = PRECISIONS[job.recipe.precision]
    backbone.choose_attention(vit, places.device, autocast)
    model = Classifier(vit, _head(job, vit, data)).to(places.device)
    task = _task(job, places, data, pieces)

    started = time.perf_counter()
    plan = method.plan(vit, _probe(job, places, model, task))
    selection_seconds = time.perf_counter() - started
    counts = Counts(trainable=plan.count(vit), head=sum(p.numel() for p in model.head.parameters()))

    torch.manual_seed(job.seed)
    tuned = plan.carry_out(vit)
    head = {f"head/{name}": tensor for name, tensor in model.head.state_dict(keep_vars=True).items()}
    learner = Learner(model, {**tuned.tensors, **head}, tuned.callback)
    tuned.cast_frozen(autocast)
    if plan.empty and job.recipe.augmentation == "none":  # nothing before the head changes: look at each image once
        learner, task = Learner(model.head, head), _features(job, places, model, task)
    with compiled(vit, enabled=job.recipe.compile and learner.model is model):
        progress = fit(learner, task, job.recipe, job.seed, autocast, begun, outside, pieces)

    write_results(job, places, data, progress)
    size = delta.write(folder, plan, progress.kept, about(job, data, progress)) if job.role == "final" else 0
    held = _held(places, data, task)
    counted = _count(job, places, held, model, learner, pieces) if job.role == "final" else None
    return Outcome(progress, counts, plan.facts, selection_seconds, size, counted)


def _held(places: Places, data: Data, task: Task) -> int:
    """Bytes of decoded images in memory: mapped from the disk, or on the card for good."""
    if places.device == "cpu":
        return counting.mapped_bytes(data.folder / "pixels.npy")
    inputs = [task.train, *(images for images, _ in task.parts.values())]
    return sum(images.pixels.nbytes for images in inputs if isinstance(images, Images) and images.resident)


def _count(job: Job, places: Places, held: int, model: Classifier, learner: Learner, pieces: int) -> Counted | None:
    """What a pass of its training holds and computes, or None where it cannot be counted."""
    side, batch = job.preprocessing.size, -(-job.recipe.batch // pieces)
    alone = Alone(model.head, (batch, model.head.linear.in_features)) if learner.model is model.head else None
    images = (batch, 3, side, side)
    pixels = held + counting.batch_bytes(alone.batch if alone else images)
    autocast = PRECISIONS[job.recipe.precision]
    try:
        return counting.count(model, images, job.recipe, places.device, autocast, pixels, alone)
    except Exception:  # noqa: BLE001 - the job is done; a figure that cannot be had must not undo it
        return None


# --- what a job is made of -------------------------------------------------------------------------------------------


def make_method(job: Job) -> Method:
    """The method with the job's hyper-parameters."""
    kind: type[Method] = registry("methods").get(job.method)
    return build(kind, job.fields, job.method)


def _data(job: Job, places: Places) -> Data:
    """The decoded images; what is said of them is the job's, for another cut or name may have the same images."""
    found = pixel_cache.open_prepared(job.fingerprint, job.preprocessing, places.cache)
    card, notes = job.about or (found.card, found.notes)
    return replace(found, card=card, notes=notes, rule=job.split)


def _head(job: Job, vit: Any, data: Data) -> Head:  # noqa: ANN401 - a timm VisionTransformer
    return Head(vit.num_features, len(data.card.classes), job.recipe.head, job.recipe.head_scale, job.seed)


def _task(job: Job, places: Places, data: Data, pieces: int) -> Task:
    """Images and labels; a trial never holds test, and where memory was wanting once the images come batch by batch."""
    device = torch.device(places.device)
    pixels = {part: data.pixels(part) for part, size in data.sizes.items() if size}
    resident = pieces == 1 and fits_on_device(sum(raw.nbytes for raw in pixels.values()), device)
    images = {part: Images(raw, job.preprocessing, device, resident=resident) for part, raw in pixels.items()}
    seen = ("val",) if job.role == "trial" else ("val", "test")
    parts = {part: (images[part], data.labels[part]) for part in seen if part in images}
    labels = torch.from_numpy(data.labels["train"]).to(device)
    augment = augmentation.augmentation_for(job.recipe.augmentation, job.policy, job.preprocessing)
    return Task(images["train"], labels, parts, len(data.card.classes), augment)


def _probe(job: Job, places: Places, model: Classifier, task: Task) -> GradientProbe:
    """One pass over train in the order of the first epoch, in training batches."""

    def batches() -> Iterator[Batch]:
        first = np.random.default_rng([job.seed, 7, 0]).permutation(len(task.train))
        for index in np.split(first, range(job.recipe.batch, len(first), job.recipe.batch)):
            yield task.train.batch(index), task.labels[torch.from_numpy(index).to(task.labels.device)]

    decides = {
        **job.identity(),
        "method": "probe",
        "recipe": [job.recipe.batch, job.recipe.head, job.recipe.head_scale],
    }
    decides |= {
        "precision": job.recipe.precision,
        "loss": job.recipe.class_weights,
        "role": "",
        "device": places.device,
    }
    keep = places.cache / "probes" / sha256_json(decides)[:24]
    loss = make_loss(replace(job.recipe, label_smoothing=0.0), task.labels, task.classes)
    return GradientProbe(model, batches, loss, PRECISIONS[job.recipe.precision], keep, job.seed)


def _features(job: Job, places: Places, model: Classifier, task: Task) -> Task:
    """The task with every image replaced by the frozen backbone's features of it, which all jobs of a sweep share."""
    decides = {key: job.identity()[key] for key in ("data", "backbone", "threads")}
    folder = places.cache / "features" / sha256_json([decides, job.recipe.precision, places.device])[:24]

    def features(part: str, images: Inputs) -> Features:
        make = lambda: {"features": forward(model.vit, images, PRECISIONS[job.recipe.precision]).cpu().clone()}  # noqa: E731
        return Features(cached(folder / f"{part}.safetensors", make)["features"].to(task.labels.device))

    parts = {name: (features(name, images), labels) for name, (images, labels) in task.parts.items()}
    return replace(task, train=features("train", task.train), parts=parts)


def _untrained(job: Job, data: Data) -> Progress:
    """The log frequency of each class in train, or the log odds of each label, for every image."""
    labels = data.labels["train"]
    if data.card.task == "multi_label":
        seen = labels.mean(0).clip(0.5 / len(labels), 1 - 0.5 / len(labels))  # never sure
        row = np.log(seen / (1 - seen)).astype(np.float32)
    else:
        row = np.log(np.bincount(labels, minlength=len(data.card.classes)) / len(labels)).astype(np.float32)
    parts = [part for part in (("val",) if job.role == "trial" else ("val", "test")) if data.sizes[part]]
    logits = {part: np.tile(row, (data.sizes[part], 1)) for part in parts}
    rules = ["last", *(["validation"] if "val" in parts else []), *(["oracle"] if "test" in parts else [])]
    return Progress(chosen={rule: Chosen(0, 0.0, logits) for rule in rules})
