"""Adapter+: one adapter after every block, with a scale per channel (Steitz and Roth, CVPR 2024)."""

from typing import Any, ClassVar

import torch
from timm.layers.drop import DropPath
from torch import Tensor, nn

from peftbench.core.fields import Fraction, checked
from peftbench.methods._adapters import Bottleneck
from peftbench.methods._fields import Size
from peftbench.methods._sites import blocks, width
from peftbench.methods._stepped import Stepped
from peftbench.models.plan import Plan, Probe


class Scaled(Bottleneck):
    """y + s * (W_up gelu(W_down y + b) + b) after a block, with one s per channel."""

    def __init__(self, base: nn.Module, width: int, r: int, drop_path: float) -> None:
        super().__init__(base, width, r)
        self.scale, self.drop_path = nn.Parameter(torch.ones(width)), DropPath(drop_path)

    @classmethod
    def size(cls, base: nn.Module, **sizes: Any) -> int:  # noqa: ANN401 - the contract's
        """Return 2 r width + r + 2 width."""
        return super().size(base, **sizes) + int(sizes["width"])

    def change(self, y: Tensor) -> Tensor:
        """Return what is added to y: (..., width) -> (..., width)."""
        out: Tensor = self.scale * self.drop_path(super().change(y))
        return out


@checked
class AdapterPlus(Stepped):
    """Each adapter reads a block's output, the skip connection included, and adds to it."""

    knob: ClassVar[str | None] = "bottleneck"
    merges: ClassVar[bool] = False

    bottleneck: Size = 8
    drop_path: Fraction = 0.1  # probability that an image skips the adapter in a training step

    def plan(self, vit: nn.Module, probe: Probe) -> Plan:
        """Wrap every block."""
        size = {"width": width(vit), "r": self.bottleneck, "drop_path": self.drop_path}
        return Plan(grafts=dict.fromkeys(blocks(vit), (Scaled, size)))


plugin = AdapterPlus
