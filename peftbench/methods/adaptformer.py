"""AdaptFormer: a bottleneck beside the MLP, fed ahead of its norm (Chen et al., NeurIPS 2022)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torch.nn import functional as F

from peftbench.errors import PluginError, RequestError
from peftbench.methods._sites import blocks, width
from peftbench.methods._stepped import Stepped
from peftbench.models.plan import Graft, Plan, Probe


class Parallel(Graft):
    """A block whose MLP branch gets scale * up(dropout(relu(down(x)))) on top, with no norm of its own."""

    def __init__(self, base: nn.Module, bottleneck: int, scale: float, dropout: float) -> None:
        super().__init__(base)
        if type(base) is not Block:  # its subclasses add up their branches in other ways
            raise PluginError(f"adaptformer knows timm's plain Block, not {type(base).__name__}.")
        width = base.get_parameter("norm1.weight").numel()
        self.down, self.up = nn.Linear(width, bottleneck), nn.Linear(bottleneck, width)
        self.scale, self.dropout = scale, nn.Dropout(dropout)
        nn.init.kaiming_uniform_(self.down.weight, a=math.sqrt(5))
        for tensor in (self.down.bias, self.up.weight, self.up.bias):
            nn.init.zeros_(tensor)

    @classmethod
    def size(cls, base: nn.Module, **sizes: Any) -> int:  # noqa: ANN401 - the contract's
        """2 D b + b + D."""
        width, bottleneck = base.get_parameter("norm1.weight").numel(), int(sizes["bottleneck"])
        return 2 * width * bottleneck + bottleneck + width

    def forward(self, x: Tensor, **mask: Any) -> Tensor:  # noqa: ANN401 - what of it there is depends on timm's version
        """(B, N, D) -> (B, N, D); `mask` is for attention."""
        block: Any = self.base
        attended = block.attn(block.norm1(x), **mask)
        x = x + block.drop_path1(block.ls1(attended))
        beside = self.scale * self.up(self.dropout(F.relu(self.down(x))))
        out: Tensor = x + block.drop_path2(block.ls2(block.mlp(block.norm2(x)))) + beside
        return out


@dataclass(frozen=True)
class AdaptFormer(Stepped):
    """x + mlp(norm(x)) + scale * up(relu(down(x))) in every block; `up` starts at zero."""

    knob: ClassVar[str | None] = "bottleneck"
    merges: ClassVar[bool] = False  # a non-linear branch

    bottleneck: int = 64
    scale: float = 0.1
    dropout: float = 0.1  # behind the ReLU

    def __post_init__(self) -> None:
        if self.bottleneck < 1:
            raise RequestError(f"adaptformer: bottleneck = {self.bottleneck} will not do: it is at least 1.")
        if not math.isfinite(self.scale) or self.scale == 0:
            raise RequestError(f"adaptformer: scale = {self.scale} will not do: it is a number other than 0.")
        if not 0 <= self.dropout < 1:
            raise RequestError(f"adaptformer: dropout = {self.dropout} will not do: it lies in [0, 1).")

    def plan(self, vit: nn.Module, probe: Probe) -> Plan:
        """A graft around every block."""
        return Plan(grafts={block: (Parallel, self.values()) for block in blocks(vit)})

    def most(self, vit: nn.Module) -> int:
        """The width: a wider one were no bottleneck."""
        return width(vit)


plugin = AdaptFormer
