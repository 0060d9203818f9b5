"""DeLoRA: low-rank directions of bounded length (Bini et al., ICLR 2025)."""

from dataclasses import dataclass
from typing import ClassVar

from peftbench.methods._hub import LowRank
from peftbench.models.plan import Sizes


@dataclass(frozen=True)
class DeLoRA(LowRank):
    """W' = W + (l/r) B diag(1 / |b_i| |a_i|) A |W|, norms by input, l trained as well; B zero at the start."""

    kind: ClassVar[str] = "DELORA"

    length: int = 15  # l at the start

    def options(self) -> Sizes:
        """Rank and first length."""
        return {"r": self.r, "delora_lambda": self.length}

    def trained(self, rows: int, columns: int) -> int:
        """Two factors and a length."""
        return self.r * (rows + columns) + 1


plugin = DeLoRA
