"""Adapters as first proposed: one after attention, one after the MLP (Houlsby et al., ICML 2019)."""

from typing import ClassVar

from torch import nn

from peftbench.core.fields import checked
from peftbench.methods._adapters import Bottleneck
from peftbench.methods._fields import Size
from peftbench.methods._sites import blocks, branch_ends, norms, width
from peftbench.methods._stepped import Stepped
from peftbench.models.plan import Plan, Probe


@checked
class AdapterHoulsby(Stepped):
    """x + A(f(x)) with A(y) = y + W_up gelu(W_down y + b) + b, for both branches f of every block.

    In a block with LayerScale (DINOv2) the adapter comes after it, directly before the skip connection.
    """

    knob: ClassVar[str | None] = "bottleneck"
    merges: ClassVar[bool] = False

    bottleneck: Size = 64
    norms: bool = False  # also train the scale and shift of every norm, as the authors do

    def plan(self, vit: nn.Module, probe: Probe) -> Plan:
        """Wrap the end of each branch."""
        size = {"width": width(vit), "r": self.bottleneck}
        trained = tuple(f"{name}." for name in norms(vit)) if self.norms else ()
        return Plan(
            tune=frozenset(name for name, _ in vit.named_parameters() if name.startswith(trained)),
            grafts={end: (Bottleneck, size) for block in blocks(vit) for end in branch_ends(vit, block)},
        )


plugin = AdapterHoulsby
