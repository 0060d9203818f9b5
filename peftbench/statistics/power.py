"""How many more seeds or groups would decide a comparison, from the components of its variance.

A comparison decides where the smallest difference that it finds with 80% power is no larger than the observed one. The
observed difference is an estimate itself: the numbers are the order of magnitude to plan with, no promise.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from peftbench.statistics.paired import Comparison, projected
from peftbench.statistics.tiers import ALPHA

MOST_SEEDS = 100
MOST_GROUPS = 1000.0  # times the groups that there are
SEVERAL = 10  # seeds to combine with more groups, where neither alone decides
_CLOSE = 1.01  # relative precision of a number of groups


@dataclass(frozen=True)
class Needed:
    """Seeds and groups that would decide a comparison; None: not within the limits of this module."""

    seeds: int | None  # in all, on the same test images; None also where seeds cannot be projected from one
    groups: float | None  # times those of the test sets, with the same seeds
    groups_and_seeds: float | None = None  # as `groups`, with SEVERAL seeds, where neither alone is enough


def needed(found: Comparison, alpha: float = ALPHA) -> Needed:
    """Return the seeds, and the multiple of test groups, that would show the observed difference with 80% power.

    `alpha` is the level of this comparison; of several that are adjusted together, 5% over the number of those that are
    undecided, as Holm's next step has it.
    """
    if math.isnan(found.error) or found.difference == 0:
        return Needed(None, None)
    several = found.seeds > 1
    seeds, groups = _seeds(found, alpha) if several else None, _groups(found, found.seeds, alpha)
    both = _groups(found, SEVERAL, alpha) if several and seeds is groups is None else None
    return Needed(seeds, groups, both)


def _decides(found: Comparison, seeds: int, times: float, alpha: float) -> bool:
    return projected(found, seeds, times).detectable_at(alpha) <= abs(found.difference)


def _seeds(found: Comparison, alpha: float) -> int | None:
    possible = range(found.seeds, MOST_SEEDS + 1)
    return next((seeds for seeds in possible if _decides(found, seeds, 1.0, alpha)), None)


def _groups(found: Comparison, seeds: int, alpha: float) -> float | None:
    """Return the multiple of groups by bisection of its logarithm."""
    low, high = 1.0, MOST_GROUPS
    if not _decides(found, seeds, high, alpha):
        return None
    while high > _CLOSE * low:
        middle = math.sqrt(low * high)
        low, high = (low, middle) if _decides(found, seeds, middle, alpha) else (middle, high)
    return high
