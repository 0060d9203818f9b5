"""Scores with their uncertainty, from stored logits alone.

The interval is the percentile bootstrap of `scipy.stats.bootstrap` over groups (patients, lesions): images of one group
are not independent, so a group is drawn whole or not at all. Every statistic here is a function of the confusion
matrix, and a resample's matrix is the sum of its groups' matrices; nothing tells groups with equal matrices apart, so
it is enough to count how often each kind of group was drawn. Thousands of resamples take some ten milliseconds.

What the interval covers: which groups happened to be in the test set. What it does not: which images were trained on,
and, beyond averaging over them, which seeds were drawn.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from peftbench.core.contract import Labels, Logits
from peftbench.errors import DataError
from peftbench.statistics.scores import Values, confusions, of_resamples, statistic

Run: TypeAlias = tuple[Logits, Labels, Sequence[int]]  # logits (n, classes), labels, group numbers (n,)

LEVEL = 0.95
RESAMPLES = 2000
SEED = 0  # fixed: a report written twice is the same report
_DRAWS_AT_ONCE = 4_000_000  # bounds the memory of a resample of large test sets


@dataclass(frozen=True)
class Interval:
    """Where the score lies at confidence `level`; nan where it cannot be said (fewer than two groups)."""

    low: float
    high: float
    level: float
    clusters: int  # groups that were resampled


UNKNOWN = Interval(np.nan, np.nan, LEVEL, 0)


@dataclass(frozen=True, eq=False)
class Estimate:
    """A score and its bootstrap distribution, so that averages of scores have intervals too."""

    value: float
    draws: Values  # (RESAMPLES,), or empty where it cannot be resampled
    clusters: int

    @property
    def interval(self) -> Interval:
        """The central 95% of the draws."""
        if not self.draws.size:
            return Interval(np.nan, np.nan, LEVEL, self.clusters)
        low, high = np.quantile(self.draws, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
        return Interval(float(low), float(high), LEVEL, self.clusters)


def interval(logits: Logits, labels: Labels, groups: Sequence[int], metric: str = "macro_f1") -> Interval:
    """95% bootstrap interval of one run's score over its groups. Raises RequestError for a metric without one."""
    return estimate([(logits, labels, groups)], metric).interval


def estimate(runs: Sequence[Run], metric: str = "macro_f1") -> Estimate:
    """The mean score of several seeds' runs of one method on one data set.

    Runs on the same test set are resampled together, so that seeds do not pass for more patients; those on test sets of
    their own, which may share patients, one by one, and then as `overlapping` says.
    """
    if not _same_test_set(runs):
        return overlapping([estimate([run], metric) for run in runs])
    tables = np.stack([confusions(*run) for run in runs], 1)  # (groups, runs, ...)
    return _resampled(tables, metric, runs[0][1], lambda scores: scores.mean(-1))


def difference(first: Sequence[Run], second: Sequence[Run], metric: str = "macro_f1") -> Estimate:
    """The mean score of the first runs less that of the second, all resampled together.

    Raises DataError unless all are of one test set.
    """
    runs, cut = [*first, *second], len(first)
    if not _same_test_set(runs):
        raise DataError(
            "Scores on different test images cannot be compared image by image; choose runs of one test set."
        )
    tables = np.stack([confusions(*run) for run in runs], 1)
    return _resampled(
        tables, metric, runs[0][1], lambda scores: scores[..., :cut].mean(-1) - scores[..., cut:].mean(-1)
    )


def overlapping(estimates: Sequence[Estimate]) -> Estimate:
    """The mean of scores on test sets that may have patients in common, as those have that each seed draws anew.

    How many is not known, so that the draws are added as if the patients were the same, the worst with the worst: the
    interval is as wide as that of one test set, never narrower for there being several.
    """
    value, clusters = float(np.mean([one.value for one in estimates])), max(one.clusters for one in estimates)
    if not all(one.draws.size for one in estimates):
        return Estimate(value, np.empty(0), clusters)
    return Estimate(value, np.mean([np.sort(one.draws) for one in estimates], 0), clusters)


def average(estimates: Sequence[Estimate]) -> Estimate:
    """The mean of scores on different data sets, their draws independent of each other."""
    value = float(np.mean([one.value for one in estimates]))
    clusters = sum(one.clusters for one in estimates)
    if not all(one.draws.size for one in estimates):
        return Estimate(value, np.empty(0), clusters)
    # All draws come from one seed; without shuffling, test sets of one size would be resampled in step.
    rng = np.random.default_rng(SEED)
    return Estimate(value, np.mean([rng.permutation(one.draws) for one in estimates], 0), clusters)


def _same_test_set(runs: Sequence[Run]) -> bool:
    _, labels, groups = runs[0]
    return all(np.array_equal(run[1], labels) and np.array_equal(run[2], groups) for run in runs)


def _resampled(tables: Values, metric: str, labels: Labels, together: Callable[[Values], Values]) -> Estimate:
    """Of tables (groups, runs, ...): what `together` makes of the runs' scores (..., runs), and of its resamples."""
    whole = tables.sum(0)
    of_resample = of_resamples(metric, labels, whole)
    value = np.asarray(together(statistic(metric, labels)(whole))).item()
    return Estimate(value, _draws(tables, lambda drawn: np.asarray(together(of_resample(drawn)))), len(tables))


def _draws(tables: Values, statistic: Callable[[Values], Values]) -> Values:
    """Bootstrap distribution (RESAMPLES,) of the statistic over groups; tables are (groups, runs, ...)."""
    groups = len(tables)
    if groups < 2:  # noqa: PLR2004
        return np.empty(0)
    from scipy import stats  # noqa: PLC0415 - half a second that no other verb should wait for

    kinds, kind = np.unique(tables.reshape(groups, -1), axis=0, return_inverse=True)

    def of_resamples(drawn: NDArray[np.int64], axis: int = -1) -> Values:
        drawn = np.moveaxis(drawn, axis, -1)
        total = _tally(drawn.reshape(-1, groups), len(kinds)) @ kinds
        return statistic(total.reshape(*drawn.shape[:-1], *tables.shape[1:]))

    done = stats.bootstrap(
        (kind.reshape(-1),),
        of_resamples,
        n_resamples=RESAMPLES,
        batch=max(1, _DRAWS_AT_ONCE // groups),
        vectorized=True,
        confidence_level=LEVEL,
        method="percentile",
        rng=np.random.default_rng(SEED),
    )
    return np.asarray(done.bootstrap_distribution, np.float64)


def _tally(drawn: NDArray[np.int64], kinds: int) -> Values:
    """How often each kind was drawn (resamples, kinds); `drawn` is (resamples, groups)."""
    rows = np.arange(len(drawn))[:, None] * kinds
    return np.bincount((drawn + rows).ravel(), minlength=len(drawn) * kinds).reshape(-1, kinds).astype(np.float64)
