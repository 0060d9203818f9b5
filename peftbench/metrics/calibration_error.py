"""Expected calibration error: the gap between the confidence of predictions and their accuracy.

Guo et al., On Calibration of Modern Neural Networks, ICML 2017: 15 bins of equal width.
"""

from __future__ import annotations

import numpy as np

from peftbench.core.contract import Labels, Logits
from peftbench.metrics._shared import probabilities
from peftbench.statistics import scores

BINS = 15


def plugin(logits: Logits, labels: Labels) -> float:
    """Return the error in 0..1 (lower is better) of logits (n, classes) against labels (n,); nan without images.

    The confidence is the largest probability; bins include their upper edge.
    """
    images = int(scores.confusion(logits, labels).sum())  # raises for shapes that do not match
    if not images:
        return float("nan")
    confidence = probabilities(logits, labels).max(1)
    place = np.clip(np.ceil(confidence * BINS).astype(np.int64) - 1, 0, BINS - 1)
    gaps = np.bincount(place, weights=confidence - (logits.argmax(1) == labels), minlength=BINS)
    return float(np.abs(gaps).sum() / images)
