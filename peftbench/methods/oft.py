"""OFT: the inputs of a layer turned, block by block (Qiu et al., NeurIPS 2023)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from peftbench.methods._hub import HubMethod, common, divisors
from peftbench.models.plan import Sizes


@dataclass(frozen=True)
class OFT(HubMethod):
    """y = W R x + b, R block-diagonal: rotations by the Cayley transform of skew-symmetric matrices; none at first."""

    kind: ClassVar[str] = "OFT"
    knob: ClassVar[str | None] = "block"

    block: int = 32  # inputs that are turned together

    def options(self) -> Sizes:
        """The block's size."""
        return {"oft_block_size": self.block}

    def trained(self, rows: int, columns: int) -> int:
        """Half of each block without its diagonal."""
        return columns * (self.block - 1) // 2

    def sizes(self, vit: nn.Module) -> Sequence[int]:
        """What divides the inputs of every site."""
        return divisors(common(self.shapes(vit), side=1), least=2)


plugin = OFT
