"""LoKr: the Kronecker product of a small matrix and a low-rank one (Yeh et al., ICLR 2024)."""

from collections.abc import Sequence
from typing import ClassVar, Literal

from torch import nn

from peftbench.core.fields import AtLeast1, checked
from peftbench.methods._fields import Size
from peftbench.methods._hub import LowRankMethod
from peftbench.models.plan import Sizes


@checked
class LoKr(LowRankMethod):
    """W' = W + (alpha/r) C x (B A), x the Kronecker product; C starts at zero. A large r makes B A one matrix."""

    kind: ClassVar[str] = "LOKR"
    rising: ClassVar[bool] = False

    alpha: AtLeast1 = 8
    factor: Literal[-1] | Size = (
        8  # size of C, as near as the widths divide; -1: as square as can be, fewest parameters
    )

    def options(self) -> Sizes:
        """Return rank, scale and factor."""
        return {"r": self.r, "alpha": self.alpha, "decompose_factor": self.factor}

    def trained(self, rows: int, columns: int) -> int:
        """Return the size of C and of B A, as two factors or as one matrix."""
        (small, tall), (narrow, wide) = divided(rows, self.factor), divided(columns, self.factor)
        whole = 2 * self.r >= max(tall, wide)
        return small * narrow + (tall * wide if whole else self.r * (tall + wide))

    def refuse_misfit(self, vit: nn.Module) -> None:
        """Accept every rank: a larger one makes B A one matrix."""

    def sizes(self, vit: nn.Module) -> Sequence[int]:
        """Return 1 to the rank from which B A is one matrix in every layer."""
        largest = max(divided(side, self.factor)[1] for shape in self.shapes(vit) for side in shape)
        return range(1, (largest + 1) // 2 + 1)


def divided(size: int, factor: int) -> tuple[int, int]:
    """Return two numbers whose product is `size`, the first at most `factor` and at most the second: peft's rule."""
    if factor > 0 and size % factor == 0:
        return factor, size // factor
    most = size if factor == -1 else factor
    first = max(d for d in range(1, size + 1) if size % d == 0 and d * d <= size and d <= most)
    return first, size // first


plugin = LoKr
