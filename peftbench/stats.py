"""Scores with their uncertainty, from stored logits alone.

The interval is the percentile bootstrap of `scipy.stats.bootstrap` over groups (patients, lesions): images of one group
are not independent, so a group is drawn whole or not at all. Every statistic here is a function of the confusion
matrix, and a resample's matrix is the sum of its groups' matrices; nothing tells groups with equal matrices apart, so
it is enough to count how often each kind of group was drawn. Thousands of resamples take some ten milliseconds.

What the interval covers: which groups happened to be in the test set. What it does not: which images were trained on,
and, beyond averaging over them, which seeds were drawn.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from peftbench.contract import Labels, Logits
from peftbench.errors import DataError, RequestError

Values: TypeAlias = NDArray[np.float64]
Run: TypeAlias = tuple[Logits, Labels, Sequence[int]]  # logits (n, classes), labels, group numbers (n,)

LEVEL = 0.95
RESAMPLES = 2000
SEED = 0  # fixed: a report written twice is the same report
_DRAWS_AT_ONCE = 4_000_000  # bounds the memory of a resample of large test sets


# --- statistics of confusion matrices ------------------------------------------------------------------------------


def confusions(logits: Logits, labels: Labels, groups: Sequence[int]) -> Values:
    """Each group's confusion matrix (groups, classes, classes), rows true, columns predicted.

    The prediction is the largest logit, the first of equal ones. Of multi-label images, labels (n, labels), each group
    has one matrix a label (groups, labels, 2, 2), and a label is predicted where its logit is above 0. Raises DataError
    for shapes or labels that do not fit.
    """
    if labels.ndim == 2:  # noqa: PLR2004 - one column a label
        return _label_tables(logits, labels, groups)
    if logits.ndim != 2 or logits.shape[0] != len(labels) or len(labels) != len(groups):  # noqa: PLR2004
        shapes = f"Logits {logits.shape}, labels {labels.shape} and {len(groups)} groups"
        raise DataError(f"{shapes} do not describe the same images; logits are (images, classes).")
    classes = logits.shape[1]
    if labels.size and not 0 <= labels.min() <= labels.max() < classes:
        raise DataError(f"Labels from {labels.min()} to {labels.max()} do not fit logits of {classes} classes.")
    if not labels.size:
        return np.zeros((0, classes, classes))
    names, group = np.unique(np.asarray(groups), return_inverse=True)
    cells = (group * classes + labels) * classes + logits.argmax(1)
    return np.bincount(cells, minlength=len(names) * classes**2).reshape(-1, classes, classes).astype(np.float64)


def _label_tables(logits: Logits, labels: Labels, groups: Sequence[int]) -> Values:
    if logits.shape != labels.shape or len(labels) != len(groups):
        shapes = f"Logits {logits.shape}, labels {labels.shape} and {len(groups)} groups"
        raise DataError(f"{shapes} do not describe the same images; multi-label logits are (images, labels).")
    if not np.isin(labels, (0, 1)).all():
        raise DataError(f"Multi-label labels are 0 or 1, not {labels.min()} to {labels.max()}.")
    names, group = np.unique(np.asarray(groups, np.int64), return_inverse=True)
    width = labels.shape[1]
    cells = ((group[:, None] * width + np.arange(width)) * 2 + labels) * 2 + (logits > 0)
    tables = np.bincount(cells.ravel(), minlength=len(names) * width * 4)
    return tables.reshape(-1, width, 2, 2).astype(np.float64)


def confusion(logits: Logits, labels: Labels) -> Values:
    """The confusion matrix of all images (1, classes, classes), rows true, columns predicted.

    Of multi-label images one a label (1, labels, 2, 2).
    """
    total: Values = confusions(logits, labels, [0] * len(labels)).sum(0, keepdims=True)
    return total


def recalls(tables: Values) -> Values:
    """Share of each class that is found (..., classes); nan for a class that does not occur."""
    return _ratio(_hits(tables), tables.sum(-1), np.nan)


def precisions(tables: Values) -> Values:
    """Share of each class's predictions that are right (..., classes); nan for a class that is never predicted."""
    return _ratio(_hits(tables), tables.sum(-2), np.nan)


def f1(tables: Values) -> Values:
    """F1 of each class (..., classes), 0 for one neither present nor predicted, as in scikit-learn. No images: nan."""
    found = _ratio(2 * _hits(tables), tables.sum(-1) + tables.sum(-2), 0.0)
    return np.where((tables.sum((-2, -1)) > 0)[..., None], found, np.nan)


def macro_f1(tables: Values) -> Values:
    """Mean F1 over all classes (...,), 0 for one neither present nor predicted, as in scikit-learn. No images: nan."""
    return np.asarray(f1(tables).mean(-1))


def weighted_f1(tables: Values) -> Values:
    """Mean F1 over classes (...,), each weighing as many images as it has. No images: nan."""
    present = tables.sum(-1)
    return _ratio(np.asarray((f1(tables) * present).sum(-1)), present.sum(-1), np.nan)


def accuracy(tables: Values) -> Values:
    """Share of images classified correctly (...,). No images: nan."""
    return _ratio(_hits(tables).sum(-1), tables.sum((-2, -1)), np.nan)


def balanced_accuracy(tables: Values) -> Values:
    """Mean recall over the classes that occur (...,), as in scikit-learn. No images: nan."""
    recall = recalls(tables)
    return _ratio(np.nansum(recall, -1), (~np.isnan(recall)).sum(-1).astype(np.float64), np.nan)


def _hits(tables: Values) -> Values:
    return np.asarray(np.diagonal(tables, axis1=-2, axis2=-1))


def _ratio(above: Values, below: Values, otherwise: float) -> Values:
    ratio: Values = np.divide(above, below, out=np.full(np.shape(below), otherwise), where=below > 0)
    return ratio


def _weighted_label_f1(tables: Values) -> Values:
    present = tables[..., 1, :].sum(-1)
    return _ratio(np.asarray((f1(tables)[..., 1] * present).sum(-1)), present.sum(-1), np.nan)


STATISTICS: Mapping[str, Callable[[Values], Values]] = MappingProxyType(  # of tables (..., classes, classes)
    {"macro_f1": macro_f1, "accuracy": accuracy, "balanced_accuracy": balanced_accuracy, "weighted_f1": weighted_f1}
)
LABEL_STATISTICS: Mapping[str, Callable[[Values], Values]] = MappingProxyType(  # multi-label: (..., labels, 2, 2)
    {
        "macro_f1": lambda tables: f1(tables)[..., 1].mean(-1),
        "weighted_f1": _weighted_label_f1,
        "accuracy": lambda tables: accuracy(tables).mean(-1),
        "balanced_accuracy": lambda tables: balanced_accuracy(tables).mean(-1),
    }
)


def score(metric: str, logits: Logits, labels: Labels) -> float:
    """A statistic of the confusion matrix: labels (n,), or multi-label (n, labels), each label counting alike."""
    return _statistic(metric, labels)(confusion(logits, labels)).item()


def _statistic(metric: str, labels: Labels) -> Callable[[Values], Values]:
    if metric not in STATISTICS:
        raise RequestError(f"There is no interval for {metric!r}; there is one for {', '.join(STATISTICS)}.")
    return (STATISTICS if labels.ndim == 1 else LABEL_STATISTICS)[metric]


# --- intervals -----------------------------------------------------------------------------------------------------


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
    """95% bootstrap interval of one run's score over its groups. `metric` is a key of STATISTICS, else RequestError."""
    return estimate([(logits, labels, groups)], metric).interval


def estimate(runs: Sequence[Run], metric: str = "macro_f1") -> Estimate:
    """The mean score of several seeds' runs of one method on one data set.

    Runs on the same test set are resampled together, so that seeds do not pass for more patients; runs on test sets of
    their own are resampled one by one.
    """
    if not _same_test_set(runs):
        return average([estimate([run], metric) for run in runs])
    tables = np.stack([confusions(*run) for run in runs], 1)  # (groups, runs, ...)
    of_run = _statistic(metric, runs[0][1])

    def statistic(tables: Values) -> Values:
        return np.asarray(of_run(tables).mean(-1))

    return Estimate(statistic(tables.sum(0, keepdims=True)).item(), _draws(tables, statistic), len(tables))


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
    of_run = _statistic(metric, runs[0][1])

    def statistic(tables: Values) -> Values:
        scores = of_run(tables)
        return np.asarray(scores[..., :cut].mean(-1) - scores[..., cut:].mean(-1))

    return Estimate(statistic(tables.sum(0, keepdims=True)).item(), _draws(tables, statistic), len(tables))


def average(estimates: Sequence[Estimate]) -> Estimate:
    """The mean of scores on different test sets, their draws taken as independent of each other."""
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
