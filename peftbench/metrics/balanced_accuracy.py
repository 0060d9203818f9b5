"""Balanced accuracy: the mean recall of the classes that occur."""

from __future__ import annotations

from peftbench.core.contract import Labels, Logits, of_tasks
from peftbench.statistics import scores


@of_tasks("single", "ordinal", "multi_label")
def plugin(logits: Logits, labels: Labels) -> float:
    """Return balanced accuracy in 0..1 of logits (n, classes) against labels (n,), or its mean over labels (n, labels).

    nan without images.
    """
    return scores.score("balanced_accuracy", logits, labels)
