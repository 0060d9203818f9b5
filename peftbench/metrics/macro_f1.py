"""Macro F1: the mean over classes of the harmonic mean of precision and recall. A rare class counts as much as any."""

from __future__ import annotations

from peftbench.core.contract import Labels, Logits, of_tasks
from peftbench.statistics import scores


@of_tasks("single", "ordinal", "multi_label")
def plugin(logits: Logits, labels: Labels) -> float:
    """Macro F1 in 0..1 over all classes of the logits (n, classes); nan without images.

    A class that is neither in the labels (n,) nor predicted scores 0, as in scikit-learn with `zero_division=0`. Of
    multi-label labels (n, labels), each predicted at a probability of one half: the mean F1 of the labels.
    """
    return scores.score("macro_f1", logits, labels)
