"""LoRA: a low-rank update of chosen projections (Hu et al., ICLR 2022), computed by Hugging Face peft."""

from typing import ClassVar, Literal

from torch import nn

from peftbench.core.fields import AtLeast1, Fraction, checked
from peftbench.methods._fields import Sites, Size
from peftbench.methods._sites import PROJECTIONS, blocks
from peftbench.methods._stepped import Stepped
from peftbench.models.peft_tuners import LoRATuner
from peftbench.models.plan import Plan, Probe


@checked
class LoRA(Stepped):
    """y = Wx + b + (alpha/r) B A x with A (r, in) uniform and B (out, r) zero, so step 0 is the pretrained network.

    On timm's fused qkv one A serves query, key and value.
    """

    knob: ClassVar[str | None] = "r"
    tuner: ClassVar[type[LoRATuner]] = LoRATuner

    r: Size = 8
    alpha: AtLeast1 | Literal["r"] = 8  # "r": the scale alpha/r is 1 for every rank
    sites: Sites = ("qkv",)
    dropout: Fraction = 0.0

    def plan(self, vit: nn.Module, probe: Probe) -> Plan:
        """Wrap every chosen projection of every block."""
        alpha = self.r if self.alpha == "r" else self.alpha
        places = [f"{block}.{PROJECTIONS[site]}" for block in blocks(vit) for site in self.sites]
        return Plan(grafts=dict.fromkeys(places, (self.tuner, {"r": self.r, "alpha": alpha, "dropout": self.dropout})))


plugin = LoRA
