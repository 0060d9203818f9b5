"""DoRA: a low-rank change of the direction of each output's weights, their length apart (Liu et al., ICML 2024)."""

from dataclasses import dataclass
from typing import ClassVar

from peftbench.methods._hub import LowRank
from peftbench.models.plan import Sizes


@dataclass(frozen=True)
class DoRA(LowRank):
    """W' = m (W + (alpha/r) B A) / |W + (alpha/r) B A|, norms by output; m (out) starts as |W|, B as zero."""

    kind: ClassVar[str] = "LORA"

    alpha: int = 8

    def options(self) -> Sizes:
        """LoRA's with a length for each output."""
        return {"r": self.r, "lora_alpha": self.alpha, "use_dora": True}

    def trained(self, rows: int, columns: int) -> int:
        """LoRA's factors and the lengths."""
        return self.r * (rows + columns) + rows


plugin = DoRA
