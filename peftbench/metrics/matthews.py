"""Matthews correlation coefficient: agreement of predicted and true classes beyond chance."""

from __future__ import annotations

import numpy as np

from peftbench.core.contract import Labels, Logits


def plugin(logits: Logits, labels: Labels) -> float:
    """Return the coefficient in -1..1 of logits (n, classes) against labels (n,); nan without images.

    It is 0 if all images are of one class or are predicted as one, as in scikit-learn.
    """
    from sklearn.metrics import matthews_corrcoef  # noqa: PLC0415 - `peftbench list` loads every metric

    return float(matthews_corrcoef(labels, logits.argmax(1))) if len(labels) else float(np.nan)
