"""C3A: an update of circulant blocks, computed by Fourier transforms (Chen et al., 2024)."""

from collections.abc import Sequence
from typing import ClassVar

from torch import nn

from peftbench.core.fields import checked
from peftbench.methods._fields import Size
from peftbench.methods._hub import HubMethod, common_divisor, divisors
from peftbench.models.plan import Sizes


@checked
class C3A(HubMethod):
    """W' = W + blocks of size `block`, each a circulant matrix given by one row, Xavier-uniform at the start."""

    kind: ClassVar[str] = "C3A"
    rising: ClassVar[bool] = False
    knob: ClassVar[str | None] = "block"
    identity: ClassVar[bool] = False

    block: Size = 32  # the larger, the fewer parameters

    def options(self) -> Sizes:
        """Return the block size."""
        return {"block_size": self.block}

    def trained(self, rows: int, columns: int) -> int:
        """Return one row per block."""
        return rows * columns // self.block

    def sizes(self, vit: nn.Module) -> Sequence[int]:
        """Return the divisors of all inputs and outputs."""
        return divisors(common_divisor(self.shapes(vit)))


plugin = C3A
