"""Shared code of the metrics: probabilities and log-odds from logits, in double precision."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from peftbench.core.contract import Labels, Logits
from peftbench.statistics.scores import Values


def probabilities(logits: Logits, labels: Labels) -> Values:
    """Return the softmax (n, classes), or the sigmoid for multi-label labels (n, labels)."""
    from scipy.special import expit, softmax  # noqa: PLC0415 - `peftbench list` loads every metric

    wide = logits.astype(np.float64)
    return np.asarray(softmax(wide, axis=1) if labels.ndim == 1 else expit(wide))


def log_odds(logits: Logits, one: int) -> NDArray[np.float32]:
    """Return the log-odds (n,) of one class: same order as its softmax, but without saturation, which makes ties.

    Computed in float64 and rounded to float32, so that rounding errors do not break true ties.
    """
    from scipy.special import logsumexp  # noqa: PLC0415 - slow to import, and `peftbench list` does not need it

    wide = logits.astype(np.float64)
    return np.asarray(wide[:, one] - logsumexp(np.delete(wide, one, axis=1), axis=1)).astype(np.float32)
