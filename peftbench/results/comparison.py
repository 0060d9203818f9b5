"""Which differences between methods are real: every pair on each data set, verdicts and tiers.

Only finished jobs are compared, seed by seed, on the same test images. P-values are adjusted by Holm over all pairs
of one data set, and the tiers follow from the adjusted ones: verdict, tier and mark in a table never contradict each
other. The majority class and the linear probe on random weights bound the scale and are not compared, unless named.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import combinations
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from peftbench.core.constants import RANDOM_WEIGHTS
from peftbench.core.contract import Result, lower_is_better, oriented
from peftbench.core.registry import registry
from peftbench.errors import RequestError
from peftbench.results import summary
from peftbench.results.summary import Block, MethodRow, Replicates
from peftbench.statistics import paired
from peftbench.statistics.paired import Comparison, Jackknife, Score
from peftbench.statistics.ranks import Ranks, ranks
from peftbench.statistics.scores import STATISTICS
from peftbench.statistics.tiers import ALPHA, holm, tiers, verdict

if TYPE_CHECKING:
    import pandas  # noqa: ICN001 - by its full name the run-time type checks of the tests find it

METRIC = "macro_f1"
LISTED = 20  # pairs; more are only counted
BOUNDS = ("majority", f"linear{RANDOM_WEIGHTS}")  # labels of rows that are compared only when they are named


@dataclass(frozen=True)
class Pair:
    """One method against another on one data set, or averaged over several."""

    method: str
    other: str
    found: Comparison
    p: float  # adjusted by Holm
    verdict: str  # of `method`: better, worse, no difference shown, or unknown


@dataclass(frozen=True, eq=False)
class Compared:
    """All pairs of one group of data sets by one metric."""

    block: Block
    datasets: tuple[str, ...]
    metric: str = METRIC
    against: str = ""  # a method that all others are compared with; "": every pair

    @cached_property
    def rows(self) -> tuple[MethodRow, ...]:
        """Rows that can be compared: finished and with predictions on every data set."""
        return tuple(row for row in self.block.rows if self._is_whole(row) and self._is_compared(row))

    @cached_property
    def pairs(self) -> tuple[Pair, ...]:
        """Every pair, or every method against the one that was named."""
        return self.test(self._matches())

    def test(self, matches: Iterable[tuple[MethodRow, MethodRow]]) -> tuple[Pair, ...]:
        """Compare some pairs of `rows`, adjusted for their number; pairs that share no seed are left out."""
        found = [(one, other, self._compare(one, other)) for one, other in matches]
        adjusted = holm([made.p if made else math.nan for *_, made in found])
        sign = -1 if lower_is_better(self.metric) else 1
        return tuple(
            Pair(one.name, other.name, made, p, verdict(sign * made.difference, p))
            for (one, other, made), p in zip(found, adjusted, strict=True)
            if made
        )

    @cached_property
    def tiers(self) -> dict[str, int]:
        """Tier of each method, from 1: nothing is shown to be better than a method of the first."""
        names = [row.name for row in self._by_score()]
        worse = {(p.method, p.other) for p in self.pairs if p.verdict == "worse"}
        worse |= {(p.other, p.method) for p in self.pairs if p.verdict == "better"}
        return {name: number for number, tier in enumerate(tiers(names, worse), 1) for name in tier}

    @property
    def missing(self) -> tuple[str, ...]:
        """Methods that are left out because a data set, a prediction or a finished job is missing."""
        return tuple(row.name for row in self.block.rows if self._is_compared(row) and not self._is_whole(row))

    @cached_property
    def detectable(self) -> float:
        """Median over the pairs of the smallest difference that they could find with 80% power; nan without pairs."""
        found = [pair.found.detectable for pair in self.pairs if pair.found.detectable > 0]
        return float(np.median(found)) if found else math.nan

    def remarks(self) -> list[str]:
        """Return what the comparison could find and what it does not cover, in sentences."""
        missing = ", ".join(self.missing)
        found = [
            f"A difference of {100 * self.detectable:.1f} points would be found with 80% power."
            if not math.isnan(self.detectable)
            else "",
            "With one seed, the variance between seeds is not covered." if self.seeds == 1 else "",
            f"Left out, because jobs or predictions are missing: {missing}." if missing else "",
        ]
        return [sentence for sentence in found if sentence]

    @property
    def seeds(self) -> int:
        """Seeds that every pair has in common."""
        return min((pair.found.seeds for pair in self.pairs), default=0)

    def _by_score(self) -> list[MethodRow]:
        sign = 1 if lower_is_better(self.metric) else -1
        return sorted(self.rows, key=lambda row: sign * row.mean(self.metric, self.datasets))

    def _is_whole(self, row: MethodRow) -> bool:
        found = [row.replicates.get(name) for name in self.datasets]
        return all(one is not None and one.done and one.have_predictions for one in found)

    def _is_compared(self, row: MethodRow) -> bool:
        return row.label not in BOUNDS or self.against in (row.label, row.name)

    def _matches(self) -> list[tuple[MethodRow, MethodRow]]:
        if not self.against:
            return list(combinations(self._by_score(), 2))
        rivals = [row for row in self.rows if self.against in (row.label, row.name)]
        return [(row, rival) for rival in rivals[:1] for row in self._by_score() if row is not rival]

    def _compare(self, one: MethodRow, other: MethodRow) -> Comparison | None:
        """Compare on the seeds that both have; None where they share none, or not their test images."""
        found = []
        for name in self.datasets:
            first, second = self._scored[one.name, name], self._scored[other.name, name]
            seeds = sorted(first.keys() & second.keys())
            if not seeds or not all(first[seed].same_test(second[seed]) for seed in seeds):
                return None
            found.append(paired.compare([first[seed] for seed in seeds], [second[seed] for seed in seeds]))
        return found[0] if len(found) == 1 else paired.average(found)

    @cached_property
    def _scored(self) -> dict[tuple[str, str], dict[int, Jackknife]]:
        """Runs of each row and data set by seed."""
        return {
            (row.name, name): _jackknives(row.replicates[name], self.metric)
            for row in self.rows
            for name in self.datasets
        }


@lru_cache(maxsize=4096)
def _jackknives(found: Replicates, metric: str) -> dict[int, Jackknife]:
    """Return the runs of replicates by seed, each scored once for all pairs on its data set and for all averages."""
    plugin = None if metric in (*STATISTICS, "auc") else registry("metrics").get(metric)
    score = cast("Score", oriented(plugin, found.positive)) if plugin else None
    with registry("metrics").calling(metric):
        return found.jackknives(metric, score)


def compared(block: Block, datasets: Sequence[str], metric: str = METRIC, against: str = "") -> Compared:
    """Return the comparison of a group of data sets, computed once for all tables and formats of a report."""
    return _compared(block, tuple(datasets), metric, against)


@lru_cache(maxsize=64)
def _compared(block: Block, datasets: tuple[str, ...], metric: str, against: str) -> Compared:
    return Compared(block, datasets, metric, against)


def rank(found: Compared) -> Ranks | None:
    """Rank the methods of a group over its data sets; None for fewer than two data sets or methods."""
    if len(found.datasets) < 2 or len(found.rows) < 2:  # noqa: PLR2004 - nothing to rank over, or nothing to rank
        return None
    sign = -1 if lower_is_better(found.metric) else 1
    scores = [[sign * row.replicates[name].mean(found.metric) for row in found.rows] for name in found.datasets]
    return None if np.isnan(scores).any() else ranks([row.name for row in found.rows], np.asarray(scores))


def rank_remarks(found: Ranks) -> list[str]:
    """Return what average ranks show, and how little so few data sets can show, in sentences."""
    apart = [f"{one} and {other} (p {p:.3f})" for one, other, p in found.wilcoxon if p < ALPHA]
    friedman = (
        f"Friedman's test over {found.datasets} data sets: p {found.friedman:.3f}; average ranks that differ by less "
        f"than {found.critical:.2f} are not shown to differ (Nemenyi)."
    )
    which = ", ".join(apart) if len(apart) <= LISTED else f"{len(apart)} of {len(found.wilcoxon)} pairs differ"
    signed = (
        f"Signed-rank test, adjusted by Holm: {which or 'no pair differs'}; with {found.datasets} data sets "
        f"its p-value cannot be below {found.least_p:.3g}."
    )
    return [signed] if math.isnan(found.friedman) else [friedman, signed]


def compare(results: Iterable[Result], metric: str = METRIC, against: str = "") -> list[Compared]:
    """Compare all methods on each data set and, where there are several, averaged over those that belong together.

    Raises RequestError for a metric that no method has or that is no single number, and for an unknown method.
    """
    blocks = summary.summarize(results)
    refuse_metric(metric, blocks)
    known = {name for block in blocks for row in block.rows for name in (row.label, row.name)}
    if against and against not in known:
        raise RequestError(f"--against {against}: no such method in this store; it has {', '.join(sorted(known))}.")
    return [
        compared(block, names, metric, against)
        for block in blocks
        for names in [*((name,) for name in block.datasets), *block.averages().values()]
    ]


def frame(compared: Sequence[Compared]) -> pandas.DataFrame:
    """Return one row per pair at full precision, in units of the metric."""
    import pandas as pd  # noqa: PLC0415 - `peftbench list` answers without it

    return pd.DataFrame([_row(group, pair) for group in compared for pair in group.pairs])


def _row(group: Compared, pair: Pair) -> dict[str, Any]:
    found = pair.found
    low, high = found.interval
    return {
        "backbone": group.block.setting.backbone,
        "image_size": group.block.setting.size,
        "recipe": group.block.setting.recipe,
        "dataset": ", ".join(group.datasets),
        "metric": group.metric,
        "method": pair.method,
        "other": pair.other,
        "difference": found.difference,
        "low": low,
        "high": high,
        "p": found.p,
        "p_holm": pair.p,
        "verdict": pair.verdict,
        "detectable": found.detectable,
        "groups": found.groups,
        "seeds": found.seeds,
    }


def refuse_metric(metric: str, blocks: Sequence[Block]) -> None:
    """Raise RequestError for a metric that no job has or that is no single number."""
    scored = {name for block in blocks for r in block.results for c in r.record.choices.values() for name in c.test}
    single = sorted(scored & set(registry("metrics").names()))
    if blocks and metric not in single:
        raise RequestError(f"--metric {metric}: cannot be compared; choose one of {', '.join(single)}.")
