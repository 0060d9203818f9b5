"""Adapter+: one adapter behind every block, each of its channels scaled (Steitz and Roth, CVPR 2024)."""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from timm.layers.drop import DropPath
from torch import Tensor, nn

from peftbench.errors import RequestError
from peftbench.methods._adapters import Bottleneck
from peftbench.methods._sites import blocks, width
from peftbench.methods._stepped import Stepped
from peftbench.models.plan import Plan, Probe


class Scaled(Bottleneck):
    """y + s * (W_up gelu(W_down y + b) + b) behind a block, s one number a channel."""

    def __init__(self, base: nn.Module, width: int, r: int, drop_path: float) -> None:
        super().__init__(base, width, r)
        self.scale, self.drop_path = nn.Parameter(torch.ones(width)), DropPath(drop_path)

    @classmethod
    def size(cls, base: nn.Module, **sizes: Any) -> int:  # noqa: ANN401 - the contract's
        """2 r width + r + 2 width."""
        return super().size(base, **sizes) + int(sizes["width"])

    def change(self, y: Tensor) -> Tensor:
        """(..., width) -> (..., width)."""
        out: Tensor = self.scale * self.drop_path(super().change(y))
        return out


@dataclass(frozen=True)
class AdapterPlus(Stepped):
    """The adapter reads the block's output, skip included, and adds to it."""

    knob: ClassVar[str | None] = "bottleneck"
    merges: ClassVar[bool] = False

    bottleneck: int = 8
    drop_path: float = 0.1  # share of the images that go without the adapter in a training step

    def __post_init__(self) -> None:
        if self.bottleneck < 1:
            raise RequestError(f"adapter_plus: bottleneck = {self.bottleneck} will not do: it is at least 1.")
        if not 0 <= self.drop_path < 1:
            raise RequestError(f"adapter_plus: drop_path = {self.drop_path} will not do: it lies in [0, 1).")

    def plan(self, vit: nn.Module, probe: Probe) -> Plan:
        """A graft around every block."""
        size = {"width": width(vit), "r": self.bottleneck, "drop_path": self.drop_path}
        return Plan(grafts=dict.fromkeys(blocks(vit), (Scaled, size)))

    def most(self, vit: nn.Module) -> int:
        """The width."""
        return width(vit)


plugin = AdapterPlus
