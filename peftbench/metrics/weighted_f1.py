"""Weighted F1: the mean over classes of F1, each class weighing as many images as it has."""

from __future__ import annotations

from peftbench.core.contract import Labels, Logits, of_tasks
from peftbench.statistics import scores


@of_tasks("single", "ordinal", "multi_label")
def plugin(logits: Logits, labels: Labels) -> float:
    """Weighted F1 in 0..1 of logits (n, classes) against labels (n,) or (n, labels).

    nan without images, or where no label of a multi-label set occurs.
    """
    return scores.score("weighted_f1", logits, labels)
