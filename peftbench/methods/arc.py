"""ARC: adapters composed from two projections that all blocks share (Dong et al., NeurIPS 2023)."""

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from peftbench.core.fields import Fraction, checked
from peftbench.methods._adapters import Ahead
from peftbench.methods._fields import Size
from peftbench.methods._sites import blocks, width
from peftbench.methods._stepped import Stepped
from peftbench.models.plan import Plan, Probe, Shared, Sizes

BRANCHES = {"attention": "attn.qkv", "mlp": "mlp.fc1"}


class Projection(Shared):
    """P (width, r): the down-projection, and transposed the up-projection."""

    def __init__(self, width: int, r: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(nn.init.xavier_uniform_(torch.empty(width, r)))


class Recomposed(Ahead):
    """x + (x P diag(c)) P^T + b before a Linear layer; c and b belong to the block and start at zero."""

    def __init__(self, base: nn.Module, r: int, dropout: float, shared: Projection) -> None:
        super().__init__(base)
        self.shared = shared
        self.dropout = nn.Dropout(dropout)
        self.scale = nn.Parameter(torch.zeros(r))
        self.bias = nn.Parameter(torch.zeros(len(shared.weight)))

    @classmethod
    def size(cls, base: nn.Module, **sizes: Any) -> int:  # noqa: ANN401 - the contract's
        """Return r + width."""
        return int(sizes["r"]) + base.get_parameter("weight").shape[1]

    def change(self, x: Tensor) -> Tensor:
        """Return what is added to x: (..., in) -> (..., in)."""
        hidden = self.dropout(x @ self.shared.weight * self.scale)
        out: Tensor = hidden @ self.shared.weight.T + self.bias
        return out


@checked
class ARC(Stepped):
    """One projection for the inputs of all attentions, one for those of all MLPs; each block has its own scales."""

    knob: ClassVar[str | None] = "r"

    r: Size = 50
    dropout: Fraction = 0.1

    def plan(self, vit: nn.Module, probe: Probe) -> Plan:
        """Wrap the first layer of each branch."""
        size: Sizes = {"r": self.r, "dropout": self.dropout}
        return Plan(
            shared={branch: (Projection, {"width": width(vit), "r": self.r}) for branch in BRANCHES},
            grafts={
                f"{block}.{layer}": (Recomposed, {**size, "shared": branch})
                for block in blocks(vit)
                for branch, layer in BRANCHES.items()
            },
        )


plugin = ARC
