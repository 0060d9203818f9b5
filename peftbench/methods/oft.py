"""OFT: rotate the inputs of a layer, block by block (Qiu et al., NeurIPS 2023)."""

from typing import ClassVar

from peftbench.core.fields import checked
from peftbench.methods._fields import Size
from peftbench.methods._hub import RotatedBlocks
from peftbench.models.plan import Sizes


@checked
class OFT(RotatedBlocks):
    """y = W R x + b, R block-diagonal of Cayley transforms of skew-symmetric matrices, the identity at the start."""

    kind: ClassVar[str] = "OFT"

    block: Size = 32  # inputs that are rotated together

    def options(self) -> Sizes:
        """Return the block size."""
        return {"oft_block_size": self.block}

    def trained(self, rows: int, columns: int) -> int:
        """Return half of each block without its diagonal."""
        return columns * (self.block - 1) // 2


plugin = OFT
