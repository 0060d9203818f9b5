"""What `peftbench bench` finds, on a CPU or a card: figures with bounds; and the single weights that both train."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from peftbench.profiling import hardware


@dataclass(frozen=True)
class Gate:
    """One measured figure and the bound it should keep."""

    name: str
    value: float
    bound: float
    at_least: bool = False  # else: at most
    decides: bool = False  # whether a failure fails the bench

    @property
    def passed(self) -> bool:
        """Whether the bound is kept."""
        return self.value >= self.bound if self.at_least else self.value <= self.bound


def picks(vit: nn.Module, share: float, clustered: bool) -> dict[str, Tensor]:  # noqa: FBT001
    """Single weights at random, or as importance puts them on a real ViT: half in the patch kernel."""
    draw = np.random.default_rng(0)
    k = round(share * sum(p.numel() for p in vit.parameters()))
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


def write(gates: Sequence[Gate], device: str, file: Path) -> None:
    """The figures with the machine they were taken on."""
    rows = [asdict(gate) | {"passed": gate.passed} for gate in gates]
    file.write_text(json.dumps({"environment": hardware.environment(device), "gates": rows}, indent=1))
