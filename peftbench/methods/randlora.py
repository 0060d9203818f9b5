"""RandLoRA: scaled sums of random low-rank matrices, of full rank together (Albert et al., ICLR 2025)."""

from dataclasses import dataclass
from typing import ClassVar

from peftbench.methods._hub import SharedHub
from peftbench.models.plan import Sizes


@dataclass(frozen=True)
class RandLoRA(SharedHub):
    """W' = W + scale sum_j B_j diag(l_j) A diag(g_j), A and B_j of rank r frozen and shared, l zero at the start.

    As many j as it takes for full rank: the larger r, the fewer parameters.
    """

    kind: ClassVar[str] = "RANDLORA"
    rising: ClassVar[bool] = False

    r: int = 32
    scale: float = 10.0
    key: int = 0

    def options(self) -> Sizes:
        """Projections that a seed brings back are not saved."""
        alpha = round(self.scale * self.r)
        return {"r": self.r, "randlora_alpha": alpha, "projection_prng_key": self.key, "save_projection": False}

    def trained(self, rows: int, columns: int) -> int:
        """Two diagonals for each of the sum's terms."""
        small = min(rows, columns)
        return -(-small // self.r) * (self.r + small)


plugin = RandLoRA
