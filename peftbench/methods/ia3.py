"""(IA)^3: outputs of the attention's projection and inputs of the last layer rescaled (Liu et al., NeurIPS 2022)."""

from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from peftbench.methods._hub import HubMethod
from peftbench.methods._sites import PROJECTIONS, blocks
from peftbench.models.peft_tuners import HubTuner
from peftbench.models.plan import Graft, Sizes


@dataclass(frozen=True)
class IA3(HubMethod):
    """y = l * (Wx + b), at fc2 y = W (l * x) + b; l is one at the start."""

    kind: ClassVar[str] = "IA3"

    sites: tuple[str, ...] = ("qkv", "fc2")

    def graft(self, site: str) -> tuple[type[Graft], Sizes]:
        """Behind the layer, or before it where it is the feed-forward's last."""
        return HubTuner, {"kind": self.kind, "feedforward_modules": "base" if site == "fc2" else "none"}

    def count(self, vit: nn.Module) -> int:
        """A factor for each output, for each input of fc2."""
        sides = [(f"{block}.{PROJECTIONS[s]}.weight", s == "fc2") for block in blocks(vit) for s in self.sites]
        return sum(vit.get_parameter(name).shape[int(before)] for name, before in sides)


plugin = IA3
