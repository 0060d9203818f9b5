"""Write what a job produced: learning curve, predictions, the record."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from peftbench.core import official_recipes, presets
from peftbench.core.contract import Labels, Logits, Metric, TaskKind, oriented, tasks_of
from peftbench.core.record import BackboneFacts, Budget, Choice, Costs, Counts, DataFacts, MethodFacts, Record, Tuning
from peftbench.core.registry import registry
from peftbench.core.spec import Job, Places
from peftbench.core.syntax import is_random, without_random
from peftbench.data import audit
from peftbench.data.pixel_cache import Data
from peftbench.errors import PluginError
from peftbench.models import backbone
from peftbench.profiling import hardware
from peftbench.profiling.counting import Counted
from peftbench.results.store import JobFolder
from peftbench.statistics.by_group import group_means
from peftbench.storage.files import sha256_json
from peftbench.training.loop import Chosen, Progress
from peftbench.training.optimizer import loss_range

UNCONVERGED = 0.9  # of a constant prediction's loss: a final loss above this share counts as not converged


@dataclass
class Outcome:
    """What a job produced, filled step by step and then written into its record."""

    progress: Progress = field(default_factory=Progress)
    counts: Counts = field(default_factory=lambda: Counts(trainable=0, head=0))
    facts: Mapping[str, float] = field(default_factory=dict)  # of the plan
    selection_seconds: float = 0.0
    delta_bytes: int = 0
    fitted_features: bool = False  # no steps of training
    counted: Counted | None = None  # the cost of a training step
    seconds: float = 0.0  # of the whole job, interruptions left out
    cpu_seconds: float = 0.0
    peak_memory: int = 0  # bytes


def write_results(folder: JobFolder, data: Data, progress: Progress) -> None:
    """Write the curve, the predictions and, in a file for the owner only, the names of images and groups."""
    arrays: dict[str, NDArray[Any]] = {}
    for part in next(iter(progress.chosen.values())).logits:
        arrays[f"{part}/labels"] = data.labels[part]
        arrays[f"{part}/groups"] = np.unique(data.groups[part], return_inverse=True)[1].astype(np.int64)
        arrays |= {f"{part}/{rule}/logits": chosen.logits[part] for rule, chosen in progress.chosen.items()}
    folder.write_predictions(arrays)
    if progress.curve:
        folder.write_curve(progress.curve)
    folder.write_private({"names": data.names, "groups": data.groups})


def make_record(job: Job, places: Places, data: Data, outcome: Outcome | str) -> Record:
    """Return the record of a job that has ended: its outcome, or the reason of its failure."""
    facts: dict[str, Any] = {
        "id": job.id,
        "role": job.role,
        "method": MethodFacts(name=job.method, version=job.version, fields=dict(job.fields), label=job.label),
        "data": DataFacts(
            name=job.dataset,
            fingerprint=data.fingerprint,
            split=data.rule,
            sizes=data.sizes,
            groups={part: len(set(keys)) for part, keys in data.groups.items()},
            card=asdict(data.card),
            notes=[*data.notes, *_group_notes(data)],
            variant=job.variant,
            test=sha256_json([data.names["test"], data.labels["test"].tolist()])[:16],
            balance={part: audit.class_counts(labels, len(data.card.classes)) for part, labels in data.labels.items()},
            audit=audit.load_counts(places.cache, data.fingerprint),
        ),
        "backbone": BackboneFacts(
            name=without_random(job.backbone),
            digest=job.digest,
            random=is_random(job.backbone),
            parameters=backbone.parameter_count(job.backbone, job.image_size),
            preprocessing=job.preprocessing.stored(),
            overlap=presets.overlap(job.backbone, job.dataset),
        ),
        "recipe": job.recipe.stored(),
        "seed": job.seed,
        "threads": job.threads,
        "tuning": Tuning.model_validate(job.tuning) if job.tuning else None,
        "environment": hardware.environment(places.device),
    }
    if isinstance(outcome, str):
        return Record(status="failed", reason=outcome, **facts)
    return Record(status="done", **facts, **_results(job, data, outcome))


def _results(job: Job, data: Data, outcome: Outcome) -> dict[str, Any]:
    """Return the fields that only the record of a finished job has."""
    progress, reached, faults = outcome.progress, outcome.counts.trainable, dict[str, None]()
    timed = progress.train_seconds and not outcome.fitted_features
    rate = progress.step * job.recipe.batch / progress.train_seconds if timed else None
    return {
        "budget": Budget(target=job.target, reached=reached, knob=job.knob, edge=job.edge),
        "counts": outcome.counts,
        "choices": {rule: _choice(chosen, data, faults) for rule, chosen in progress.chosen.items()},
        "costs": Costs(
            seconds=outcome.seconds,
            cpu_seconds=outcome.cpu_seconds,
            selection_seconds=outcome.selection_seconds,
            train_seconds=progress.train_seconds,
            train_cpu_seconds=progress.train_cpu_seconds,
            evaluation_seconds=progress.evaluation_seconds,
            images_per_second=rate,
            peak_memory=outcome.peak_memory,
            delta_bytes=outcome.delta_bytes,
            **_counted(progress, outcome.counted),
        ),
        "facts": dict(outcome.facts),
        "ways": outcome.progress.ways,
        "notes": [*_notes(job, progress, data), *faults],
    }


def _counted(progress: Progress, counted: Counted | None) -> dict[str, Any]:
    """Return the counted costs and the rate of prediction; each evaluation of the curve predicts every part once."""
    if counted is None:
        return {}
    seen = sum(len(logits) for logits in progress.chosen["last"].logits.values()) * len(progress.curve)
    timed = progress.evaluation_seconds > 0 and not counted.stored
    return {
        "memory": counted.memory,
        "flops_forward": counted.forward,
        "flops_training": counted.training,
        "predicted_per_second": seen / progress.evaluation_seconds if timed else None,
    }


def _choice(chosen: Chosen, data: Data, faults: dict[str, None]) -> Choice:
    card, scores = data.card, dict[str, dict[str, float | None]]()
    for part, logits in chosen.logits.items():
        groups = data.groups[part] if card.group_key else ()
        scores[part] = compute_scores(logits, data.labels[part], groups, card.task, card.positive_index, faults)
    return Choice(step=chosen.step, val=scores.get("val", {}), test=scores.get("test", {}))


def compute_scores(
    logits: Logits,
    labels: Labels,
    groups: Sequence[str],
    task: TaskKind,
    positive: int = 1,
    faults: dict[str, None] | None = None,
) -> dict[str, float | None]:
    """Return the metrics of images and, where groups are known, as `<metric>_per_group` of the groups' mean logits."""
    compute = partial(compute_metrics, task=task, positive=positive, faults=faults)
    found = compute(logits, labels)
    if groups:
        means, truth, _ = group_means(logits, labels, groups)
        found |= {f"{name}_per_group": value for name, value in compute(means.astype(np.float32), truth).items()}
    return found


def compute_metrics(
    logits: Logits,
    labels: Labels,
    task: TaskKind = "single",
    positive: int = 1,
    faults: dict[str, None] | None = None,
) -> dict[str, float | None]:
    """Return every registered metric that is defined for the task; None where its value is undefined.

    `positive` is the label of the positive class, where there are two.

    The value of a metric that cannot be loaded, raises or returns a name of another is undefined, and `faults` receives
    a sentence on it. Metrics cannot change the arrays.
    """
    logits, labels = _read_only(logits), _read_only(labels)
    scores: dict[str, float | None] = {}
    known = registry("metrics")
    for name in sorted(known.names(), key=lambda name: name not in known.built_in()):
        try:
            metric = oriented(known.get(name), positive)
            if task in tasks_of(metric):
                scores |= _new(name, _values(name, metric, logits, labels), scores)
        except PluginError as error:
            scores[name] = None
            if faults is not None:
                faults[str(error)] = None
    return scores


def _new(name: str, values: dict[str, float | None], scores: Mapping[str, float | None]) -> dict[str, float | None]:
    """Return the values of a metric. Raises PluginError if one has the name of another metric's."""
    if taken := sorted(values.keys() & scores.keys()):
        what = f"it returned {taken[0]!r}, which another metric returns"
        raise PluginError(f"{registry('metrics').describe(name)} failed: {what}.")
    return values


def _read_only(array: NDArray[Any]) -> NDArray[Any]:
    view = array.view()
    view.flags.writeable = False
    return view


def _values(name: str, metric: Metric, logits: Logits, labels: Labels) -> dict[str, float | None]:
    with registry("metrics").calling(name):
        value = metric(logits, labels)
        named = value if isinstance(value, Mapping) else {name: value}
        return {str(key): float(v) if math.isfinite(v) else None for key, v in named.items()}


def _notes(job: Job, progress: Progress, data: Data) -> list[str]:
    """Return what a reader of the row must know: convergence, memory, undefined metrics, unsupported settings."""
    best, constant = loss_range(job.recipe, data.labels["train"], len(data.card.classes))
    stuck = progress.curve and progress.curve[-1].get("train_loss", best) - best > UNCONVERGED * (constant - best)
    pieces = [f"each batch split into {progress.pieces} pieces (out of memory)"] if progress.pieces > 1 else []
    left_out = official_recipes.left_out(job.method) if job.recipe.name == "official" else []
    return [*(["not converged"] if stuck else []), *pieces, *_undefined(data), *left_out]


def _frequencies(data: Data, part: str) -> NDArray[np.float64]:
    """Return the share of each class (classes,), or of each label's absence and presence (labels, 2)."""
    labels = data.labels[part]
    if data.card.task == "multi_label":
        present = labels.mean(0)
        return np.stack([1 - present, present], 1)
    return np.bincount(labels, minlength=len(data.card.classes)) / len(labels)


def _undefined(data: Data) -> list[str]:
    """Return why a metric is undefined on the test set."""
    if not data.sizes["test"]:
        return []
    share = _frequencies(data, "test")
    absent = [name for name, found in zip(data.card.classes, share, strict=True) if not np.all(found)]
    what = "with and without" if data.card.task == "multi_label" else "of"
    return [f"AUC undefined: no test images {what} {', '.join(absent)}"] if absent else []


def _group_notes(data: Data) -> list[str]:
    """Return how many groups are left out of the metrics per group."""
    if not data.card.group_key or not data.sizes["test"]:
        return []
    labels, groups = data.labels["test"], data.groups["test"]
    *_, left_out = group_means(np.zeros((len(labels), 1)), labels, groups)
    several = f"{left_out} of {len(set(groups))} test groups ({data.card.group_key})"
    return [f"per group: {several} have images of several labels and are left out"] if left_out else []
