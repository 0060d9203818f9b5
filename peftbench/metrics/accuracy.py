"""Accuracy: the share of images classified correctly."""

from __future__ import annotations

from peftbench.core.contract import Labels, Logits, of_tasks
from peftbench.statistics import scores


@of_tasks("single", "ordinal", "multi_label")
def plugin(logits: Logits, labels: Labels) -> float:
    """Return accuracy in 0..1 of logits (n, classes) against labels (n,), or its mean over labels (n, labels).

    nan without images.
    """
    return scores.score("accuracy", logits, labels)
