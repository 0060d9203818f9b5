"""VeRA: two scaling vectors per layer around random projections that all layers share (Kopiczko et al., ICLR 2024)."""

from collections.abc import Sequence
from typing import ClassVar

from torch import nn

from peftbench.core.fields import Positive, checked
from peftbench.methods._fields import Seed, Size
from peftbench.methods._hub import SharedHub
from peftbench.models.plan import Sizes

LARGEST_RANK = 4096  # random projections may have any rank; above this their memory is no longer small


@checked
class VeRA(SharedHub):
    """y = Wx + b + diag(b') B diag(d) A x; A (r, in) and B (out, r) frozen, drawn from `key`; b' starts at zero."""

    kind: ClassVar[str] = "VERA"

    r: Size = 256
    d: Positive = 0.1  # initial value
    key: Seed = 0

    def options(self) -> Sizes:
        """Return the options; the projections follow from the key and are not saved."""
        return {"r": self.r, "d_initial": self.d, "projection_prng_key": self.key, "save_projection": False}

    def trained(self, rows: int, columns: int) -> int:
        """Return the size of the two vectors."""
        return rows + self.r

    def sizes(self, vit: nn.Module) -> Sequence[int]:
        """Return 1 to LARGEST_RANK."""
        return range(1, LARGEST_RANK + 1)


plugin = VeRA
