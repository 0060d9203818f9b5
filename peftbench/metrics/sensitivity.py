"""Sensitivity at a fixed specificity."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from peftbench.core.contract import Labels, Logits
from peftbench.metrics._shared import log_odds

SPECIFICITIES = (90, 95)  # %


def plugin(logits: Logits, labels: Labels) -> Mapping[str, float]:
    """Return `sensitivity_at_90_specificity` and `..._95_...` in 0..1 of class 1 of logits (n, 2) against labels (n,).

    The highest sensitivity on the ROC curve at that specificity or above. nan with more than two classes, or if one of
    the two does not occur.
    """
    defined = logits.shape[1] == 2 and len(np.unique(labels)) == 2  # noqa: PLR2004 - there is a positive class
    return {f"sensitivity_at_{p}_specificity": _at(p, logits, labels) if defined else np.nan for p in SPECIFICITIES}


def _at(percent: int, logits: Logits, labels: Labels) -> float:
    from sklearn.metrics import roc_curve  # noqa: PLC0415 - `peftbench list` loads every metric

    false, true, _ = roc_curve(labels, log_odds(logits, 1), drop_intermediate=False)
    allowed = (100 - percent) / 100 + 1e-9  # a tolerance, so that 1 of 20 counts as 5%
    return float(true[false <= allowed].max())
