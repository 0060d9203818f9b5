"""Recall of each class, so that no average hides a class that is never found."""

from __future__ import annotations

from collections.abc import Mapping

from peftbench import stats
from peftbench.contract import Labels, Logits


def plugin(logits: Logits, labels: Labels) -> Mapping[str, float]:
    """`recall_0`, `recall_1`, ... in 0..1 of logits (n, classes); nan for a class not in labels (n,)."""
    (recalls,) = stats.recalls(stats.confusion(logits, labels)).tolist()
    return {f"recall_{index}": recall for index, recall in enumerate(recalls)}
