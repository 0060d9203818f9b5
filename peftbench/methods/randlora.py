"""RandLoRA: scaled sums of random low-rank matrices, together of full rank (Albert et al., ICLR 2025)."""

from typing import ClassVar

from peftbench.core.fields import Positive, checked
from peftbench.methods._fields import Seed, Size
from peftbench.methods._hub import SharedHub
from peftbench.models.plan import Sizes


@checked
class RandLoRA(SharedHub):
    """W' = W + scale sum_j B_j diag(l_j) A diag(g_j), A and B_j of rank r frozen and shared, l zero at the start.

    The sum has as many terms as full rank needs: the larger r, the fewer parameters.
    """

    kind: ClassVar[str] = "RANDLORA"
    rising: ClassVar[bool] = False

    r: Size = 32
    scale: Positive = 10.0
    key: Seed = 0

    def options(self) -> Sizes:
        """Return the options; the bases follow from the key and are not saved."""
        alpha = round(self.scale * self.r)
        return {"r": self.r, "randlora_alpha": alpha, "projection_prng_key": self.key, "save_projection": False}

    def trained(self, rows: int, columns: int) -> int:
        """Return the size of two diagonals for each term of the sum."""
        small = min(rows, columns)
        return -(-small // self.r) * (self.r + small)


plugin = RandLoRA
