"""Area under the ROC curve, one class against the rest, averaged over classes."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from peftbench.contract import Labels, Logits


def plugin(logits: Logits, labels: Labels) -> float:
    """Macro one-vs-rest AUC in 0..1 of the softmax of logits (n, classes) against labels (n,).

    nan where a class does not occur in the labels or there is only one: its curve is undefined. With two classes it is
    the usual binary AUC.
    """
    classes = logits.shape[1]
    present = np.bincount(labels, minlength=classes)
    if classes == 1 or not present.all():
        return float("nan")
    return float(np.mean([_area(_log_odds(logits, one), labels == one) for one in range(classes)]))


def _log_odds(logits: Logits, one: int) -> NDArray[np.float32]:
    """Ranks as the softmax does, (n,), but does not saturate at 1, where confident images would become ties.

    Computed in double precision and rounded to the logits' own, so that rounding errors do not break true ties.
    """
    from scipy.special import logsumexp  # noqa: PLC0415 - `peftbench list` loads every metric and answers at once

    wide = logits.astype(np.float64)
    return np.asarray(wide[:, one] - logsumexp(np.delete(wide, one, axis=1), axis=1)).astype(np.float32)


def _area(scores: NDArray[np.float32], positive: NDArray[np.bool_]) -> float:
    """The Mann-Whitney statistic: how often a positive outranks a negative, ties counting half."""
    from scipy.stats import rankdata  # noqa: PLC0415 - likewise

    hits = int(positive.sum())
    above = rankdata(scores)[positive].sum() - hits * (hits + 1) / 2
    return float(above / (hits * (len(scores) - hits)))
