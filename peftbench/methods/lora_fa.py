"""LoRA-FA: LoRA whose first matrix is frozen at its random values (Zhang et al., 2023)."""

from typing import Any, ClassVar

from torch import nn

from peftbench.core.fields import checked
from peftbench.methods._fields import Sites
from peftbench.methods.lora import LoRA
from peftbench.models.peft_tuners import LoRATuner


class FrozenDown(LoRATuner):
    """W x + b + (alpha / r) B (A x), A frozen; the delta holds A beside B."""

    def __init__(self, base: nn.Module, r: int, alpha: int, dropout: float = 0.0) -> None:
        super().__init__(base, r, alpha, dropout)
        self.get_submodule("base.lora_A").requires_grad_(requires_grad=False)

    @classmethod
    def size(cls, base: nn.Module, **sizes: Any) -> int:  # noqa: ANN401 - the contract's
        """Return r out."""
        return int(sizes["r"]) * len(base.get_parameter("weight"))


@checked
class LoRAFA(LoRA):
    """Backward needs A x (r numbers per token) of a layer instead of x, which LoRA keeps in memory."""

    tuner: ClassVar[type[LoRATuner]] = FrozenDown

    sites: Sites = ("qkv",)


plugin = LoRAFA
