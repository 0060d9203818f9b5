"""One adapter a block, behind the MLP (Pfeiffer et al., EACL 2021)."""

from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from peftbench.errors import RequestError
from peftbench.methods._adapters import Bottleneck
from peftbench.methods._sites import blocks, width
from peftbench.methods._stepped import Stepped
from peftbench.models.plan import Plan, Probe, Sizes


@dataclass(frozen=True)
class AdapterPfeiffer(Stepped):
    """x + A(mlp(x)) with A(y) = y + W_up relu(W_down y + b) + b.

    Half the parameters of Houlsby's at the same bottleneck.
    """

    knob: ClassVar[str | None] = "bottleneck"
    merges: ClassVar[bool] = False

    bottleneck: int = 48  # the authors' reduction of the width by 16, on a network of width 768

    def __post_init__(self) -> None:
        if self.bottleneck < 1:
            raise RequestError(f"adapter_pfeiffer: bottleneck = {self.bottleneck} will not do: it is at least 1.")

    def plan(self, vit: nn.Module, probe: Probe) -> Plan:
        """A graft around the scale of the MLP's branch, which is an Identity where there is none."""
        size: Sizes = {"width": width(vit), "r": self.bottleneck, "activation": "relu", "std": 0.02}
        return Plan(grafts={f"{block}.ls2": (Bottleneck, size) for block in blocks(vit)})

    def most(self, vit: nn.Module) -> int:
        """The width."""
        return width(vit)


plugin = AdapterPfeiffer
