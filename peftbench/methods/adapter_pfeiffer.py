"""One adapter per block, after the MLP (Pfeiffer et al., EACL 2021)."""

from typing import ClassVar

from torch import nn

from peftbench.core.fields import checked
from peftbench.methods._adapters import Bottleneck
from peftbench.methods._fields import Size
from peftbench.methods._sites import blocks, branch_ends, width
from peftbench.methods._stepped import Stepped
from peftbench.models.plan import Plan, Probe, Sizes


@checked
class AdapterPfeiffer(Stepped):
    """x + A(mlp(x)) with A(y) = y + W_up relu(W_down y + b) + b.

    It has half the parameters of Houlsby's adapters at the same bottleneck.
    """

    knob: ClassVar[str | None] = "bottleneck"
    merges: ClassVar[bool] = False

    bottleneck: Size = 48  # the authors divide the width by 16; this is for width 768

    def plan(self, vit: nn.Module, probe: Probe) -> Plan:
        """Wrap the end of the MLP branch."""
        size: Sizes = {"width": width(vit), "r": self.bottleneck, "activation": "relu", "std": 0.02}
        return Plan(grafts={branch_ends(vit, block)[1]: (Bottleneck, size) for block in blocks(vit)})


plugin = AdapterPfeiffer
