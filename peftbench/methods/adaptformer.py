"""AdaptFormer: a bottleneck in parallel to the MLP, without a norm at its input (Chen et al., NeurIPS 2022)."""

from __future__ import annotations

import math
from typing import Any, ClassVar

from timm.models.eva import EvaBlock
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torch.nn import functional as F

from peftbench.core.fields import Fraction, checked
from peftbench.errors import PluginError
from peftbench.methods._fields import Factor, Size
from peftbench.methods._sites import blocks, scale_branch
from peftbench.methods._stepped import Stepped
from peftbench.models.plan import Graft, Plan, Probe


class Parallel(Graft):
    """A block to whose MLP branch scale * up(dropout(relu(down(x)))) is added, x the input of the branch's norm."""

    def __init__(self, base: nn.Module, bottleneck: int, scale: float, dropout: float) -> None:
        super().__init__(base)
        if type(base) not in {Block, EvaBlock}:  # subclasses add up their branches in other ways
            raise PluginError(f"adaptformer supports timm's Block and EvaBlock, not {type(base).__name__}.")
        width = base.get_parameter("norm1.weight").numel()
        self.down, self.up = nn.Linear(width, bottleneck), nn.Linear(bottleneck, width)
        self.scale, self.dropout = scale, nn.Dropout(dropout)
        nn.init.kaiming_uniform_(self.down.weight, a=math.sqrt(5))
        for tensor in (self.down.bias, self.up.weight, self.up.bias):
            nn.init.zeros_(tensor)

    @classmethod
    def size(cls, base: nn.Module, **sizes: Any) -> int:  # noqa: ANN401 - the contract's
        """Return 2 D b + b + D."""
        width, bottleneck = base.get_parameter("norm1.weight").numel(), int(sizes["bottleneck"])
        return 2 * width * bottleneck + bottleneck + width

    def forward(self, x: Tensor, **mask: Any) -> Tensor:  # noqa: ANN401 - its keywords depend on timm's version
        """(B, N, D) -> (B, N, D); `mask` (and rotary positions) is passed to attention."""
        block: Any = self.base
        attended = block.attn(block.norm1(x), **mask)
        x = x + block.drop_path1(scale_branch(block, 1, attended))
        adapted = self.scale * self.up(self.dropout(F.relu(self.down(x))))
        out: Tensor = x + block.drop_path2(scale_branch(block, 2, block.mlp(block.norm2(x)))) + adapted
        return out


@checked
class AdaptFormer(Stepped):
    """x + mlp(norm(x)) + scale * up(relu(down(x))) in every block; `up` starts at zero."""

    knob: ClassVar[str | None] = "bottleneck"
    merges: ClassVar[bool] = False  # the adapter is not linear

    bottleneck: Size = 64
    scale: Factor = 0.1
    dropout: Fraction = 0.1  # after the ReLU

    def plan(self, vit: nn.Module, probe: Probe) -> Plan:
        """Wrap every block."""
        return Plan(grafts={block: (Parallel, self.values()) for block in blocks(vit)})


plugin = AdaptFormer
