"""The two ways of reading training images that `peftbench bench` compares: a DataLoader that decodes, and the cache."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from peftbench.core.contract import DatasetCard, Part, Preprocessing, Splits
from peftbench.data.batches import ImageBatches, batch_order
from peftbench.data.pixel_cache import prepare

SIDE, BATCH, IMAGES, CAMERA = 224, 32, 64, 512  # pixels, images, images, pixels of the files
PREPROCESSING = Preprocessing(SIDE, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


def photos(folder: Path) -> list[Path]:
    """Write smooth JPEG files of the size of photographs; return their paths."""
    draw, files = np.random.default_rng(0), []
    for number in range(IMAGES):
        smooth = Image.fromarray(draw.integers(0, 255, (16, 16, 3), dtype=np.uint8)).resize((CAMERA, CAMERA))
        files.append(folder / f"{number:03d}.jpg")
        smooth.save(files[-1], quality=90)
    return files


@dataclass(frozen=True)
class Decoded(Dataset[Tensor]):
    """The usual way: every file is decoded, resized and normalized each time."""

    files: Sequence[Path]
    transform: Callable[[Image.Image], Tensor]

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Tensor:
        with Image.open(self.files[index]) as picture:
            return self.transform(picture.convert("RGB"))


def epochs(folder: Path) -> dict[str, Callable[[], object]]:
    """Return `decoding` and `cached`: each reads the same images once, in one process with one thread."""
    files = photos(folder)
    steps = [
        v2.Resize((SIDE, SIDE), v2.InterpolationMode.BICUBIC),
        v2.PILToTensor(),
        v2.ToDtype(torch.float32, scale=True),
    ]
    usual = v2.Compose([*steps, v2.Normalize(PREPROCESSING.mean, PREPROCESSING.std)])
    loader = DataLoader(Decoded(files, usual), BATCH, shuffle=True, num_workers=0)
    names = tuple(file.name for file in files)
    whole = Part(files, np.zeros(IMAGES, np.int64), names, names)
    card = DatasetCard("Photographs", "none", ("all",), "none", "drawn from a seed")
    test = replace(whole.take([0]), names=("test",), groups=("test",))  # must not be empty; only train is read
    splits = Splits(whole, whole.take([]), test, "all")
    data = prepare(card, splits, PREPROCESSING, folder / "cache")
    images = ImageBatches(data.pixels("train"), PREPROCESSING, torch.device("cpu"))
    return {
        "decoding": lambda: [len(batch) for batch in loader],
        "cached": lambda: [len(images.batch(index)) for index in batch_order(IMAGES, BATCH, 0, 0, IMAGES // BATCH)],
    }
