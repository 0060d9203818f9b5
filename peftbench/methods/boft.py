"""BOFT with one butterfly factor: rotated blocks of inputs and a scale per output (Liu et al., ICLR 2024)."""

from typing import ClassVar

from peftbench.core.fields import checked
from peftbench.methods._fields import Size
from peftbench.methods._hub import RotatedBlocks
from peftbench.models.plan import Sizes


@checked
class BOFT(RotatedBlocks):
    """y = diag(s) W R x + b, R block-diagonal of Cayley transforms; R starts as the identity, s as one."""

    kind: ClassVar[str] = "BOFT"

    block: Size = 4  # inputs that are rotated together

    def options(self) -> Sizes:
        """Return the block size and one factor: peft ignores further factors if its CUDA kernel was not built."""
        return {"boft_block_size": self.block, "boft_n_butterfly_factor": 1}

    def trained(self, rows: int, columns: int) -> int:
        """Return whole blocks, although only their skew-symmetric part has an effect, and the scales."""
        return columns * self.block + rows


plugin = BOFT
