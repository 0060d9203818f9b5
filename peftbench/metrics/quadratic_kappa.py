"""Cohen's kappa with quadratic weights: agreement on an ordered scale; an error of two grades weighs four times.

Cohen, Weighted kappa, Psychological Bulletin 70 (1968) 213-220.
"""

from __future__ import annotations

import numpy as np

from peftbench.core.contract import Labels, Logits, of_tasks
from peftbench.statistics import scores


@of_tasks("ordinal")
def plugin(logits: Logits, labels: Labels) -> float:
    """Return kappa (at most 1; 0 = chance) of logits (n, grades) against labels (n,).

    nan without images, and if all labels and predictions are the same grade.
    """
    table = scores.confusion(logits, labels)[0]
    chance = np.outer(table.sum(1), table.sum(0)) / max(table.sum(), 1.0)
    grade = np.arange(len(table))
    weight = (grade[:, None] - grade) ** 2
    expected = float((weight * chance).sum())
    return 1.0 - float((weight * table).sum()) / expected if expected else float("nan")
