"""The model card in delta.json: all that prediction needs beside the delta and the backbone's weights."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from peftbench.core.spec import Job
from peftbench.data.pixel_cache import Data
from peftbench.training.calibration import fit_temperature
from peftbench.training.loop import Progress, effective_rule

USE = "For research only; not a medical device."
SAMPLE = 512  # training images, evenly spaced, whose appearance is described
GREY = 2.0  # mean difference of the color channels, of 255, below which an image counts as grey


def model_card(job: Job, data: Data, progress: Progress) -> dict[str, Any]:
    """Return base weights, method, head, preprocessing, temperature and the appearance of the training images."""
    rule = effective_rule(job.recipe, set(next(iter(progress.chosen.values())).logits))
    logits = progress.chosen[rule].logits
    return {
        "base": job.digest,
        "backbone": job.backbone,
        **({"network": job.network} if job.network else {}),
        "method": {"name": job.method, "version": job.version, "fields": dict(job.fields)},
        "head": {"kind": job.recipe.head, "scale": job.recipe.head_scale, "classes": list(data.card.classes)},
        "task": data.card.task,
        "preprocessing": job.preprocessing.stored(),
        "image_size": job.image_size,
        "job": job.id,
        "temperature": fit_temperature(logits["val"], data.labels["val"]) if "val" in logits else None,
        "trained_on": {"dataset": job.dataset, "modality": data.card.modality, "look": appearance(_sample(data))},
        "use": USE,
    }


def _sample(data: Data) -> NDArray[np.uint8]:
    pixels = data.pixels("train")
    return np.asarray(pixels[:: max(1, len(pixels) // SAMPLE)])


def appearance(pixels: NDArray[np.uint8]) -> dict[str, Any]:
    """Return the share of grey images of (n, 3, S, S), and the range of their brightness and of their contrast."""
    means, spreads = brightness(pixels)
    ends = (0.5, 99.5)
    return {
        "grey": round(float(is_grey(pixels).mean()), 4),
        "mean": [round(float(q), 2) for q in np.percentile(means, ends)],
        "contrast": [round(float(q), 2) for q in np.percentile(spreads, ends)],
    }


def brightness(pixels: NDArray[np.uint8]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the mean and the standard deviation (n,) of each image (n, 3, S, S), in 0..255."""
    flat = pixels.reshape(len(pixels), -1).astype(np.float64)
    return flat.mean(axis=1), flat.std(axis=1)


def is_grey(pixels: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Return which images (n, 3, S, S) have three equal channels, up to compression noise."""
    wide = pixels.astype(np.int16)
    found: NDArray[np.bool_] = (wide.max(axis=1) - wide.min(axis=1)).mean(axis=(1, 2)) < GREY
    return found
