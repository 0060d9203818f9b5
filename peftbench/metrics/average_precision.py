"""Average precision: the area under the precision-recall curve (PR-AUC), for classes that are rare."""

from __future__ import annotations

import numpy as np

from peftbench.core.contract import Labels, Logits, of_positive, of_tasks
from peftbench.metrics._shared import log_odds


@of_positive
@of_tasks("single", "ordinal", "multi_label")
def plugin(logits: Logits, labels: Labels) -> float:
    """Return the average precision in 0..1 of logits (n, classes) against labels (n,) or (n, labels).

    Of the positive class where there are two, else one against the rest, averaged over classes or labels. nan if one of
    them has no image.
    """
    from sklearn.metrics import average_precision_score  # noqa: PLC0415 - `peftbench list` loads every metric

    classes = logits.shape[1]
    if labels.ndim == 1:
        counted = [1] if classes == 2 else range(classes)  # noqa: PLR2004 - then there is a positive class
        scores = [(labels == one, log_odds(logits, one)) for one in counted if classes > 1]
    else:
        scores = list(zip((labels == 1).T, logits.T, strict=True))
    if not scores or not all(truth.any() for truth, _ in scores):
        return float("nan")
    return float(np.mean([average_precision_score(truth, score) for truth, score in scores]))
