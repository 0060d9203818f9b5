"""Temperature scaling of logits (Guo et al., On Calibration of Modern Neural Networks, ICML 2017)."""

from __future__ import annotations

import math

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import log_expit, log_softmax

from peftbench.core.contract import Labels, Logits

TEMPERATURES = (0.05, 20.0)  # the range that is searched


def fit_temperature(logits: Logits, labels: Labels) -> float:
    """Return the temperature by which to divide logits (n, classes) so that the labels have the highest likelihood.

    Labels are (n,) or, with several labels an image, (n, classes) of 0 and 1. The result lies in TEMPERATURES.
    """
    several = labels.ndim == 2  # noqa: PLR2004 - one column per label
    wide = logits.astype(np.float64)

    def loss(log_t: float) -> float:
        scaled = wide / np.exp(log_t)
        if several:
            return -float(np.where(labels == 1, log_expit(scaled), log_expit(-scaled)).mean())
        return -float(log_softmax(scaled, axis=1)[np.arange(len(labels)), labels].mean())

    lowest, highest = map(math.log, TEMPERATURES)
    found = minimize_scalar(loss, bounds=(lowest, highest), method="bounded")
    return float(f"{math.exp(found.x):.4g}")
