"""Both ways of reading images must give the same images, or their speeds compare nothing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torchvision.transforms import v2

from peftbench.benchmarks import bench_data
from peftbench.benchmarks.bench_data import PREPROCESSING, Decoded, epochs, photos
from peftbench.core.contract import Part
from peftbench.data.decode import decode


def test_the_usual_way_and_the_cache_see_the_same_pixels(tmp_path: Path) -> None:
    files = photos(tmp_path)[:3]
    names = tuple(file.name for file in files)
    cached, _ = decode(Part(files, np.zeros(3, np.int64), names, names), PREPROCESSING)
    usual = Decoded(files, v2.Compose([v2.Resize((224, 224), v2.InterpolationMode.BICUBIC), v2.PILToTensor()]))
    assert torch.equal(torch.stack([usual[i] for i in range(3)]), torch.from_numpy(cached))


def test_an_epoch_is_as_long_in_either_way(tmp_path: Path) -> None:
    ways = epochs(tmp_path)
    batches = [bench_data.BATCH] * (bench_data.IMAGES // bench_data.BATCH)
    assert ways["decoding"]() == ways["cached"]() == batches
