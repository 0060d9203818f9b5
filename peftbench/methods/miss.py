"""MiSS: one small matrix repeated along the inputs (Kang and Yin, 2024; it was called Bone before)."""

from dataclasses import dataclass
from typing import ClassVar

from peftbench.methods._hub import LowRank


@dataclass(frozen=True)
class MiSS(LowRank):
    """y = Wx + b + D' s(x), s(x) the sums of every r-th group of inputs (r), D (r, out) zero at the start."""

    kind: ClassVar[str] = "MISS"

    def trained(self, rows: int, columns: int) -> int:
        """The small matrix."""
        return self.r * rows


plugin = MiSS
