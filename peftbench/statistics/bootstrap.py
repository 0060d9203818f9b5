"""Bootstrap intervals of scores, from stored logits.

The interval is the percentile bootstrap of `scipy.stats.bootstrap` over groups (patients, lesions): images of one group
are not independent, so whole groups are resampled. Every statistic here is a function of the confusion matrix, and the
matrix of a resample is the sum of its groups' matrices, so all resamples are one matrix product of a millisecond.

The interval covers the choice of test groups. It does not cover the choice of training images, nor, beyond averaging,
the choice of seeds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from peftbench.core.contract import Labels, Logits
from peftbench.errors import DataError
from peftbench.statistics.scores import Values, confusions, of_resamples, statistic

Predictions: TypeAlias = tuple[Logits, Labels, Sequence[int]]  # logits (n, classes), labels, group numbers (n,)

LEVEL = 0.95
RESAMPLES = 2000
SEED = 0  # fixed, so that a report can be reproduced
_DRAWS_AT_ONCE = 4_000_000  # bounds the memory of resampling large test sets


@dataclass(frozen=True)
class Interval:
    """Confidence interval of a score at `level`; nan with fewer than two groups."""

    low: float
    high: float
    level: float
    clusters: int  # number of resampled groups


UNKNOWN = Interval(np.nan, np.nan, LEVEL, 0)


@dataclass(frozen=True, eq=False)
class Estimate:
    """A score and its bootstrap distribution, from which averages of scores get their intervals."""

    value: float
    draws: Values  # (RESAMPLES,), or empty with fewer than two groups
    clusters: int

    @property
    def interval(self) -> Interval:
        """Return the interval that holds the central 95% of the draws."""
        if not self.draws.size:
            return Interval(np.nan, np.nan, LEVEL, self.clusters)
        low, high = np.quantile(self.draws, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
        return Interval(float(low), float(high), LEVEL, self.clusters)


def estimate(runs: Sequence[Predictions], metric: str = "macro_f1") -> Estimate:
    """Return the mean score of several seeds of one method on one data set.

    Runs on the same test set are resampled together, so that seeds do not count as more patients. Runs on different
    test sets, which may share patients, are resampled one by one and combined by `overlapping`. Raises RequestError for
    a metric without intervals.
    """
    if not _same_test_set(runs):
        return overlapping([estimate([run], metric) for run in runs])
    tables = np.stack([confusions(*run) for run in runs], 1)  # (groups, runs, ...)
    return _resampled(tables, metric, runs[0][1], lambda scores: scores.mean(-1))


def difference(first: Sequence[Predictions], second: Sequence[Predictions], metric: str = "macro_f1") -> Estimate:
    """Return the mean score of the first runs minus that of the second, all resampled together.

    Raises DataError unless all runs have the same test set.
    """
    return _together(first, second, metric, np.subtract)


def ratio(first: Sequence[Predictions], second: Sequence[Predictions], metric: str = "macro_f1") -> Estimate:
    """Return the mean score of the first runs divided by that of the second, all resampled together.

    Draws in which the second score is 0 are left out: others take their place. Raises DataError unless all runs have
    the same test set.
    """
    found = _together(first, second, metric, _quotient)
    defined = found.draws[~np.isnan(found.draws)]
    return Estimate(found.value, np.resize(defined, found.draws.shape) if defined.size else defined, found.clusters)


def _quotient(above: Values, below: Values) -> Values:
    found: Values = np.divide(above, below, out=np.full(np.shape(below), np.nan), where=below > 0)
    return found


def _together(
    first: Sequence[Predictions],
    second: Sequence[Predictions],
    metric: str,
    combine: Callable[[Values, Values], Values],
) -> Estimate:
    runs, cut = [*first, *second], len(first)
    if not _same_test_set(runs):
        raise DataError("Runs on different test images cannot be resampled together; choose runs on the same test set.")
    tables = np.stack([confusions(*run) for run in runs], 1)
    return _resampled(
        tables,
        metric,
        runs[0][1],
        lambda scores: combine(np.asarray(scores[..., :cut].mean(-1)), np.asarray(scores[..., cut:].mean(-1))),
    )


def overlapping(estimates: Sequence[Estimate]) -> Estimate:
    """Return the mean of scores on test sets that may share patients, as when each seed splits the data differently.

    The overlap is unknown, so sorted draws are averaged, as if the test sets were the same: the interval is as wide as
    that of one test set, which is conservative.
    """
    value, clusters = float(np.mean([one.value for one in estimates])), max(one.clusters for one in estimates)
    if not all(one.draws.size for one in estimates):
        return Estimate(value, np.empty(0), clusters)
    return Estimate(value, np.mean([np.sort(one.draws) for one in estimates], 0), clusters)


def average(estimates: Sequence[Estimate]) -> Estimate:
    """Return the mean of scores on different data sets, whose draws are independent."""
    value = float(np.mean([one.value for one in estimates]))
    clusters = sum(one.clusters for one in estimates)
    if not all(one.draws.size for one in estimates):
        return Estimate(value, np.empty(0), clusters)
    # All draws come from one seed: unshuffled, test sets of equal size would get the same resamples.
    rng = np.random.default_rng(SEED)
    return Estimate(value, np.mean([rng.permutation(one.draws) for one in estimates], 0), clusters)


def _same_test_set(runs: Sequence[Predictions]) -> bool:
    _, labels, groups = runs[0]
    return all(np.array_equal(run[1], labels) and np.array_equal(run[2], groups) for run in runs)


def _resampled(tables: Values, metric: str, labels: Labels, together: Callable[[Values], Values]) -> Estimate:
    """Return the estimate of a function `together` of the scores (..., runs), from tables (groups, runs, ...)."""
    whole = tables.sum(0)
    of_resample = of_resamples(metric, labels, whole)
    value = np.asarray(together(statistic(metric, labels)(whole))).item()
    return Estimate(value, _draws(tables, lambda drawn: np.asarray(together(of_resample(drawn)))), len(tables))


def _draws(tables: Values, statistic: Callable[[Values], Values]) -> Values:
    """Return the bootstrap distribution (RESAMPLES,) of a statistic over groups; tables are (groups, runs, ...).

    These are the draws of `scipy.stats.bootstrap` with the same seed. As that seed is fixed, test sets of equal size
    share their resamples, which are drawn once; the matrices of all resamples are then one product.
    """
    groups = len(tables)
    if groups < 2:  # noqa: PLR2004
        return np.empty(0)
    flat = tables.reshape(groups, -1).astype(np.float32)  # sums of whole numbers are exact up to 2^24
    found = [
        np.asarray(statistic((counts @ flat).astype(np.float64).reshape(-1, *tables.shape[1:])), np.float64)
        for counts in (_known_resamples(groups) if RESAMPLES * groups <= _DRAWS_AT_ONCE else _resamples(groups))
    ]
    return np.concatenate(found)


def _resamples(groups: int) -> Iterator[NDArray[np.float32]]:
    """Yield how often each group is drawn (resamples, groups), in pieces of bounded memory."""
    rng, at_once = np.random.default_rng(SEED), max(1, _DRAWS_AT_ONCE // groups)
    for start in range(0, RESAMPLES, at_once):
        drawn = rng.integers(0, groups, (min(at_once, RESAMPLES - start), groups))
        rows = np.arange(len(drawn))[:, None] * groups
        yield np.bincount((drawn + rows).ravel(), minlength=drawn.size).reshape(drawn.shape).astype(np.float32)


@lru_cache(maxsize=4)
def _known_resamples(groups: int) -> tuple[NDArray[np.float32], ...]:
    return tuple(_resamples(groups))
