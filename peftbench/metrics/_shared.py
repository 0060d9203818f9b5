"""What several metrics compute from logits, in double precision: probabilities, and scores that keep true ties."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from peftbench.core.contract import Labels, Logits

Values = NDArray[np.float64]


def probabilities(logits: Logits, labels: Labels) -> Values:
    """(n, classes): the softmax, or for multi-label labels (n, labels) the sigmoid."""
    from scipy.special import expit, softmax  # noqa: PLC0415 - `peftbench list` loads every metric and answers at once

    wide = logits.astype(np.float64)
    return np.asarray(softmax(wide, axis=1) if labels.ndim == 1 else expit(wide))


def log_odds(logits: Logits, one: int) -> NDArray[np.float32]:
    """Ranks as the softmax does, (n,), but does not saturate at 1, where confident images would become ties.

    Computed in double precision and rounded to the logits' own, so that rounding errors do not break true ties.
    """
    from scipy.special import logsumexp  # noqa: PLC0415 - likewise

    wide = logits.astype(np.float64)
    return np.asarray(wide[:, one] - logsumexp(np.delete(wide, one, axis=1), axis=1)).astype(np.float32)
