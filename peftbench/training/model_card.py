"""What a trained model says of itself where it is handed over: all that prediction needs beside the backbone's weights.

It stands in delta.json, so that the folder of a job, or its two delta files alone, are enough.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.special import log_expit, log_softmax

from peftbench.core.contract import Labels, Logits
from peftbench.core.spec import Job
from peftbench.data.pixel_cache import Data
from peftbench.training.loop import Progress, followed

USE = "For research only; not a medical device."
LOOKED_AT = 512  # training images, evenly spread: enough to know what they look like
GREY = 2.0  # mean difference of the colour channels, of 255, below which an image counts as grey
TEMPERATURES = (0.05, 20.0)


def about(job: Job, data: Data, progress: Progress) -> dict[str, Any]:
    """What a delta must say of itself."""
    rule = followed(job.recipe, set(next(iter(progress.chosen.values())).logits))
    return {
        "base": job.digest,
        "backbone": job.backbone,
        "method": {"name": job.method, "version": job.version, "fields": dict(job.fields)},
        "head": {"kind": job.recipe.head, "scale": job.recipe.head_scale, "classes": list(data.card.classes)},
        "task": data.card.task,
        "preprocessing": asdict(job.preprocessing),
        "image_size": job.image_size,
        "job": job.id,
        "temperature": _temperature(progress.chosen[rule].logits, data),
        "trained_on": {"dataset": job.dataset, "modality": data.card.modality, "look": look(_some(data))},
        "use": USE,
    }


def _temperature(logits: Mapping[str, Logits], data: Data) -> float | None:
    return temperature(logits["val"], data.labels["val"]) if "val" in logits else None


def temperature(logits: Logits, labels: Labels) -> float:
    """What to divide logits (n, classes) by so that the labels are likeliest (Guo et al., ICML 2017).

    Within 0.05 to 20; labels (n,) or, of several labels an image, (n, classes) of 0 and 1.
    """
    several = labels.ndim == 2  # noqa: PLR2004 - one column a label
    wide = logits.astype(np.float64)

    def loss(log_t: float) -> float:
        scaled = wide / np.exp(log_t)
        if several:
            return -float(np.where(labels == 1, log_expit(scaled), log_expit(-scaled)).mean())
        return -float(log_softmax(scaled, axis=1)[np.arange(len(labels)), labels].mean())

    least, most = (math.log(heat) for heat in TEMPERATURES)
    found = minimize_scalar(loss, bounds=(least, most), method="bounded")
    return float(f"{math.exp(found.x):.4g}")


def _some(data: Data) -> NDArray[np.uint8]:
    pixels = data.pixels("train")
    return np.asarray(pixels[:: max(1, len(pixels) // LOOKED_AT)])


def look(pixels: NDArray[np.uint8]) -> dict[str, Any]:
    """Of images (n, 3, S, S): the share of grey ones, and from where to where their mean and their contrast lie."""
    means, spreads = brightness(pixels)
    ends = (0.5, 99.5)
    return {
        "grey": round(float(is_grey(pixels).mean()), 4),
        "mean": [round(float(q), 2) for q in np.percentile(means, ends)],
        "contrast": [round(float(q), 2) for q in np.percentile(spreads, ends)],
    }


def brightness(pixels: NDArray[np.uint8]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean and standard deviation (n,) of each image (n, 3, S, S), of 255."""
    flat = pixels.reshape(len(pixels), -1).astype(np.float64)
    return flat.mean(axis=1), flat.std(axis=1)


def is_grey(pixels: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Whether the three channels (n, 3, S, S) of each image are, but for compression, the same."""
    wide = pixels.astype(np.int16)
    found: NDArray[np.bool_] = (wide.max(axis=1) - wide.min(axis=1)).mean(axis=(1, 2)) < GREY
    return found
