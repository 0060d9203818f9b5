"""C3A: a change made of circulant blocks, computed by Fourier transforms (Chen et al., 2024)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from peftbench.methods._hub import HubMethod, common, divisors
from peftbench.models.plan import Sizes


@dataclass(frozen=True)
class C3A(HubMethod):
    """W' = W + blocks of size `block`, each a circulant matrix given by one row, Xavier-uniform at the start."""

    kind: ClassVar[str] = "C3A"
    rising: ClassVar[bool] = False
    knob: ClassVar[str | None] = "block"
    identity: ClassVar[bool] = False

    block: int = 32  # the larger, the fewer parameters

    def options(self) -> Sizes:
        """The block's size."""
        return {"block_size": self.block}

    def trained(self, rows: int, columns: int) -> int:
        """One row a block."""
        return rows * columns // self.block

    def sizes(self, vit: nn.Module) -> Sequence[int]:
        """What divides all widths."""
        return divisors(common(self.shapes(vit)))


plugin = C3A
