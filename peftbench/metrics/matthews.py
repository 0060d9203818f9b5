"""Matthews correlation coefficient: agreement of predicted and true classes beyond chance."""

from __future__ import annotations

import numpy as np

from peftbench.core.contract import Labels, Logits


def plugin(logits: Logits, labels: Labels) -> float:
    """Return the coefficient in -1..1 of logits (n, classes) against labels (n,); nan without images.

    It is 0 if all images are of one class or are predicted as one, as in scikit-learn.
    """
    from sklearn.metrics import matthews_corrcoef  # noqa: PLC0415 - `peftbench list` loads every metric

    if not len(labels):
        return float("nan")
    predicted = logits.argmax(1)
    if len(np.union1d(labels, predicted)) == 1:  # scikit-learn gives 0, too, with a warning
        return 0.0
    return float(matthews_corrcoef(labels, predicted))
