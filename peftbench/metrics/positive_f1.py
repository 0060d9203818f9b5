"""F1 of the positive class of two: the usual F1 of detecting one disease."""

from __future__ import annotations

from peftbench.core.contract import Labels, Logits, of_positive
from peftbench.statistics import scores


@of_positive
def plugin(logits: Logits, labels: Labels) -> float:
    """Return F1 in 0..1 of class 1 of logits (n, 2) against labels (n,); nan without images or with other classes.

    It is 0 if class 1 is neither in the labels nor predicted, as in scikit-learn with `zero_division=0`.
    """
    if logits.shape[1] != 2:  # noqa: PLR2004 - there is no positive class
        return float("nan")
    return float(scores.f1(scores.confusion(logits, labels))[0, 1])
