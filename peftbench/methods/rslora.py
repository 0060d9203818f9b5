"""rsLoRA: LoRA with the scale alpha / sqrt(r), which lets large ranks learn (Kalajdzievski, 2023)."""

from typing import ClassVar

from peftbench.core.fields import AtLeast1, checked
from peftbench.methods._hub import LowRank
from peftbench.models.plan import Sizes


@checked
class RsLoRA(LowRank):
    """y = Wx + b + (alpha / sqrt(r)) B A x, B zero at the start."""

    kind: ClassVar[str] = "LORA"

    alpha: AtLeast1 = 8

    def options(self) -> Sizes:
        """Return LoRA's options with the other scale."""
        return {"r": self.r, "lora_alpha": self.alpha, "use_rslora": True}


plugin = RsLoRA
