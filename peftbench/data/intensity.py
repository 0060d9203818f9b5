"""Map grey values and colors of any range to eight bits: linear, exact and sigmoid windows, percentiles.

A range wider than eight bits is shown through a window chosen for each image: the one stated in a DICOM file, otherwise
the values between two percentiles.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

PERCENTILES = (0.5, 99.5)

Intensities: TypeAlias = NDArray[np.float64]  # (H, W) grey values, or (H, W, 3) colors


@dataclass(frozen=True)
class Window:
    """The values that are mapped to black and white, or the center and width of a sigmoid."""

    low: float
    high: float
    shape: Literal["linear", "sigmoid"] = "linear"

    def apply(self, values: Intensities) -> Intensities:
        """Return values in 0..1: black at `low` and below, white at `high` and above; NaN becomes 0."""
        if self.shape == "sigmoid":  # DICOM PS3.3 C.11.2.1.3.1
            center, width = (self.low + self.high) / 2, self.high - self.low
            return np.nan_to_num(1 / (1 + np.exp(-4 * (values - center) / width)))
        if self.low == self.high:  # a step
            return np.asarray(values > self.low, np.float64)
        return np.nan_to_num((values.clip(self.low, self.high) - self.low) / (self.high - self.low))


def percentile_window(values: Intensities) -> Window:
    """Return the window between the PERCENTILES of all finite values, or their extremes if both are equal."""
    known = values[np.isfinite(values)]
    if not known.size:
        return Window(0.0, 1.0)
    low, high = np.percentile(known, PERCENTILES).tolist()
    if low == high:  # a small spot on a uniform ground
        low, high = float(known.min()), float(known.max())
    return Window(low, high if high > low else low + 1.0)


def stretch(values: Intensities) -> Intensities:
    """Return values in 0..1 through their own percentile window; one window for all channels keeps the hue."""
    return percentile_window(values).apply(values)


def to_picture(shown: Intensities) -> Image.Image:
    """Return values in 0..1, (H, W) or (H, W, 3), as an eight-bit RGB picture."""
    return Image.fromarray((shown * 255).round().astype(np.uint8)).convert("RGB")
