"""Random augmentation of training images: whole batches on the device, with separate parameters for each image.

The parameters are drawn by numpy from (seed, step), so they are the same on every device and after a resume. `light`
flips and shifts. `medical` applies what keeps a label valid in the modality: a chest X-ray is never flipped upside
down, a CT gets no color jitter, and nothing is mirrored where classes distinguish left from right.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from types import MappingProxyType
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from peftbench.core.contract import DatasetCard, Preprocessing

AugmentationName: TypeAlias = Literal["none", "light", "medical"]
Augment: TypeAlias = Callable[[Tensor, int, int], Tensor]  # batch, seed, step -> batch


@dataclass(frozen=True)
class Policy:
    """The largest changes that keep an image's label valid."""

    mirror: bool = True  # flip horizontally
    upside_down: bool = False  # flip vertically
    quarter_turns: bool = False
    degrees: float = 10.0
    shift: float = 0.05  # share of the side
    zoom: float = 0.1  # 0.9 to 1.1
    brightness: float = 0.1  # share of the range of grey values
    contrast: float = 0.1
    color: float = 0.0  # gain, drawn for each channel


ANY_ORIENTATION = Policy(upside_down=True, quarter_turns=True, color=0.05)  # e.g. slides: no side is up
POLICIES: Mapping[str, Policy] = MappingProxyType(
    {
        "histology": ANY_ORIENTATION,
        "microscopy": ANY_ORIENTATION,
        "dermatoscopy": ANY_ORIENTATION,
        "endoscopy": ANY_ORIENTATION,  # the instrument rotates about its axis
        "fundus": Policy(color=0.05),
        "oct": Policy(degrees=5.0),  # retinal layers are horizontal
        "ct": Policy(),
        "x-ray": Policy(mirror=False),  # the heart is on the left
        "ultrasound": Policy(),  # acoustic shadows point down
        "other": Policy(),
    }
)
_PATTERNS = MappingProxyType(  # searched in a card's modality; the first match wins, so devices come before organs
    {
        "ultrasound": r"ultraso|sonogra",
        "oct": r"\boct\b|coherence",
        "ct": r"\bct\b|computed tomograph",
        "x-ray": r"x-?ray|radiogra|mammogra",
        "fundus": r"fundus",
        "dermatoscopy": r"dermat|dermosc|skin",
        "endoscopy": r"endoscop|colonoscop|gastroscop",
        "histology": r"histolog|patholog",
        "microscopy": r"microscop|cytolog|blood",
    }
)
SIDED = " with sides"  # suffix of a policy name: left and right are different classes


def policy_name(card: DatasetCard) -> str:
    """Return the name of the policy that `medical` uses for a data set; it is part of a job's identity."""
    modality = card.modality.lower()
    name = next((name for name, pattern in _PATTERNS.items() if re.search(pattern, modality)), "other")
    sided = any(re.search(r"\b(left|right)\b", one.lower().replace("_", " ")) for one in card.classes)
    return name + SIDED if sided else name


def policy(name: str) -> Policy:
    """Return the policy of that name; if sides matter, without flips and quarter turns."""
    found = POLICIES[name.removesuffix(SIDED)]
    return replace(found, mirror=False, upside_down=False, quarter_turns=False) if name.endswith(SIDED) else found


def augmentation_for(kind: AugmentationName, policy_: str, preprocessing: Preprocessing) -> Augment | None:
    """Return the augmentation of normalized images (B, 3, S, S), or None for `none`."""
    if kind == "none":
        return None
    return light if kind == "light" else partial(medical, policy=policy(policy_), preprocessing=preprocessing)


def light(batch: Tensor, seed: int, step: int) -> Tensor:
    """Flip each image at random and shift it by up to an eighth of its side; edge pixels fill the gap."""
    draw, side = np.random.default_rng([seed, 11, step]), batch.shape[-1]
    reach = side // 8
    flips, moves = draw.integers(2, size=len(batch)), draw.integers(-reach, reach + 1, size=(len(batch), 2))
    rows, columns = (np.clip(np.arange(side) + move[:, None], 0, side - 1) for move in moves.T)
    columns = np.where(flips[:, None] == 1, columns[:, ::-1], columns)
    image, channel = np.arange(len(batch)), np.arange(batch.shape[1])
    indices = (image[:, None, None, None], channel[:, None, None], rows[:, None, :, None], columns[:, None, None])
    return batch[tuple(_to_device(index, batch) for index in indices)]


def medical(batch: Tensor, seed: int, step: int, *, policy: Policy, preprocessing: Preprocessing) -> Tensor:
    """Rotate, shift, zoom and flip each image and change its brightness, contrast and color within the policy."""
    draw = np.random.default_rng([seed, 13, step])
    far, coins = draw.uniform(-1, 1, (len(batch), 9)), draw.integers(4, size=(len(batch), 3))
    turn = _to_device(_affine(policy, far[:, :4], coins), batch).to(batch)
    grid = F.affine_grid(turn, list(batch.shape), align_corners=False)
    moved = F.grid_sample(batch, grid, padding_mode="border", align_corners=False)
    return _adjust_intensity(moved, policy, _to_device(far[:, 4:], batch).to(batch), preprocessing)


def _to_device(drawn: NDArray[Any], batch: Tensor) -> Tensor:
    """Copy drawn values to the batch's device; from pinned memory, so that the CPU does not wait for a GPU."""
    values = torch.from_numpy(np.ascontiguousarray(drawn))
    return values.pin_memory().to(batch.device, non_blocking=True) if batch.is_cuda else values


def _affine(policy: Policy, far: NDArray[np.float64], coins: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return affine matrices (B, 2, 3) from output to input coordinates in -1..1; `far` scales each limit."""
    angle = np.deg2rad(policy.degrees * far[:, 0]) + policy.quarter_turns * coins[:, 0] * np.pi / 2
    scale = 1 / (1 + policy.zoom * far[:, 1])
    across = np.where(policy.mirror & (coins[:, 1] % 2 == 1), -scale, scale)
    down = np.where(policy.upside_down & (coins[:, 2] % 2 == 1), -scale, scale)
    shift = 2 * policy.shift * far[:, 2:4]
    rows = [[np.cos(angle) * across, -np.sin(angle) * down, shift[:, 0]]]
    rows += [[np.sin(angle) * across, np.cos(angle) * down, shift[:, 1]]]
    return np.moveaxis(np.asarray(rows), -1, 0)


def _adjust_intensity(batch: Tensor, policy: Policy, far: Tensor, preprocessing: Preprocessing) -> Tensor:
    """Change contrast about each image's mean grey, brightness and channel gains; clamp at black and white.

    On pixels in 0..1: new = gain * (mean + contrast * (old - mean) + brightness), which is linear after normalization
    too.
    """
    both = _to_device(np.asarray([preprocessing.mean, preprocessing.std]), batch).to(batch)
    mean, std = both[0, :, None, None], both[1, :, None, None]
    grey = (batch * std + mean).mean((1, 2, 3), keepdim=True)
    contrast = 1 + policy.contrast * far[:, :1, None, None]
    brightness = policy.brightness * far[:, 1:2, None, None]
    gain = 1 + policy.color * far[:, 2:5, None, None]
    slope = gain * contrast
    lift = gain * (grey * (1 - contrast) + brightness)
    lit = batch * slope + (slope * mean + lift - mean) / std
    return lit.clamp(-mean / std, (1 - mean) / std)
