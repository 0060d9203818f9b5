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
EXACT = 13  # data sets, up to which all combinations of signs are counted
CHUNK = 256  # columns at a time


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
    pairs = list(combinations(range(len(methods)), 2))
    apart = np.stack([scores[:, one] - scores[:, other] for one, other in pairs], 1)  # (data sets, pairs)
    adjusted = holm(signed_rank_p(apart).tolist())
    return tuple((methods[a], methods[b], value) for (a, b), value in zip(pairs, adjusted, strict=True))


def signed_rank_p(apart: Values) -> Values:
    """Return the two-sided p-value of Wilcoxon's signed-rank test for each column of differences (n, pairs).

    Zeros are ranked and split between both signs (Pratt). For few data sets, the values of `scipy.stats.wilcoxon`,
    which takes a second for a column with ties; all 2^n signs are the same for all columns, so here they cost one
    product.
    """
    from scipy.stats import rankdata, wilcoxon  # noqa: PLC0415 - slow to import, and `peftbench list` does not need it

    n, columns = apart.shape
    if n > EXACT:
        p = np.ones(columns)
        for column in np.flatnonzero((apart != 0).any(0)):
            p[column] = wilcoxon(apart[:, column], zero_method="zsplit").pvalue
        return p
    ranked = np.asarray(rankdata(abs(apart), axis=0))
    halved, signed = ranked * (apart == 0) / 2, ranked * (apart != 0)
    found = (signed * (apart > 0) + halved).sum(0)
    signs = (np.arange(2**n)[:, None] >> np.arange(n)) & 1
    return np.concatenate(
        [
            _two_sided(signs @ signed[:, some] + halved[:, some].sum(0), found[some])
            for some in np.array_split(np.arange(columns), -(-columns // CHUNK))
        ]
    )


def _two_sided(null: Values, found: Values) -> Values:
    """Return the share of `null` (draws, columns) that is as extreme as `found` (columns,), in its own direction."""
    nearly = 1e-9  # sums of ranks are multiples of a quarter
    low, high = (null <= found + nearly).mean(0), (null >= found - nearly).mean(0)
    return np.asarray(np.minimum(1.0, 2 * np.minimum(low, high)))
