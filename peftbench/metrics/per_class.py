"""Recall and precision of each class, which averages may hide."""

from __future__ import annotations

from collections.abc import Mapping

from peftbench.core.contract import Labels, Logits, of_tasks
from peftbench.statistics import scores


@of_tasks("single", "ordinal", "multi_label")
def plugin(logits: Logits, labels: Labels) -> Mapping[str, float]:
    """Return `recall_0`, ..., `precision_0`, ... in 0..1 of logits (n, classes) against labels (n,) or (n, labels).

    Recall is nan for a class that does not occur, precision for one that is never predicted.
    """
    table = scores.confusion(logits, labels)
    several = labels.ndim == 2  # noqa: PLR2004 - one table per label; its second class is presence
    recall, precision = (
        measure(table)[0, :, 1] if several else measure(table)[0] for measure in (scores.recalls, scores.precisions)
    )
    recalls = {f"recall_{index}": float(value) for index, value in enumerate(recall)}
    return recalls | {f"precision_{index}": float(value) for index, value in enumerate(precision)}
