"""VB-LoRA: low-rank factors composed from a bank of vectors that all layers share (Li et al., NeurIPS 2024)."""

from collections import Counter
from collections.abc import Sequence
from typing import ClassVar

from torch import nn

from peftbench.core.fields import checked
from peftbench.errors import RequestError
from peftbench.methods._fields import Size
from peftbench.methods._hub import SharedHub, common_divisor
from peftbench.models.plan import Sizes

MOST_VECTORS = 4096


@checked
class VBLoRA(SharedHub):
    """LoRA whose A and B consist of rows of `length`; each is a softmax mixture of the `top` vectors by logit."""

    kind: ClassVar[str] = "VBLORA"
    knob: ClassVar[str | None] = "vectors"
    identity: ClassVar[bool] = False
    idle: ClassVar[tuple[str, ...]] = (  # vectors that are not selected get no gradient
        "vblora_logits_A.default",
        "vblora_logits_B.default",
        "vblora_vector_bank.default",
    )

    r: Size = 4
    vectors: Size = 256
    length: Size = 32  # divides all widths
    top: Size = 2

    def options(self) -> Sizes:
        """Return rank and bank."""
        return {"r": self.r, "num_vectors": self.vectors, "vector_length": self.length, "topk": self.top}

    def refuse_misfit(self, vit: nn.Module) -> None:
        """Raise RequestError also if `length` does not divide every width."""
        super().refuse_misfit(vit)
        if (width := common_divisor(self.shapes(vit))) % self.length:
            raise RequestError(f"vblora: length must divide {width} for these projections, got {self.length}.")

    def trained(self, rows: int, columns: int) -> int:
        """Return one logit per vector for each row of both factors."""
        return self.r * (rows + columns) // self.length * self.vectors

    def total(self, shapes: Counter[tuple[int, int]]) -> int:
        """Return the parameters of the layers and the bank."""
        return super().total(shapes) + self.vectors * self.length

    def sizes(self, vit: nn.Module) -> Sequence[int]:
        """Return `top`, the number of vectors in a mixture, to MOST_VECTORS."""
        return range(self.top, MOST_VECTORS + 1)


plugin = VBLoRA
