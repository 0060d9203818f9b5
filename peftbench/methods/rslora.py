"""rsLoRA: LoRA with the scale alpha / sqrt(r), which lets large ranks learn (Kalajdzievski, 2023)."""

from peftbench.core.fields import checked
from peftbench.methods._hub import LoRAVariant
from peftbench.models.plan import Sizes


@checked
class RsLoRA(LoRAVariant):
    """y = Wx + b + (alpha / sqrt(r)) B A x, B zero at the start."""

    def options(self) -> Sizes:
        """Return LoRA's options with the other scale."""
        return {"r": self.r, "lora_alpha": self.alpha, "use_rslora": True}


plugin = RsLoRA
