"""Verdicts and tiers from pairwise p-values, in place of a ranking, which would order methods that tie."""

from __future__ import annotations

import gc
import math
from collections.abc import Collection, Sequence

import numpy as np

ALPHA = 0.05
UNDECIDED = "no difference shown"  # a verdict


def holm(p: Sequence[float]) -> list[float]:
    """Adjust p-values for their number by Holm's step-down procedure; nan stays nan and does not count."""
    from statsmodels.stats.multitest import multipletests  # noqa: PLC0415 - a second that no other verb should wait for

    values = np.asarray(p, np.float64)
    known = ~np.isnan(values)
    if known.any():
        gc.freeze()  # statsmodels collects garbage at each call: seconds with the records of a large store
        values[known] = multipletests(values[known], ALPHA, "holm")[1]
        gc.unfreeze()
    return [float(value) for value in values]


def tiers(names: Sequence[str], worse: Collection[tuple[str, str]]) -> list[list[str]]:
    """Group names into tiers, best first; a pair (one, other) in `worse` means that one was shown to be worse.

    The first tier holds every name that is not shown to be worse than any other: of methods that are equally good all
    are in it with a probability of 95%, when the pairs come from p-values adjusted over all comparisons. The second is
    the first of the names that remain, and so on. Names keep their order within a tier.
    """
    left, found = list(names), []
    open_pairs = {pair for pair in worse if set(pair) <= set(left)}
    while left:
        beaten = {one for one, _ in open_pairs}
        tier = [name for name in left if name not in beaten] or left
        found.append(tier)
        placed = set(tier)
        left = [name for name in left if name not in placed]
        open_pairs = {pair for pair in open_pairs if placed.isdisjoint(pair)}
    return found


def verdict(difference: float, p: float) -> str:
    """Return better, worse, no difference shown, or unknown for an adjusted p-value at the 5% level."""
    if math.isnan(p):
        return "unknown"
    if p >= ALPHA or difference == 0:
        return UNDECIDED
    return "better" if difference > 0 else "worse"
