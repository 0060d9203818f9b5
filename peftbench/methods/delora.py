"""DeLoRA: low-rank directions with a bounded norm (Bini et al., ICLR 2025)."""

from typing import ClassVar

from peftbench.core.fields import AtLeast1, checked
from peftbench.methods._hub import LowRankMethod
from peftbench.models.plan import Sizes


@checked
class DeLoRA(LowRankMethod):
    """W' = W + (l/r) B diag(1 / |b_i| |a_i|) A diag(|w_j|), w_j the columns of W; l trains, B starts at zero."""

    kind: ClassVar[str] = "DELORA"

    length: AtLeast1 = 15  # l at the start

    def options(self) -> Sizes:
        """Return the rank and the initial norm."""
        return {"r": self.r, "delora_lambda": self.length}

    def trained(self, rows: int, columns: int) -> int:
        """Return the size of two factors and a norm."""
        return self.r * (rows + columns) + 1


plugin = DeLoRA
