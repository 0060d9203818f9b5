"""rsLoRA: LoRA whose scale keeps large ranks learning (Kalajdzievski, 2023)."""

from dataclasses import dataclass
from typing import ClassVar

from peftbench.methods._hub import LowRank
from peftbench.models.plan import Sizes


@dataclass(frozen=True)
class RsLoRA(LowRank):
    """y = Wx + b + (alpha / sqrt(r)) B A x, B zero at the start."""

    kind: ClassVar[str] = "LORA"

    alpha: int = 8

    def options(self) -> Sizes:
        """LoRA's with the other scale."""
        return {"r": self.r, "lora_alpha": self.alpha, "use_rslora": True}


plugin = RsLoRA
