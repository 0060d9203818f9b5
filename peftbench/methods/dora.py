"""DoRA: LoRA on the direction of each output's weights, with a separate magnitude (Liu et al., ICML 2024)."""

from peftbench.core.fields import checked
from peftbench.methods._hub import LoRAVariant
from peftbench.models.plan import Sizes


@checked
class DoRA(LoRAVariant):
    """W' = m (W + (alpha/r) B A) / |W + (alpha/r) B A|, norms per output; m (out) starts as |W|, B as zero."""

    def options(self) -> Sizes:
        """Return LoRA's options with a magnitude per output."""
        return {"r": self.r, "lora_alpha": self.alpha, "use_dora": True}

    def trained(self, rows: int, columns: int) -> int:
        """Return the size of LoRA's factors and the magnitudes."""
        return self.r * (rows + columns) + rows


plugin = DoRA
