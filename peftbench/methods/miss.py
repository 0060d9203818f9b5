"""MiSS: one small matrix repeated along the inputs (Kang and Yin, 2024; formerly called Bone)."""

from typing import ClassVar

from peftbench.core.fields import checked
from peftbench.methods._hub import LowRankMethod


@checked
class MiSS(LowRankMethod):
    """y = Wx + b + D' s(x), s(x) the sums of every r-th group of inputs (r), D (r, out) zero at the start."""

    kind: ClassVar[str] = "MISS"

    def trained(self, rows: int, columns: int) -> int:
        """Return the size of the small matrix."""
        return self.r * rows


plugin = MiSS
