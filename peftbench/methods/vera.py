"""VeRA: two scaling vectors a site around random projections that all sites share (Kopiczko et al., ICLR 2024)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from peftbench.methods._hub import SharedHub
from peftbench.models.plan import Sizes


@dataclass(frozen=True)
class VeRA(SharedHub):
    """y = Wx + b + diag(b') B diag(d) A x; A (r, in), B (out, r) frozen and drawn from `key`, b' zero at first."""

    kind: ClassVar[str] = "VERA"

    r: int = 256
    d: float = 0.1  # at the start
    key: int = 0

    def options(self) -> Sizes:
        """Projections that a seed brings back are not saved."""
        return {"r": self.r, "d_initial": self.d, "projection_prng_key": self.key, "save_projection": False}

    def trained(self, rows: int, columns: int) -> int:
        """The two vectors."""
        return rows + self.r

    def sizes(self, vit: nn.Module) -> Sequence[int]:
        """No rank is too large for random projections; here is where their memory ends to be small."""
        return range(1, 4097)


plugin = VeRA
