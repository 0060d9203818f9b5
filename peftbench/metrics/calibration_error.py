"""Expected calibration error: how far the confidence of a prediction lies from how often it is right.

Guo et al., On Calibration of Modern Neural Networks, ICML 2017: 15 bins of equal width.
"""

from __future__ import annotations

import numpy as np

from peftbench.core.contract import Labels, Logits
from peftbench.metrics._shared import probabilities
from peftbench.statistics import scores

BINS = 15


def plugin(logits: Logits, labels: Labels) -> float:
    """The gap in 0..1 of logits (n, classes) against labels (n,), averaged over the images; nan without images.

    Lower is better. The confidence is the largest probability; a bin holds its upper edge and not its lower one.
    """
    images = int(scores.confusion(logits, labels).sum())  # refuses what does not fit
    if not images:
        return float("nan")
    confidence = probabilities(logits, labels).max(1)
    place = np.clip(np.ceil(confidence * BINS).astype(np.int64) - 1, 0, BINS - 1)
    gaps = np.bincount(place, weights=confidence - (logits.argmax(1) == labels), minlength=BINS)
    return float(np.abs(gaps).sum() / images)
