"""Cohen's kappa with quadratic weights: agreement on an ordered scale, where two steps off is four times as wrong.

Cohen, Weighted kappa, Psychological Bulletin 70 (1968) 213-220.
"""

from __future__ import annotations

import numpy as np

from peftbench.core.contract import Labels, Logits, of_tasks
from peftbench.statistics import scores


@of_tasks("ordinal")
def plugin(logits: Logits, labels: Labels) -> float:
    """At most 1, 0 at chance, of logits (n, grades) against labels (n,).

    nan without images, and where labels and predictions are one and the same grade throughout.
    """
    table = scores.confusion(logits, labels)[0]
    chance = np.outer(table.sum(1), table.sum(0)) / max(table.sum(), 1.0)
    grade = np.arange(len(table))
    weight = (grade[:, None] - grade) ** 2
    expected = float((weight * chance).sum())
    return 1.0 - float((weight * table).sum()) / expected if expected else float("nan")
