"""Weighted F1: the mean of the classes' F1 scores, weighted by their number of images."""

from __future__ import annotations

from peftbench.core.contract import Labels, Logits, of_tasks
from peftbench.statistics import scores


@of_tasks("single", "ordinal", "multi_label")
def plugin(logits: Logits, labels: Labels) -> float:
    """Return weighted F1 in 0..1 of logits (n, classes) against labels (n,) or (n, labels).

    nan without images, or if no label of a multi-label set occurs.
    """
    return scores.score("weighted_f1", logits, labels)
