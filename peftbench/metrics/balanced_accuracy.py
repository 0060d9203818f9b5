"""Balanced accuracy: the mean recall of the classes that occur."""

from __future__ import annotations

from peftbench import stats
from peftbench.contract import Labels, Logits


def plugin(logits: Logits, labels: Labels) -> float:
    """Balanced accuracy in 0..1 of logits (n, classes) against labels (n,); nan without images."""
    return stats.balanced_accuracy(stats.confusion(logits, labels)).item()
