"""Brier score: the squared distance between probabilities and outcomes; sensitive to calibration and to ranking.

Brier, Verification of forecasts expressed in terms of probability, Monthly Weather Review 78 (1950) 1-3.
"""

from __future__ import annotations

import numpy as np

from peftbench.core.contract import Labels, Logits, of_tasks
from peftbench.metrics._shared import probabilities
from peftbench.statistics import scores


@of_tasks("single", "ordinal", "multi_label")
def plugin(logits: Logits, labels: Labels) -> float:
    """Return the Brier score in 0..1 (lower is better) of logits (n, classes) against labels (n,); nan without images.

    Summed over classes and halved (scikit-learn's `scale_by_half=True`), so that with two classes it is the squared
    error of one probability. For multi-label labels (n, labels) it is the mean of that error over labels.
    """
    if not scores.confusion(logits, labels).sum():  # raises for shapes that do not match
        return float("nan")
    several = labels.ndim == 2  # noqa: PLR2004 - one column per label
    truth = labels if several else labels[:, None] == np.arange(logits.shape[1])
    gaps = (probabilities(logits, labels) - truth) ** 2
    return float(gaps.mean() if several else gaps.sum(1).mean() / 2)
