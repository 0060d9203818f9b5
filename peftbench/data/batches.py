"""Batches for training and evaluation: decoded images or stored features as float tensors on the device."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Float, Float32
from numpy.typing import NDArray
from torch import Tensor

from peftbench.core.contract import Preprocessing

RESIDENT_SHARE = 0.25  # of a GPU's free memory that images may occupy for the whole job


class ImageBatches:
    """uint8 images (n, 3, S, S) as normalized float batches, written into buffers that are reused.

    With `resident` all images are copied to the device at the first batch; otherwise each batch is copied by itself.
    """

    def __init__(
        self,
        pixels: NDArray[np.uint8],
        preprocessing: Preprocessing,
        device: torch.device,
        *,
        resident: bool = False,
    ) -> None:
        self.pixels, self.device, self.resident = pixels, device, resident
        self.mean = 255 * torch.tensor(preprocessing.mean, device=device).view(3, 1, 1)
        self.scale = 1 / (255 * torch.tensor(preprocessing.std, device=device).view(3, 1, 1))
        self._buffers: dict[int, tuple[NDArray[np.uint8], Tensor]] = {}

    def __len__(self) -> int:
        return len(self.pixels)

    def batch(self, index: Sequence[int] | NDArray[np.int64] | Tensor) -> Float32[Tensor, "batch 3 side side"]:
        """Return the images at `index`, (B, 3, S, S) float32; valid until the next call with the same batch size."""
        raw, out = self._buffer(len(index))
        if self.resident:
            chosen = self._on_device[torch.as_tensor(index, device=self.device)]
            return out.copy_(chosen).sub_(self.mean).mul_(self.scale)
        positions = np.asarray(index)
        for i in np.argsort(positions, kind="stable"):  # in file order, so that the disk is read sequentially
            raw[i] = self.pixels[positions[i]]
        return out.copy_(torch.from_numpy(raw)).sub_(self.mean).mul_(self.scale)

    @cached_property
    def _on_device(self) -> Tensor:
        return torch.from_numpy(np.array(self.pixels)).to(self.device)

    def _buffer(self, images: int) -> tuple[NDArray[np.uint8], Tensor]:
        """Return the buffers for a batch size: uint8 on the CPU and float32 on the device."""
        if images not in self._buffers:
            shape = (images, *self.pixels.shape[1:])
            out = torch.empty(shape, dtype=torch.float32, device=self.device)
            self._buffers[images] = np.empty(shape, np.uint8), out
        return self._buffers[images]


class FeatureBatches:
    """Stored features (n, D) in place of images: the input of jobs that train only a head."""

    resident = True

    def __init__(self, features: Tensor) -> None:
        self.features = features

    def __len__(self) -> int:
        return len(self.features)

    def batch(self, index: Sequence[int] | NDArray[np.int64] | Tensor) -> Float[Tensor, "batch ..."]:
        """Return the features at `index`, (B, D)."""
        return self.features[torch.as_tensor(index, device=self.features.device)]


def fits_on_device(size: int, device: torch.device) -> bool:
    """Return whether `size` bytes of images may stay in a GPU's memory; False on a CPU, which maps the file instead."""
    return device.type == "cuda" and size <= RESIDENT_SHARE * torch.cuda.mem_get_info(device)[0]


def batch_order(images: int, batch: int, seed: int, first: int, last: int) -> Iterator[NDArray[np.int64]]:
    """Yield the indices (batch,) of steps first..last-1: one permutation of all images after another.

    They depend on `seed` and the step alone, so a resumed job sees the same batches.
    """
    for step in range(first, last):
        positions = np.arange(step * batch, (step + 1) * batch)
        epochs = {
            e: np.random.default_rng([seed, 7, e]).permutation(images) for e in np.unique(positions // images).tolist()
        }
        yield np.asarray(
            [epochs[e][i] for e, i in zip((positions // images).tolist(), (positions % images).tolist(), strict=True)]
        )
