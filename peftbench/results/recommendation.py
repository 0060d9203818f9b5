"""Which method to use within limits of cost: the first tier, its costs, and how many seeds or groups would separate it.

Only methods within the limits are compared, on the average over the data sets that belong together. Of the methods
that no other one is shown to be better than, the one with the best score is recommended: within the limits, a lower
cost does not count.
"""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from peftbench.core import catalogue, catalogue_files
from peftbench.core.contract import Result, lower_is_better
from peftbench.results import advice, summary
from peftbench.results.comparison import BOUNDS, METRIC, Compared, compared, refuse_metric
from peftbench.results.formatting import format_points
from peftbench.results.limits import Limits, Spent, plain_latency
from peftbench.results.store import no_finished_job
from peftbench.results.summary import Block, MethodRow

IMAGES = "new_images/"  # in commands: what the user replaces


@dataclass(frozen=True)
class Candidate:
    """One method: its place, its costs, and how far it is from the recommended one, in units of the metric."""

    method: str
    score: float
    tier: int | None  # among the methods within the limits; None: not compared
    excluded: str  # why it is not compared; empty for compared methods
    spent: Spent | None  # None if no job finished
    gap: tuple[float, float, float] | None = None  # recommended minus this, with its 95% limits
    p: float = math.nan  # of the gap, adjusted by Holm
    notes: tuple[str, ...] = ()
    is_bound: bool = False  # the majority class and the like bound the scale and are never compared


@dataclass(frozen=True)
class Recommendation:
    """What a store shows about one group of data sets under one setting."""

    network: str
    recipe: str
    datasets: tuple[str, ...]
    metric: str
    synthetic: bool
    seeds: int  # that all compared methods share; 0 where nothing is compared
    methods: tuple[Candidate, ...]  # by tier, then by score; those that are not compared last
    remarks: tuple[str, ...]  # how sure it is, what is missing, what would decide
    commands: tuple[str, ...]  # that use the recommended jobs

    @property
    def not_beaten(self) -> tuple[str, ...]:
        """Methods that no other one is shown to be better than, the recommended one first."""
        return tuple(one.method for one in self.methods if one.tier == 1)

    @property
    def sentence(self) -> str:
        """The recommendation in one sentence."""
        first, *others = self.datasets
        where = f"average of {advice.words(self.datasets)}" if others else first
        where += ", one seed" if self.seeds == 1 else ""
        if self.synthetic:
            return f"Synthetic data ({where}), no recommendation for real images: {self._answer()}"
        return f"Recommendation ({where}): {self._answer()}"

    def _answer(self) -> str:
        first = [one for one in self.methods if one.tier == 1]
        if not first:
            missing = all(one.spent is None for one in self.methods if not one.is_bound)
            return "no method can be compared." if missing else "no method is within the limits."
        best, *ties = first
        extreme = "lowest" if lower_is_better(self.metric) else "highest"
        title = self.metric.replace("_", " ").replace("f1", "F1")
        start = f"{best.method} has the {extreme} {title} ({format_points(best.score)})"
        if ties:
            return f"{start}; {advice.words([one.method for one in ties])} {advice.verb(ties)} not shown to be worse."
        others = sum(one.tier is not None for one in self.methods) - 1
        return f"{start}{' and is shown to be better than every other method' if others else ''}."

    def as_dict(self) -> dict[str, Any]:
        """Return everything as plain values, None for what is not known."""
        return {"sentence": self.sentence, "not_beaten": list(self.not_beaten), **_known(asdict(self))}


def recommend(
    results: Iterable[Result], store: Path, limits: Limits | None = None, metric: str = METRIC
) -> list[Recommendation]:
    """Recommend a method for each setting and each group of data sets that are averaged, or single data set.

    Raises RequestError for a metric that cannot be compared, and where no job has ended.
    """
    blocks = summary.summarize(results)
    if not blocks:
        raise no_finished_job(store)
    refuse_metric(metric, blocks)
    return [
        _recommendation(block, names, store, limits or Limits(), metric) for block in blocks for names in scopes(block)
    ]


def scopes(block: Block) -> list[tuple[str, ...]]:
    """Return the data sets that are averaged, and each that is in no average."""
    averages = list(block.averages().values())
    averaged = {name for names in averages for name in names}
    return [*averages, *((name,) for name in block.datasets if name not in averaged)]


def sentences(results: Iterable[Result], store: Path) -> list[str]:
    """Return the recommendations without limits in a sentence each, where two trained methods can be compared."""
    return [
        _recommendation(block, names, store, Limits(), METRIC).sentence
        for block in summary.summarize(results)
        for names in scopes(block)
        if sum(not row.baseline for row in compared(block, names).rows) > 1
    ]


def _recommendation(block: Block, names: tuple[str, ...], store: Path, limits: Limits, metric: str) -> Recommendation:
    plain = plain_latency(block)
    costs = {row.name: Spent.of(_records(row, names), plain) for row in block.rows}
    outside = {name: limits.exceeded(spent) for name, spent in costs.items() if spent}
    within = tuple(row for row in block.rows if not outside.get(row.name))
    found = compared(block if len(within) == len(block.rows) else replace(block, rows=within), names, metric)
    rows = {row.name: row for row in found.rows}
    chosen = next((rows[name] for name, tier in found.tiers.items() if tier == 1), None)
    commands = tuple(_commands(chosen, names, store, metric)) if chosen else ()
    remarks = advice.remarks(found, block)
    if chosen and not commands:
        remarks.append(f"No trained model of {chosen.name} is stored, so there is no command that uses one.")
    return Recommendation(
        block.setting.network,
        block.setting.recipe,
        names,
        metric,
        all(map(block.synthetic, names)),
        found.seeds,
        _candidates(block, found, costs, outside),
        tuple(remarks),
        commands,
    )


def _records(row: MethodRow, names: tuple[str, ...]) -> list[Any]:
    return [record for name in names if name in row.replicates for record in row.replicates[name].records]


def _candidates(
    block: Block, found: Compared, costs: Mapping[str, Spent | None], outside: Mapping[str, str]
) -> tuple[Candidate, ...]:
    """Return the compared methods by tier, then by score, and the others with the reason."""
    rows, tiers = {row.name: row for row in block.rows}, found.tiers
    best = next((name for name, tier in tiers.items() if tier == 1), "")
    order = [*sorted(tiers, key=lambda name: tiers[name]), *(name for name in rows if name not in tiers)]
    return tuple(
        Candidate(
            name,
            rows[name].mean(found.metric, found.datasets),
            tiers.get(name),
            "" if name in tiers or rows[name].label in BOUNDS else outside.get(name) or "lacks jobs or predictions",
            costs[name],
            *_gap(found, best, name),
            notes=_notes(rows[name], found.datasets),
            is_bound=rows[name].label in BOUNDS,
        )
        for name in order
    )


def _gap(found: Compared, best: str, name: str) -> tuple[tuple[float, float, float] | None, float]:
    pair = advice.pair_of(found, best, name) if best != name else None
    if pair is None:
        return None, math.nan
    low, high = pair.found.interval
    values = pair.found.difference, low, high
    return (values if pair.method == best else (-values[0], -high, -low)), pair.p


def _notes(row: MethodRow, names: tuple[str, ...]) -> tuple[str, ...]:
    found = (note for name in names if name in row.replicates for note in row.replicates[name].notes)
    return tuple(dict.fromkeys(found))


def _known(value: Any) -> Any:  # noqa: ANN401 - any plain value
    """Return a plain value with None in place of nan, which JSON does not have."""
    if isinstance(value, dict):
        return {key: _known(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_known(inner) for inner in value]
    return None if isinstance(value, float) and math.isnan(value) else value


# --- commands --------------------------------------------------------------------------------------------------------


def _commands(row: MethodRow, names: tuple[str, ...], store: Path, metric: str) -> Iterator[str]:
    """Yield the commands that predict and merge with the job of each data set that was best on validation."""
    sign = -1 if lower_is_better(metric) else 1
    place = advice.store_option(store)
    for name in names:
        jobs = [job for job in row.replicates[name].done if "delta.json" in job.record.files]
        if not jobs:
            continue
        best = max(jobs, key=lambda job: (_on_validation(job, metric, sign), -job.record.seed)).record
        stem = re.sub(r"\W+", "_", f"{best.method.label}_{name}").strip("_")
        yield shlex.join(["peftbench", "predict", best.id, IMAGES, *place, "-o", f"{stem}.csv"])
        if _merges(best.method.name):
            yield shlex.join(["peftbench", "merge", best.id, *place, "-o", f"{stem}.safetensors"])


def _on_validation(job: Result, metric: str, sign: int) -> float:
    """Return the validation score, larger for better; where there is none, all jobs have the same."""
    choice = job.record.choices.get(job.record.rule)
    value = choice.val.get(metric) if choice else None
    return -math.inf if value is None else sign * value


def _merges(method: str) -> bool:
    """Return whether a built-in method merges; a plug-in's method is not loaded for it."""
    return method in catalogue_files.method_names() and catalogue.method_entry(method).merges
