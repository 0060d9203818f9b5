"""(IA)^3: rescale the outputs of attention's projection and the inputs of fc2 (Liu et al., NeurIPS 2022)."""

from typing import ClassVar

from torch import nn

from peftbench.core.fields import checked
from peftbench.methods._fields import Sites
from peftbench.methods._hub import HubMethod
from peftbench.methods._sites import blocks
from peftbench.models.peft_tuners import HubTuner
from peftbench.models.plan import Graft, Sizes
from peftbench.models.tensor_names import PROJECTIONS


@checked
class IA3(HubMethod):
    """y = l * (Wx + b), at fc2 y = W (l * x) + b; l starts at one."""

    kind: ClassVar[str] = "IA3"

    sites: Sites = ("qkv", "fc2")

    def graft(self, site: str) -> tuple[type[Graft], Sizes]:
        """Scale the outputs of a layer, the inputs of fc2."""
        return HubTuner, {"kind": self.kind, "feedforward_modules": "base" if site == "fc2" else "none"}

    def count(self, vit: nn.Module) -> int:
        """Return one factor for each output, for each input of fc2."""
        sides = [(f"{block}.{PROJECTIONS[s]}.weight", s == "fc2") for block in blocks(vit) for s in self.sites]
        return sum(vit.get_parameter(name).shape[int(before)] for name, before in sides)


plugin = IA3
