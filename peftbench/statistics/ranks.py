"""Methods over several data sets: average ranks and what they can show (Demšar, JMLR 2006)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from peftbench.statistics.scores import Values
from peftbench.statistics.tiers import ALPHA, holm

FEWEST = 3  # methods that Friedman's test needs


@dataclass(frozen=True)
class Ranks:
    """Average ranks of methods over data sets, rank 1 for the highest score, ties sharing their mean rank."""

    methods: tuple[str, ...]
    average: tuple[float, ...]
    datasets: int
    friedman: float  # p-value of no difference between any methods; nan with fewer than 3 methods or 2 data sets
    critical: float  # Nemenyi's critical difference of two average ranks at 5%; nan as for `friedman`
    wilcoxon: tuple[tuple[str, str, float], ...]  # pairs with Holm-adjusted p-values of the signed-rank test

    @property
    def least_p(self) -> float:
        """The smallest p-value that the signed-rank test can reach with so many data sets, before adjustment."""
        return 2.0 ** (1 - self.datasets)


def ranks(methods: Sequence[str], scores: Values) -> Ranks:
    """Rank scores (data sets, methods); every method has a score on every data set.

    Raises ValueError for scores that are missing: nothing is imputed.
    """
    from scipy.stats import friedmanchisquare, rankdata  # noqa: PLC0415 - half a second that no other verb waits for

    if np.isnan(scores).any():
        raise ValueError("Every method needs a score on every data set; leave out the methods that lack one.")
    datasets, count = scores.shape
    average = rankdata(-scores, axis=1).mean(0)
    enough = count >= FEWEST and datasets > 1
    differ = enough and not (scores == scores[:, :1]).all()
    friedman = float(friedmanchisquare(*scores.T).pvalue) if differ else 1.0 if enough else math.nan
    return Ranks(
        tuple(methods),
        tuple(float(rank) for rank in average),
        datasets,
        friedman,
        critical_difference(count, datasets) if enough else math.nan,
        _signed_ranks(methods, scores),
    )


def critical_difference(methods: int, datasets: int) -> float:
    """Return how far apart two average ranks must be to differ at 5% by Nemenyi's test."""
    from scipy.stats import studentized_range  # noqa: PLC0415 - slow to import, and `peftbench list` does not need it

    quantile = float(studentized_range.ppf(1 - ALPHA, methods, np.inf)) / math.sqrt(2)
    return quantile * math.sqrt(methods * (methods + 1) / (6 * datasets))


def _signed_ranks(methods: Sequence[str], scores: Values) -> tuple[tuple[str, str, float], ...]:
    from scipy.stats import wilcoxon  # noqa: PLC0415 - slow to import, and `peftbench list` does not need it

    pairs = list(combinations(range(len(methods)), 2))
    apart = np.stack([scores[:, one] - scores[:, other] for one, other in pairs], 1)  # (data sets, pairs)
    p, exact = np.ones(len(pairs)), (apart != 0).all(0)
    if exact.any():  # all at once: a call takes milliseconds
        p[exact] = wilcoxon(apart[:, exact], zero_method="zsplit").pvalue
    for tied in np.flatnonzero(~exact & (apart != 0).any(0)):
        p[tied] = wilcoxon(apart[:, tied], zero_method="zsplit").pvalue
    adjusted = holm(p.tolist())
    return tuple((methods[a], methods[b], value) for (a, b), value in zip(pairs, adjusted, strict=True))
