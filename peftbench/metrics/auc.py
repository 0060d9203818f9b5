"""Area under the ROC curve, one class against the rest, averaged over classes."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from peftbench.core.contract import Labels, Logits, of_tasks
from peftbench.metrics._shared import log_odds


@of_tasks("single", "ordinal", "multi_label")
def plugin(logits: Logits, labels: Labels) -> float:
    """Return the macro one-vs-rest AUC in 0..1 of logits (n, classes) against labels (n,).

    For multi-label labels (n, labels) it is the mean over labels, for two classes the usual binary AUC. nan if a class
    has no image or all images, as its curve is undefined.
    """
    classes = logits.shape[1]
    if labels.ndim == 1:
        truth = labels[:, None] == np.arange(classes)
        scores = [log_odds(logits, one) for one in range(classes)] if classes > 1 else []
    else:
        truth, scores = labels == 1, list(logits.T)
    if not scores or not truth.any(0).all() or truth.all(0).any():
        return float("nan")
    return float(np.mean([_area(score, positive) for score, positive in zip(scores, truth.T, strict=True)]))


def _area(scores: NDArray[np.float32], positive: NDArray[np.bool_]) -> float:
    """Return the Mann-Whitney statistic: how often a positive outranks a negative, ties counting half."""
    from scipy.stats import rankdata  # noqa: PLC0415 - `peftbench list` loads every metric

    hits = int(positive.sum())
    # in float64, because scipy may compute ranks in the dtype of the scores
    above = rankdata(scores.astype(np.float64))[positive].sum() - hits * (hits + 1) / 2
    return float(above / (hits * (len(scores) - hits)))
