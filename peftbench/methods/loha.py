"""LoHa: the entrywise product of two low-rank updates (Hyeon-Woo et al., ICLR 2022)."""

from typing import ClassVar

from peftbench.core.fields import AtLeast1, checked
from peftbench.methods._hub import LowRankMethod
from peftbench.models.plan import Sizes


@checked
class LoHa(LowRankMethod):
    """W' = W + (alpha/r) (B1 A1) * (B2 A2), of rank up to r^2; B1 starts at zero."""

    kind: ClassVar[str] = "LOHA"

    alpha: AtLeast1 = 8

    def options(self) -> Sizes:
        """Return rank and scale."""
        return {"r": self.r, "alpha": self.alpha}

    def trained(self, rows: int, columns: int) -> int:
        """Return the size of two pairs of factors."""
        return 2 * self.r * (rows + columns)


plugin = LoHa
