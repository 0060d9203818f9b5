"""Sensitivity at a fixed specificity, and specificity at a fixed sensitivity."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from peftbench.core.contract import Labels, Logits, of_positive
from peftbench.metrics._shared import log_odds

FIXED = (90, 95)  # %
PAIR = ("sensitivity", "specificity")
ROUNDING = 1e-9  # so that 1 - 1 of 20 counts as 95%


@of_positive
def plugin(logits: Logits, labels: Labels) -> Mapping[str, float]:
    """Return `sensitivity_at_90_specificity`, `specificity_at_90_sensitivity` and those at 95% in 0..1.

    For class 1 of logits (n, 2) against labels (n,): the highest value on the ROC curve where the other one is at least
    as high as stated. nan with more than two classes, or if one of the two does not occur.
    """
    from sklearn.metrics import roc_curve  # noqa: PLC0415 - `peftbench list` loads every metric

    names = [f"{one}_at_{p}_{other}" for one, other in (PAIR, PAIR[::-1]) for p in FIXED]
    if logits.shape[1] != 2 or len(np.unique(labels)) != 2:  # noqa: PLR2004 - there is no positive class
        return dict.fromkeys(names, np.nan)
    false, true, _ = roc_curve(labels, log_odds(logits, 1), drop_intermediate=False)
    curves = ((true, 1 - false), (1 - false, true))
    values = [float(one[other >= p / 100 - ROUNDING].max()) for one, other in curves for p in FIXED]
    return dict(zip(names, values, strict=True))
