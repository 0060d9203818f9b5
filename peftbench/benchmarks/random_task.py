"""Random images and labels, in place of a data set."""

from __future__ import annotations

import numpy as np
import torch

from peftbench.core.contract import Preprocessing
from peftbench.data.batches import ImageBatches
from peftbench.training.loop import Task


def random_task(preprocessing: Preprocessing, images: int, classes: int, device: str = "cpu") -> Task:
    """Return a task of random images, on the GPU if there is one, whose labels repeat 0..classes-1; no parts."""
    side, where = preprocessing.size, torch.device(device)
    pixels = np.random.default_rng(0).integers(0, 256, (images, 3, side, side), dtype=np.uint8)
    train = ImageBatches(pixels, preprocessing, where, resident=where.type == "cuda")
    return Task(train, torch.arange(images, device=where) % classes, {}, classes)
