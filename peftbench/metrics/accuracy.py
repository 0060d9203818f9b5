"""Accuracy: the share of images classified correctly."""

from __future__ import annotations

from peftbench import stats
from peftbench.contract import Labels, Logits


def plugin(logits: Logits, labels: Labels) -> float:
    """Accuracy in 0..1 of logits (n, classes) against labels (n,); nan without images."""
    return stats.accuracy(stats.confusion(logits, labels)).item()
