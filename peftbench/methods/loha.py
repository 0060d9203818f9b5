"""LoHa: the entrywise product of two low-rank changes (Hyeon-Woo et al., ICLR 2022)."""

from dataclasses import dataclass
from typing import ClassVar

from peftbench.methods._hub import LowRank
from peftbench.models.plan import Sizes


@dataclass(frozen=True)
class LoHa(LowRank):
    """W' = W + (alpha/r) (B1 A1) * (B2 A2), of rank up to r^2; B1 zero at the start."""

    kind: ClassVar[str] = "LOHA"

    alpha: int = 8

    def options(self) -> Sizes:
        """Rank and scale."""
        return {"r": self.r, "alpha": self.alpha}

    def trained(self, rows: int, columns: int) -> int:
        """Two pairs of factors."""
        return 2 * self.r * (rows + columns)


plugin = LoHa
