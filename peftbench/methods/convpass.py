"""Convpass: a small convolution over the patches in parallel to each branch of a block (Jie and Deng, 2022)."""

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import torch
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torch.nn import functional as F

from peftbench.core.fields import Fraction, checked
from peftbench.errors import PluginError
from peftbench.methods._fields import Factor, Size
from peftbench.methods._sites import blocks, width
from peftbench.models.method import Method
from peftbench.models.plan import Graft, Plan, Probe


class Bypass(nn.Module):
    """W_up q(conv(q(W_down x))), q the quick GELU.

    The convolution treats the patches as an image and every other token as an image of one pixel.
    """

    def __init__(self, width: int, r: int, conv: str, dropout: float) -> None:
        super().__init__()
        self.down, self.up, self.dropout = nn.Linear(width, r), nn.Linear(r, width), nn.Dropout(dropout)
        self.kernel, self.bias = nn.Parameter(torch.zeros(r, r, 3, 3)), nn.Parameter(torch.zeros(r))
        (nn.init.dirac_ if conv == "identity" else nn.init.xavier_uniform_)(self.kernel)
        nn.init.xavier_uniform_(self.down.weight)
        for tensor in (self.down.bias, self.up.weight, self.up.bias):
            nn.init.zeros_(tensor)

    def forward(self, x: Tensor, alone: int, rows: int) -> Tensor:
        """(B, alone + rows * columns, width) -> the same shape; `alone` tokens come before the patches."""
        hidden = _quick_gelu(self.down(x))
        image = hidden[:, alone:].transpose(1, 2).unflatten(2, (rows, -1))  # (B, r, rows, columns)
        patches = F.conv2d(image, self.kernel, self.bias, padding=1).flatten(2).transpose(1, 2)
        others = F.linear(hidden[:, :alone], self.kernel[:, :, 1, 1], self.bias)
        out: Tensor = self.up(self.dropout(_quick_gelu(torch.cat([others, patches], dim=1))))
        return out


class Bypassed(Graft):
    """A block with a bypass in parallel to each branch; both read the branch's norm."""

    def __init__(self, base: nn.Module, r: int, scale: float, conv: str, dropout: float, alone: int, rows: int) -> None:
        super().__init__(base)
        if type(base) is not Block:  # its subclasses add up their branches in other ways
            raise PluginError(f"convpass supports timm's plain Block, not {type(base).__name__}.")
        width = base.get_parameter("norm1.weight").numel()
        self.scale, self.alone, self.rows = scale, alone, rows
        self.attention, self.mlp = (Bypass(width, r, conv, dropout) for _ in range(2))

    @classmethod
    def size(cls, base: nn.Module, **sizes: Any) -> int:  # noqa: ANN401 - the contract's
        """Return 2 (2 r D + r + D + 9 r^2 + r), for two bypasses."""
        width, r = base.get_parameter("norm1.weight").numel(), int(sizes["r"])
        return 2 * (2 * r * width + r + width + 9 * r**2 + r)

    def forward(self, x: Tensor, **_: object) -> Tensor:
        """(B, N, D) -> (B, N, D)."""
        block: Any = self.base
        y = block.norm1(x)
        x = x + block.drop_path1(block.ls1(block.attn(y))) + self._bypass(self.attention, y, block.drop_path1)
        y = block.norm2(x)
        out: Tensor = x + block.drop_path2(block.ls2(block.mlp(y))) + self._bypass(self.mlp, y, block.drop_path2)
        return out

    def _bypass(self, bypass: nn.Module, y: Tensor, drop_path: nn.Module) -> Tensor:
        out: Tensor = self.scale * drop_path(bypass(y, self.alone, self.rows))
        return out


@checked
class Convpass(Method):
    """x + f(norm x) + s bypass(norm x) for both branches f of every block; W_up starts at zero."""

    knob: ClassVar[str | None] = "r"
    merges: ClassVar[bool] = False  # it is not linear
    idle: ClassVar[tuple[str, ...]] = ("kernel",)  # a class-token readout uses only the center of the last kernels

    r: Size = 8
    scale: Factor = 1.0  # s; the authors tune it for each data set among 0.01, 0.1, 1, 10 and 100
    conv: Literal["identity", "xavier"] = "identity"  # initialization of the kernel; the authors tune it per data set
    dropout: Fraction = 0.1

    def plan(self, vit: nn.Module, probe: Probe) -> Plan:
        """Wrap every block."""
        net: Any = vit
        layout = {"alone": int(net.num_prefix_tokens), "rows": int(net.patch_embed.grid_size[0])}
        return Plan(grafts={block: (Bypassed, {**self.values(), **layout}) for block in blocks(vit)})

    def sizes(self, vit: nn.Module) -> Sequence[int]:
        """Return 1 to the width."""
        return range(1, width(vit) + 1)


def _quick_gelu(x: Tensor) -> Tensor:
    return x * torch.sigmoid(1.702 * x)


plugin = Convpass
