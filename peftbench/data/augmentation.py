"""Training images changed at random: whole batches on the device, each image for itself.

What happens to an image is drawn by numpy from (seed, step), so that every device and every resumed run sees the same.
`light` mirrors and moves. `medical` does what keeps a label true in the modality at hand: a chest X-ray is never turned
upside down, the grey values of a CT are no colours, and nothing is mirrored where classes tell left from right.
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

from peftbench.core.contract import Card, Preprocessing

Kind: TypeAlias = Literal["none", "light", "medical"]
Augment: TypeAlias = Callable[[Tensor, int, int], Tensor]  # batch, seed, step -> batch


@dataclass(frozen=True)
class Policy:
    """How far an image may be changed without changing what it shows."""

    mirror: bool = True  # left and right
    upside_down: bool = False
    quarter_turns: bool = False
    degrees: float = 10.0
    shift: float = 0.05  # of a side
    zoom: float = 0.1  # 0.9 to 1.1
    brightness: float = 0.1  # of the range of grey values
    contrast: float = 0.1
    colour: float = 0.0  # gain of each channel for itself


ANY_WAY_UP = Policy(upside_down=True, quarter_turns=True, colour=0.05)  # a slide has no top
POLICIES: Mapping[str, Policy] = MappingProxyType(
    {
        "histology": ANY_WAY_UP,
        "microscopy": ANY_WAY_UP,
        "dermatoscopy": ANY_WAY_UP,
        "endoscopy": ANY_WAY_UP,  # the instrument turns about its axis
        "fundus": Policy(colour=0.05),
        "oct": Policy(degrees=5.0),  # layers lie level
        "ct": Policy(),
        "x-ray": Policy(mirror=False),  # the heart lies on the left
        "ultrasound": Policy(),  # shadows fall downwards
        "other": Policy(),
    }
)
_WORDS = MappingProxyType(  # in a card's modality, the first that fits: the machine before what it looks at
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
SIDED = " with sides"  # behind a policy's name: left and right are different classes


def policy_name(card: Card) -> str:
    """What `medical` means for a data set: part of a job's identity."""
    words = card.modality.lower()
    name = next((name for name, pattern in _WORDS.items() if re.search(pattern, words)), "other")
    sided = any(re.search(r"\b(left|right)\b", one.lower().replace("_", " ")) for one in card.classes)
    return name + SIDED if sided else name


def policy(name: str) -> Policy:
    """The policy of that name; where sides matter, without mirroring and without turning over."""
    found = POLICIES[name.removesuffix(SIDED)]
    return replace(found, mirror=False, upside_down=False, quarter_turns=False) if name.endswith(SIDED) else found


def make(kind: Kind, policy_: str, preprocessing: Preprocessing) -> Augment | None:
    """The augmentation of standardised images (B, 3, S, S), or None for `none`."""
    if kind == "none":
        return None
    return light if kind == "light" else partial(medical, policy=policy(policy_), preprocessing=preprocessing)


def light(batch: Tensor, seed: int, step: int) -> Tensor:
    """Each image mirrored or not, and moved by up to an eighth of its side; its edge pixels fill what comes in."""
    draw, side = np.random.default_rng([seed, 11, step]), batch.shape[-1]
    reach = side // 8
    flips, moves = draw.integers(2, size=len(batch)), draw.integers(-reach, reach + 1, size=(len(batch), 2))
    rows, columns = (np.clip(np.arange(side) + move[:, None], 0, side - 1) for move in moves.T)
    columns = np.where(flips[:, None] == 1, columns[:, ::-1], columns)
    image, channel = np.arange(len(batch)), np.arange(batch.shape[1])
    places = (image[:, None, None, None], channel[:, None, None], rows[:, None, :, None], columns[:, None, None])
    return batch[tuple(_there(place, batch) for place in places)]


def medical(batch: Tensor, seed: int, step: int, *, policy: Policy, preprocessing: Preprocessing) -> Tensor:
    """Each image turned, moved, zoomed, mirrored, lit and coloured as far as the policy allows."""
    draw = np.random.default_rng([seed, 13, step])
    far, coins = draw.uniform(-1, 1, (len(batch), 9)), draw.integers(4, size=(len(batch), 3))
    turn = _there(_affine(policy, far[:, :4], coins), batch).to(batch)
    grid = F.affine_grid(turn, list(batch.shape), align_corners=False)
    moved = F.grid_sample(batch, grid, padding_mode="border", align_corners=False)
    return _lit(moved, policy, _there(far[:, 4:], batch).to(batch), preprocessing)


def _there(drawn: NDArray[Any], batch: Tensor) -> Tensor:
    """Where the batch is, without waiting for a card: what lies in pinned memory is copied on the side."""
    made = torch.from_numpy(np.ascontiguousarray(drawn))
    return made.pin_memory().to(batch.device, non_blocking=True) if batch.is_cuda else made


def _affine(policy: Policy, far: NDArray[np.float64], coins: NDArray[np.int64]) -> NDArray[np.float64]:
    """From places in the new image to places in the old one (B, 2, 3), in -1..1; `far` is the part of each limit."""
    angle = np.deg2rad(policy.degrees * far[:, 0]) + policy.quarter_turns * coins[:, 0] * np.pi / 2
    scale = 1 / (1 + policy.zoom * far[:, 1])
    across = np.where(policy.mirror & (coins[:, 1] % 2 == 1), -scale, scale)
    down = np.where(policy.upside_down & (coins[:, 2] % 2 == 1), -scale, scale)
    shift = 2 * policy.shift * far[:, 2:4]
    rows = [[np.cos(angle) * across, -np.sin(angle) * down, shift[:, 0]]]
    rows += [[np.sin(angle) * across, np.cos(angle) * down, shift[:, 1]]]
    return np.moveaxis(np.asarray(rows), -1, 0)


def _lit(batch: Tensor, policy: Policy, far: Tensor, preprocessing: Preprocessing) -> Tensor:
    """Contrast about each image's mean grey, brightness, the gains of the channels; cut off at black and white.

    On pixels in 0..1: new = gain * (mean + contrast * (old - mean) + brightness). Standardised, that is linear as well.
    """
    both = _there(np.asarray([preprocessing.mean, preprocessing.std]), batch).to(batch)
    mean, std = both[0, :, None, None], both[1, :, None, None]
    grey = (batch * std + mean).mean((1, 2, 3), keepdim=True)
    contrast = 1 + policy.contrast * far[:, :1, None, None]
    brightness = policy.brightness * far[:, 1:2, None, None]
    gain = 1 + policy.colour * far[:, 2:5, None, None]
    slope = gain * contrast
    lift = gain * (grey * (1 - contrast) + brightness)
    lit = batch * slope + (slope * mean + lift - mean) / std
    return lit.clamp(-mean / std, (1 - mean) / std)
