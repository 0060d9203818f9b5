"""VB-LoRA: low-rank factors put together from a bank of vectors that all sites share (Li et al., NeurIPS 2024)."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from peftbench.errors import RequestError
from peftbench.methods._hub import SharedHub, common
from peftbench.models.plan import Sizes


@dataclass(frozen=True)
class VBLoRA(SharedHub):
    """LoRA whose A and B are rows of `length`; each is a softmax mix of the `top` of `vectors` with the best logits."""

    kind: ClassVar[str] = "VBLORA"
    knob: ClassVar[str | None] = "vectors"
    identity: ClassVar[bool] = False
    idle: ClassVar[tuple[str, ...]] = (  # what is not chosen waits
        "vblora_logits_A.default",
        "vblora_logits_B.default",
        "vblora_vector_bank.default",
    )

    r: int = 4
    vectors: int = 256
    length: int = 32  # divides all widths
    top: int = 2

    def options(self) -> Sizes:
        """Rank and bank."""
        return {"r": self.r, "num_vectors": self.vectors, "vector_length": self.length, "topk": self.top}

    def refuse_misfit(self, vit: nn.Module) -> None:
        """Whole vectors only."""
        super().refuse_misfit(vit)
        if (width := common(self.shapes(vit))) % self.length:
            raise RequestError(f"vblora: length = {self.length} will not do for these projections: it divides {width}.")

    def trained(self, rows: int, columns: int) -> int:
        """A logit for each vector and each place of both factors."""
        return self.r * (rows + columns) // self.length * self.vectors

    def total(self, shapes: Counter[tuple[int, int]]) -> int:
        """The sites and the bank."""
        return super().total(shapes) + self.vectors * self.length

    def sizes(self, vit: nn.Module) -> Sequence[int]:
        """From the number that is mixed; logits, not vectors, are what grows."""
        return range(self.top, 4097)


plugin = VBLoRA
