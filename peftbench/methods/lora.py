"""LoRA: a low-rank update of chosen projections (Hu et al., ICLR 2022), computed by Hugging Face peft."""

from collections.abc import Mapping
from typing import ClassVar, Literal

from torch import nn

from peftbench.core.fields import AtLeast1, Fraction, checked
from peftbench.methods._fields import LoRASites, Size
from peftbench.methods._sites import ALIASES, blocks, thirds
from peftbench.methods._stepped import Stepped
from peftbench.models.peft_tuners import LoRAThirds, LoRATuner
from peftbench.models.plan import Graft, Plan, Probe, Sizes
from peftbench.models.tensor_names import PROJECTIONS


@checked
class LoRA(Stepped):
    """y = Wx + b + (alpha/r) B A x with A (r, in) uniform and B (out, r) zero, so step 0 is the pretrained network.

    On timm's fused qkv one A serves query, key and value.
    """

    knob: ClassVar[str | None] = "r"
    aliases: ClassVar[Mapping[str, str]] = ALIASES
    tuner: ClassVar[type[LoRATuner]] = LoRATuner

    r: Size = 8
    alpha: AtLeast1 | Literal["r"] = 8  # "r": the scale alpha/r is 1 for every rank
    sites: LoRASites = ("qkv",)  # q, k, v: parts of the fused qkv, each with its own A
    dropout: Fraction = 0.0

    def plan(self, vit: nn.Module, probe: Probe) -> Plan:
        """Wrap every chosen projection of every block."""
        alpha = self.r if self.alpha == "r" else self.alpha
        whole: Sizes = {"r": self.r, "alpha": alpha, "dropout": self.dropout}
        adapters: dict[str, tuple[type[Graft], Sizes]] = {
            PROJECTIONS[site]: (self.tuner, whole) for site in self.sites if site in PROJECTIONS
        }
        if parts := thirds(self.sites):
            options: Sizes = {"parts": parts, "r": self.r, "lora_alpha": alpha, "lora_dropout": self.dropout}
            adapters[PROJECTIONS["qkv"]] = (LoRAThirds, options)
        return Plan(
            grafts={f"{block}.{layer}": adapter for block in blocks(vit) for layer, adapter in adapters.items()}
        )


plugin = LoRA
