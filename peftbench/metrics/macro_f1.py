"""Macro F1: the unweighted mean of the classes' F1 scores, so that rare classes count as much as frequent ones."""

from __future__ import annotations

from peftbench.core.contract import Labels, Logits, of_tasks
from peftbench.statistics import scores


@of_tasks("single", "ordinal", "multi_label")
def plugin(logits: Logits, labels: Labels) -> float:
    """Return macro F1 in 0..1 over all classes of the logits (n, classes); nan without images.

    A class that is neither in the labels (n,) nor predicted scores 0, as in scikit-learn with `zero_division=0`. For
    multi-label labels (n, labels) it is the mean F1 of the labels, predicted at a probability of one half.
    """
    return scores.score("macro_f1", logits, labels)
