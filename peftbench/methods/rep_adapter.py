"""RepAdapter: a linear bottleneck before each branch, which can be folded into the next layer (Luo et al., 2023)."""

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from peftbench.core.fields import Fraction, checked
from peftbench.errors import RequestError
from peftbench.methods._adapters import Ahead
from peftbench.methods._fields import Factor, Size
from peftbench.methods._sites import blocks, width
from peftbench.models.method import Method
from peftbench.models.plan import Plan, Probe


class GroupedBottleneck(Ahead):
    """x + s (B (A x + a) + b) before a Linear layer; B is block-diagonal in `groups` blocks and starts at zero."""

    def __init__(self, base: nn.Module, r: int, groups: int, scale: float, dropout: float) -> None:
        super().__init__(base)
        width = base.get_parameter("weight").shape[1]
        self.scale, self.dropout = scale, nn.Dropout(dropout)
        self.down = nn.Linear(width, r)
        self.up = nn.Parameter(torch.zeros(groups, r // groups, width // groups))
        self.bias = nn.Parameter(torch.zeros(width))
        nn.init.xavier_uniform_(self.down.weight)
        nn.init.zeros_(self.down.bias)

    @classmethod
    def size(cls, base: nn.Module, **sizes: Any) -> int:  # noqa: ANN401 - the contract's
        """Return r width + r + r width / groups + width."""
        width, r = base.get_parameter("weight").shape[1], int(sizes["r"])
        return r * width + r + r * width // int(sizes["groups"]) + width

    def change(self, x: Tensor) -> Tensor:
        """Return what is added to x: (..., in) -> (..., in)."""
        hidden = self.dropout(self.down(x)).unflatten(-1, (len(self.up), 1, -1))  # (..., groups, 1, r / groups)
        out: Tensor = (hidden @ self.up).flatten(-3) + self.bias
        return self.scale * out


@checked
class RepAdapter(Method):
    """A bottleneck between norm1 and attention and between norm2 and the MLP, linear, so that it can be merged."""

    knob: ClassVar[str | None] = "r"

    r: Size = 8
    groups: Size = 2
    scale: Factor = 1.0  # s; the authors tune it for each data set among 0.1, 0.5, 1, 5 and 10
    dropout: Fraction = 0.1

    def __post_init__(self) -> None:
        if self.r % self.groups:
            raise RequestError(f"rep_adapter: r must be a multiple of groups ({self.groups}), got {self.r}.")

    def plan(self, vit: nn.Module, probe: Probe) -> Plan:
        """Wrap the first layer of each branch."""
        if width(vit) % self.groups:
            raise RequestError(f"rep_adapter: groups must divide the width {width(vit)}, got {self.groups}.")
        sites = [f"{block}.{layer}" for block in blocks(vit) for layer in ("attn.qkv", "mlp.fc1")]
        return Plan(grafts={site: (GroupedBottleneck, self.values()) for site in sites})

    def sizes(self, vit: nn.Module) -> Sequence[int]:
        """Return the multiples of `groups` up to the width."""
        return range(self.groups, width(vit) + 1, self.groups)


plugin = RepAdapter
