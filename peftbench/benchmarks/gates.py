"""Figures with bounds, for `peftbench bench` on a CPU or a GPU; how they are timed, and random masks."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

import numpy as np
import torch
from torch import Tensor, nn

from peftbench.models.top_k import backbone_size
from peftbench.profiling import hardware
from peftbench.storage.files import write_json


@dataclass(frozen=True)
class Gate:
    """One measured figure and its bound."""

    name: str
    value: float
    bound: float
    at_least: bool = False  # the bound is a lower one
    decides: bool = False  # a figure outside the bound fails the bench

    @property
    def passed(self) -> bool:
        """Whether the figure is within the bound."""
        return self.value >= self.bound if self.at_least else self.value <= self.bound


def random_mask(vit: nn.Module, share: float, *, clustered: bool) -> dict[str, Tensor]:
    """Return entries drawn at random, or `clustered` as importance often is: half of them in the patch kernel."""
    draw = np.random.default_rng(0)
    k = round(share * backbone_size(vit))
    sizes = {
        n: p.numel()
        for n, p in vit.named_parameters()
        if not clustered or n == "patch_embed.proj.weight" or "fc1.weight" in n
    }
    if not clustered:
        ends = np.cumsum(list(sizes.values()))
        flat = np.sort(draw.choice(int(ends[-1]), k, replace=False))
        cut = np.split(flat, np.searchsorted(flat, ends))
        return {
            n: torch.from_numpy(c - e + s) for (n, s), c, e in zip(sizes.items(), cut, ends, strict=False) if len(c)
        }
    heavy = {n: (k // 2 if n.startswith("patch") else k // 2 // (len(sizes) - 1)) for n in sizes}
    span = {n: sizes[n] if n.startswith("patch") else sizes[n] // 8 for n in sizes}
    return {
        n: torch.from_numpy(np.sort(draw.choice(span[n], min(heavy[n], span[n]), replace=False)))
        for n in sizes
        if heavy[n]
    }


def dense_mask(tensor: Tensor, index: Tensor) -> Tensor:
    """Return a tensor of the same shape, 1 at the flat indices and 0 elsewhere."""
    return torch.zeros(tensor.numel()).index_fill(0, index, 1.0).view_as(tensor)


def write(gates: Sequence[Gate], device: str, file: Path) -> None:
    """Write the figures, with the machine that they were measured on, as JSON."""
    rows = [asdict(gate) | {"passed": gate.passed} for gate in gates]
    write_json(file, {"environment": hardware.environment(device), "gates": rows})


def ratios(variants: Mapping[str, Callable[[], object]], base: str, rounds: int) -> dict[str, float]:
    """Return the median over rounds of each variant's CPU seconds over the base's: in turn, after a warm-up round."""
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(rounds + 1):
        for name, work in variants.items():
            started = time.process_time()
            work()
            seconds[name].append(time.process_time() - started)
    return {
        name: median(s / b for s, b in zip(found[1:], seconds[base][1:], strict=True))
        for name, found in seconds.items()
    }
