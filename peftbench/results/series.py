"""The numbers of every figure, as lists of rows; scores, shares and differences are in percent.

A row is a mapping of plain values. Methods come in the order of the tables. A data set that lacks what a figure shows
has no rows, and nothing is imputed.
"""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, TypeAlias

import numpy as np

from peftbench.core.contract import Labels, Logits
from peftbench.core.record import Costs, Record, Tuning
from peftbench.results import summary
from peftbench.results.comparison import BOUNDS, compared, rank
from peftbench.results.limits import latency_of, mean_cost
from peftbench.results.summary import Block, MethodRow, Replicates
from peftbench.statistics import scores as statistics_of

Rows: TypeAlias = list[dict[str, Any]]

NEAR = 0.05  # decades
BINS = 10  # of the reliability diagram
MEGA = 1e6


def scores(block: Block, names: Sequence[str]) -> Rows:
    """Return macro F1 with its interval, the trainable share and the tier of every method with all data sets."""
    tiers = compared(block, names).tiers
    found: Rows = []
    for row in block.rows:
        score = row.estimate(names)
        if score is None or math.isnan(score.value):
            continue
        records = [record for name in names for record in row.replicates[name].records]
        found.append(
            {
                "method": row.name,
                "label": row.label,
                "share": 100 * _mean(map(summary.trainable_share, records)),
                "trained": round(_mean(record.counts.trainable for record in records if record.counts)),
                "score": _percent(score.value),
                "low": _percent(score.interval.low),
                "high": _percent(score.interval.high),
                "tier": tiers.get(row.name),
                "baseline": row.baseline,
            }
        )
    places = side_by_side([row["share"] for row in found])
    return [{**row, "place": place} for row, place in zip(found, places, strict=True)]


def side_by_side(shares: Sequence[float]) -> list[float]:
    """Return where to draw the shares on a logarithmic axis: moved apart where they are closer than NEAR decades."""
    places = list(shares)
    order = sorted((share, index) for index, share in enumerate(shares) if share > 0)
    clusters: list[list[int]] = []
    for share, index in order:
        if not clusters or math.log10(share / shares[clusters[-1][-1]]) > NEAR:
            clusters.append([])
        clusters[-1].append(index)
    for cluster in clusters:
        middle = statistics.fmean(math.log10(shares[index]) for index in cluster)
        for number, index in enumerate(cluster):
            places[index] = 10 ** (middle + NEAR * (number - (len(cluster) - 1) / 2))
    return places


def pairs(block: Block, names: Sequence[str]) -> Rows:
    """Return every pair of methods in both directions: the difference, its interval, p and the verdict."""
    found: Rows = []
    for pair in compared(block, names).pairs:
        difference, (low, high) = _percent(pair.found.difference), map(_percent, pair.found.interval)
        p = None if math.isnan(pair.p) else round(pair.p, 4)
        found += [
            {
                "method": pair.method,
                "other": pair.other,
                "difference": difference,
                "low": low,
                "high": high,
                "p": p,
                "verdict": pair.verdict,
            },
            {
                "method": pair.other,
                "other": pair.method,
                "difference": _negative(difference),
                "low": _negative(high),
                "high": _negative(low),
                "p": p,
                "verdict": OPPOSITE.get(pair.verdict, pair.verdict),
            },
        ]
    return found


OPPOSITE: Mapping[str, str] = MappingProxyType({"better": "worse", "worse": "better"})


def ranks(block: Block, names: Sequence[str]) -> Rows:
    """Return the average rank of every method and the critical difference; none with fewer than two data sets."""
    found = rank(compared(block, names))
    if found is None:
        return []
    critical = None if math.isnan(found.critical) else round(found.critical, 3)
    pairs_of = sorted(zip(found.average, found.methods, strict=True))
    return [{"method": name, "rank": round(place, 3), "critical": critical} for place, name in pairs_of]


def costs(block: Block, names: Sequence[str]) -> Rows:
    """Return the score of every method beside each of its costs; a cost that no record holds has no row."""
    found: Rows = []
    for scored in scores(block, names):
        row = next(one for one in block.rows if one.name == scored["method"])
        spent = [record.costs for name in names for record in row.replicates[name].records if record.costs]
        for name, (title, cost_of) in COSTS.items():
            value = mean_cost(spent, cost_of)
            if not math.isnan(value):
                found.append({**scored, "cost": name, "title": title, "value": float(f"{value:.4g}")})
    return found


def _prediction_milliseconds(costs: Costs) -> float | None:
    seconds = latency_of(costs)
    return None if seconds is None else 1e3 * seconds


COSTS: Mapping[str, tuple[str, Callable[[Costs], float | None]]] = MappingProxyType(
    {
        "memory": ("memory of a training step (MB)", lambda costs: costs.memory.total / MEGA if costs.memory else None),
        "cpu_time": ("CPU time of a job (s)", lambda costs: costs.cpu_seconds),
        "time": ("time of a job (s)", lambda costs: costs.seconds),
        "prediction": ("prediction (ms per image)", _prediction_milliseconds),
        "model": ("stored model (MB)", lambda costs: costs.delta_bytes / MEGA),
    }
)


def seeds(block: Block, names: Sequence[str]) -> Rows:
    """Return macro F1 of every method and seed."""
    return [
        {
            "method": row.name,
            "seed": record.seed,
            "score": _percent(summary.test_score(record, record.rule, "macro_f1")),
        }
        for row, found in _on(block, names)
        for record in found.records
    ]


def curves(block: Block, names: Sequence[str]) -> Rows:
    """Return validation macro F1 and training loss at each evaluation, averaged over the seeds that have it."""
    found: Rows = []
    for row, replicates in _on(block, names):
        steps: dict[float, list[dict[str, float]]] = defaultdict(list)
        for result in replicates.done:
            for point in result.curve():
                steps[point.get("step", 0)].append(point)
        if len(steps) > 1:
            found += [{"method": row.name, "step": step, **_point(points)} for step, points in sorted(steps.items())]
    return found


def _point(points: Sequence[Mapping[str, float]]) -> dict[str, float | None]:
    validation = [point["val_macro_f1"] for point in points if "val_macro_f1" in point]
    losses = [point["train_loss"] for point in points if "train_loss" in point]
    return {
        "validation": _percent(_mean(validation)) if validation else None,
        "loss": round(_mean(losses), 4) if losses else None,
    }


def reliability(block: Block, names: Sequence[str]) -> Rows:
    """Return the accuracy of predictions over their confidence in ten bins, all seeds together."""
    found: Rows = []
    for row, replicates in _on(block, names):
        confidence, right = map(np.concatenate, zip(*(_confidences(*run) for run in _runs(replicates)), strict=True))
        place = np.clip(np.ceil(confidence * BINS).astype(int) - 1, 0, BINS - 1)
        found += [
            {
                "method": row.name,
                "confidence": _percent(confidence[place == number].mean()),
                "accuracy": _percent(right[place == number].mean()),
                "images": int((place == number).sum()),
            }
            for number in range(BINS)
            if (place == number).any()
        ]
    return found


def _confidences(logits: Logits, labels: Labels) -> tuple[statistics_of.Values, statistics_of.Values]:
    """Return the confidence of each prediction and whether it is right; one per image, or per image and label."""
    from scipy.special import expit, softmax  # noqa: PLC0415 - a listing loads every report

    wide = logits.astype(np.float64)
    if labels.ndim == 1:
        return softmax(wide, axis=1).max(1), (logits.argmax(1) == labels).astype(np.float64)
    present = expit(wide).ravel()
    return np.maximum(present, 1 - present), ((logits > 0) == labels).ravel().astype(np.float64)


def confusion(block: Block, names: Sequence[str]) -> Rows:
    """Return, for every method, how many images of each class were predicted as which; not for multi-label data."""
    classes = _classes(block, names)
    found: Rows = []
    for row, replicates in _on(block, names):
        runs = _runs(replicates)
        if any(labels.ndim != 1 for _, labels in runs):
            return []
        table = sum(statistics_of.confusion(*run)[0] for run in runs)
        for true, counts in zip(classes, np.asarray(table), strict=True):
            total = counts.sum()
            found += [
                {
                    "method": row.name,
                    "true": true,
                    "predicted": predicted,
                    "images": round(float(count) / len(runs), 1),
                    "share": _percent(count / total) if total else None,
                }
                for predicted, count in zip(classes, counts, strict=True)
            ]
    return found


def recalls(block: Block, names: Sequence[str]) -> Rows:
    """Return the recall of each class, averaged over seeds; for multi-label data, of each label."""
    classes = _classes(block, names)
    found: Rows = []
    for row, replicates in _on(block, names):
        per_run = []
        for logits, labels in _runs(replicates):
            values = statistics_of.recalls(statistics_of.confusion(logits, labels))[0]
            per_run.append(values if labels.ndim == 1 else values[:, 1])
        for name, value in zip(classes, np.mean(per_run, 0), strict=True):
            found.append({"method": row.name, "class": name, "recall": _percent(value)})
    return found


def searches(block: Block, names: Sequence[str]) -> Rows:
    """Return the validation score of every trial at its optimizer and learning rate."""
    found: Rows = []
    for row, replicates in _on(block, names):
        tunings = {tuple(record.tuning.trials): record for record in replicates.records if record.tuning}
        for number, record in enumerate(tunings.values(), 1):
            if record.tuning:
                found += [{"method": row.name, "search": number, **trial} for trial in _trials(record.tuning, record)]
    return found


def _trials(tuning: Tuning, record: Record) -> Iterator[dict[str, Any]]:
    for point in tuning.points:
        if point.score is not None:
            yield {
                "optimizer": point.optimizer or str(record.recipe.get("optimiser", "")),
                "lr": point.lr,
                "fields": ", ".join(f"{name}={value}" for name, value in point.setting.items()),
                "score": _percent(point.score),
                "chosen": point == tuning.best,
            }


# --- shared ----------------------------------------------------------------------------------------------------------


def _on(block: Block, names: Sequence[str]) -> Iterator[tuple[MethodRow, Replicates]]:
    """Yield the compared rows with predictions on one data set; none for several data sets, which share no images."""
    if len(names) != 1:
        return
    for row in block.rows:
        found = row.replicates.get(names[0])
        if row.label not in BOUNDS and found is not None and found.done and found.have_predictions:
            yield row, found


def _runs(found: Replicates) -> list[tuple[Logits, Labels]]:
    return [(logits, labels) for logits, labels, _ in found.runs.values()]


def _classes(block: Block, names: Sequence[str]) -> list[str]:
    """Return the names of the classes, numbered where two would be the same."""
    given = [str(name) for name in block.records[names[0]].data.card.get("classes", ())]
    return given if len(set(given)) == len(given) else [f"{i} {name}" for i, name in enumerate(given)]


def _mean(values: Any) -> float:  # noqa: ANN401 - any iterable of numbers
    found = list(values)
    return statistics.fmean(found) if found else math.nan


def _percent(value: float) -> float | None:
    return None if math.isnan(value) else round(100 * float(value), 2)


def _negative(value: float | None) -> float | None:
    return None if value is None else -value
