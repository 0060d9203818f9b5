"""Paired comparison of two methods on the same test images, with groups and seeds as sources of variance.

Groups (patients) and seeds are crossed: every seed's model scores every group. That is the design of multi-reader
multi-case studies of diagnostic accuracy, with seeds in the place of readers, and it is analyzed as these are
(Dorfman, Berbaum and Metz, Investigative Radiology 1992; Obuchowski and Rockette, Communications in Statistics 1995;
Hillis, Statistics in Medicine 2007): jackknife pseudo-values of the difference in score, one per seed and group, and
their mean squares

    D = mean difference          Var(D) = (MS_groups + max(MS_seeds - MS_interaction, 0)) / (S G)

Two or three seeds estimate their variance badly. Where that estimate happens to be small, the usual degrees of freedom
(Satterthwaite) are too many: in simulated ties of three seeds up to 11% were then called differences. The degrees of
freedom are therefore taken at an upper confidence limit of the seeds' variance; `nox -s calibration` writes
the false-positive rates and coverages that result to `reports/statistics/calibration.md`.

With one seed only the groups' variance can be estimated; the result describes these two models, not the methods.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from peftbench.core.contract import Labels, Logits
from peftbench.errors import DataError
from peftbench.statistics.bootstrap import LEVEL, Predictions
from peftbench.statistics.scores import STATISTICS, Values, confusions, of_resamples, statistic

LIMIT = 0.75  # confidence of the upper limit of the seeds' variance that decides the degrees of freedom
POWER = 0.8
NORMAL = 1e15  # degrees of freedom of a t distribution that is normal to the last digit
Score = Callable[[Logits, Labels], float]


@dataclass(frozen=True)
class Components:
    """Variance of a difference in score: of one group, of one seed, and of one seed on one group.

    Seeds that each have their own test set have no interaction: it is part of the groups' variance.
    """

    groups: float
    seeds: float  # 0 with one seed, where it is not known
    interaction: float


@dataclass(frozen=True)
class Comparison:
    """The first method's score minus the second's, averaged over seeds."""

    difference: float
    error: float  # standard error; nan with fewer than two groups
    freedom: float  # degrees of freedom of the t distribution
    groups: int
    seeds: int
    components: Components | None = None  # of a comparison on one data set
    parts: tuple[Comparison, ...] = ()  # of an average: the comparisons on its data sets

    @property
    def p(self) -> float:
        """Two-sided p-value of no difference; nan where the error is unknown."""
        from scipy import special  # noqa: PLC0415 - not needed by most verbs; a call of scipy.stats takes .5 ms

        if self.error == 0:
            return 1.0 if self.difference == 0 else 0.0
        return float(2 * special.stdtr(min(self.freedom, NORMAL), -abs(self.difference) / self.error))

    @property
    def interval(self) -> tuple[float, float]:
        """Confidence limits at 95%; nan where the error is unknown."""
        half = self._quantile((1 + LEVEL) / 2) * self.error
        return self.difference - half, self.difference + half

    @property
    def detectable(self) -> float:
        """The smallest true difference that this test would find with 80% power at the 5% level."""
        return self.detectable_at(1 - LEVEL)

    def detectable_at(self, alpha: float) -> float:
        """Return the smallest true difference that this test would find with 80% power at a significance level."""
        return (self._quantile(1 - alpha / 2) + self._quantile(POWER)) * self.error

    def _quantile(self, level: float) -> float:
        from scipy import special  # noqa: PLC0415 - slow to import, and `peftbench list` does not need it

        return float(special.stdtrit(min(self.freedom, NORMAL), level))


@dataclass(frozen=True, eq=False)
class Jackknife:
    """One run's score, and each group's pseudo-value minus the mean of all of them."""

    value: float
    deviations: Values  # (groups,)
    labels: Labels
    members: Sequence[int]  # group of each image
    images: str = ""  # digest of their names; test sets of other images may have the same labels and groups

    @cached_property
    def test(self) -> tuple[str, bytes, bytes]:
        """Images, labels and groups, which identify a test set."""
        return self.images, self.labels.tobytes(), np.asarray(self.members, np.int64).tobytes()

    def same_test(self, other: Jackknife) -> bool:
        """Return whether both were scored on the same images."""
        return self.test == other.test


def jackknife(run: Predictions, metric: str, score: Score | None = None, images: str = "") -> Jackknife:
    """Score a run and leave out one group at a time; `images` identifies the test images.

    `score` computes a metric that is neither a function of the confusion matrix nor `auc`. Raises DataError without it.
    """
    logits, labels, groups = run
    if metric == "auc":
        return Jackknife(*_delong(logits, labels, groups), labels, groups, images)
    if metric in STATISTICS:
        tables = confusions(logits, labels, groups)
        whole = tables.sum(0, keepdims=True)
        value = statistic(metric, labels)(whole).item()
        left = of_resamples(metric, labels, whole[0])(whole - tables)
    elif score is None:
        raise DataError(f"Comparing by {metric!r} needs the function that computes it.")
    else:
        value, members = score(logits, labels), np.asarray(groups)
        left = np.asarray([score(logits[members != one], labels[members != one]) for one in np.unique(members)])
    deviations = np.asarray((len(left) - 1) * (np.mean(left) - left), np.float64)
    return Jackknife(value, deviations, labels, groups, images)


def compare(first: Sequence[Jackknife], second: Sequence[Jackknife]) -> Comparison:
    """Compare two methods by their runs, one per seed, the same seeds in the same order.

    Where every seed has a test set of its own, methods are paired within the seed, and the test sets, which may share
    patients, count as one. Raises DataError for runs that are not paired on the same test images.
    """
    if len(first) != len(second) or not all(one.same_test(other) for one, other in zip(first, second, strict=True)):
        raise DataError("The runs do not share their test images seed by seed; compare runs of the same splits.")
    differences = np.asarray([one.value - other.value for one, other in zip(first, second, strict=True)])
    deviations = [one.deviations - other.deviations for one, other in zip(first, second, strict=True)]
    if all(first[0].same_test(run) for run in first):
        return _crossed(differences, np.stack(deviations))
    return _nested(differences, deviations)


def average(found: Sequence[Comparison]) -> Comparison:
    """Average comparisons on different data sets, which are independent of each other."""
    size = len(found)
    variances = np.asarray([one.error**2 for one in found]) / size**2
    spread = float(sum(v**2 / one.freedom for v, one in zip(variances, found, strict=True)))
    return Comparison(
        float(np.mean([one.difference for one in found])),
        math.sqrt(variances.sum()),
        float(variances.sum()) ** 2 / spread if spread else math.inf,  # Satterthwaite
        sum(one.groups for one in found),
        min(one.seeds for one in found),
        parts=tuple(found),
    )


def projected(found: Comparison, seeds: int, times: float) -> Comparison:
    """Return what the comparison would be with so many seeds and `times` as many groups, if nothing else changed.

    The difference and its components of variance are taken to be the true ones, so with the same seeds and groups the
    standard error is the same. Raises DataError where the components are not known.
    """
    if found.parts:
        return average([projected(part, seeds, times) for part in found.parts])
    if found.components is None:
        raise DataError("The variance of this comparison is not known: it needs at least two groups.")
    groups, one = math.ceil(times * found.groups), found.components
    squares = (seeds * one.groups + one.interaction, groups * one.seeds + one.interaction, one.interaction)
    return _comparison(np.full(seeds, found.difference), *squares, (groups, seeds), one)


def _delong(logits: Logits, labels: Labels, groups: Sequence[int]) -> tuple[float, Values]:
    """Return AUC and its groups' deviations from placement values (DeLong et al. 1988; of groups: Obuchowski 1997)."""
    truth = labels == 1 if labels.ndim > 1 else labels[:, None] == np.arange(logits.shape[1])
    scores = logits if labels.ndim > 1 else _log_odds(logits)
    _, member = np.unique(np.asarray(groups), return_inverse=True)
    columns = zip(scores.astype(np.float64).T, truth.T, strict=True)
    areas, found = zip(*(_placements(*column) for column in columns), strict=True)
    images = np.mean(found, 0)  # (images,): each one's share of the mean area's deviation
    return float(np.mean(areas)), np.bincount(member, images) * (member.max() + 1)


def _log_odds(logits: Logits) -> Values:
    """Return the log-odds of each class against the rest (images, classes): no ties, unlike a saturated softmax."""
    from scipy.special import logsumexp  # noqa: PLC0415 - slow to import, and `peftbench list` does not need it

    wide = logits.astype(np.float64)
    rest = [logsumexp(np.delete(wide, one, 1), axis=1) for one in range(wide.shape[1])]
    return np.asarray(wide - np.stack(rest, 1))


def _placements(scores: Values, positive: NDArray[np.bool_]) -> tuple[float, Values]:
    """Return the area under one curve and each image's share of its deviation; nan where a class does not occur."""
    from scipy.stats import rankdata  # noqa: PLC0415 - slow to import, and `peftbench list` does not need it

    hits, others = int(positive.sum()), int((~positive).sum())
    if not hits or not others:
        return math.nan, np.full(len(scores), math.nan)
    ranks, place = rankdata(scores), np.empty(len(scores))
    place[positive] = (ranks[positive] - rankdata(scores[positive])) / others
    place[~positive] = 1 - (ranks[~positive] - rankdata(scores[~positive])) / hits
    area = float(place[positive].mean())
    return area, (place - area) / np.where(positive, hits, others)


def _crossed(differences: Values, deviations: Values) -> Comparison:
    """Return the comparison on one test set, from differences (seeds,) and deviations (seeds, groups)."""
    seeds, groups = deviations.shape
    if groups < 2:  # noqa: PLR2004 - one patient has no variance
        return Comparison(float(differences.mean()), math.nan, math.nan, groups, seeds)
    cells = differences[:, None] + deviations
    of_groups = seeds * float(np.var(cells.mean(0), ddof=1))
    if seeds == 1:
        return _comparison(differences, of_groups, 0.0, 0.0, (groups, seeds), Components(of_groups, 0.0, 0.0))
    of_seeds = groups * float(np.var(differences, ddof=1))
    rest = cells - cells.mean(0) - cells.mean(1, keepdims=True) + cells.mean()
    interaction = float((rest**2).sum()) / ((groups - 1) * (seeds - 1))
    between = max(of_groups - interaction, 0.0) / seeds
    components = Components(between, max(of_seeds - interaction, 0.0) / groups, of_groups - seeds * between)
    return _comparison(differences, of_groups, of_seeds, interaction, (groups, seeds), components)


def _nested(differences: Values, deviations: Sequence[Values]) -> Comparison:
    """Return the comparison where every seed has its own test set.

    The variance over groups is that of one test set, as sets may share patients; seeds add what variance remains.
    """
    seeds, groups = len(differences), max(len(one) for one in deviations)
    if min(len(one) for one in deviations) < 2:  # noqa: PLR2004 - one value has no variance
        return Comparison(float(differences.mean()), math.nan, math.nan, groups, seeds)
    within = float(np.mean([np.var(one, ddof=1) / len(one) for one in deviations]))  # of one seed's difference
    between = float(np.var(differences, ddof=1))
    components = Components(within * groups, max(between - within, 0.0), 0.0)
    squares = (within * seeds * groups, between * groups, within * groups)
    return _comparison(differences, *squares, (groups, seeds), components)


def _comparison(
    differences: Values,
    of_groups: float,
    of_seeds: float,
    interaction: float,
    size: tuple[int, int],
    components: Components,
) -> Comparison:
    """Return the comparison from the mean squares of groups, seeds and their interaction."""
    from scipy import special  # noqa: PLC0415 - slow to import, and `peftbench list` does not need it

    groups, seeds = size
    total = of_groups + max(of_seeds - interaction, 0.0)
    freedom = groups - 1.0
    if seeds > 1 and total > 0:
        upper = max(of_seeds * (seeds - 1) / float(special.chdtri(seeds - 1, LIMIT)) - interaction, 0.0)
        freedom = (of_groups + upper) ** 2 / (of_groups**2 / (groups - 1) + upper**2 / (seeds - 1))
    error = math.sqrt(total / (seeds * groups))
    return Comparison(float(differences.mean()), error, freedom, groups, seeds, components)
