"""LoKr: the Kronecker product of a small matrix and a low-rank one (Yeh et al., ICLR 2024)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from peftbench.errors import RequestError
from peftbench.methods._hub import LowRank
from peftbench.models.plan import Sizes


@dataclass(frozen=True)
class LoKr(LowRank):
    """W' = W + (alpha/r) C x (B A), x the Kronecker product; C zero at the start. B A is one piece where r is large."""

    kind: ClassVar[str] = "LOKR"
    rising: ClassVar[bool] = False

    alpha: int = 8
    factor: int = 8  # the size of C, as near as the widths divide; -1: as square as can be, the smallest count

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.factor != -1 and self.factor < 1:
            raise RequestError(f"lokr: factor = {self.factor} will not do: it is at least 1, or -1.")

    def options(self) -> Sizes:
        """Rank, scale and how to divide."""
        return {"r": self.r, "alpha": self.alpha, "decompose_factor": self.factor}

    def trained(self, rows: int, columns: int) -> int:
        """C, and B A in two factors or in one piece."""
        (small, tall), (narrow, wide) = divided(rows, self.factor), divided(columns, self.factor)
        whole = 2 * self.r >= max(tall, wide)
        return small * narrow + (tall * wide if whole else self.r * (tall + wide))

    def refuse_misfit(self, vit: nn.Module) -> None:
        """A larger rank means one piece."""

    def sizes(self, vit: nn.Module) -> Sequence[int]:
        """Up to the rank from which on every site has one piece."""
        largest = max(divided(side, self.factor)[1] for shape in self.shapes(vit) for side in shape)
        return range(1, (largest + 1) // 2 + 1)


def divided(size: int, factor: int) -> tuple[int, int]:
    """Two numbers whose product is `size`, the first at most `factor` and at most the second: peft's rule."""
    if factor > 0 and size % factor == 0:
        return factor, size // factor
    most = size if factor == -1 else factor
    first = max(d for d in range(1, size + 1) if size % d == 0 and d * d <= size and d <= most)
    return first, size // first


plugin = LoKr
