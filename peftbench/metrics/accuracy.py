"""Accuracy: the share of images classified correctly."""

from __future__ import annotations

from peftbench import scores
from peftbench.contract import Labels, Logits, of_tasks


@of_tasks("single", "ordinal", "multi_label")
def plugin(logits: Logits, labels: Labels) -> float:
    """Accuracy in 0..1 of logits (n, classes) against labels (n,), or its mean over labels (n, labels).

    nan without images.
    """
    return scores.score("accuracy", logits, labels)
