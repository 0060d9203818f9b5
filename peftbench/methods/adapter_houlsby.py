"""Adapters as first proposed: one behind attention, one behind the MLP (Houlsby et al., ICML 2019)."""

from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from peftbench.errors import RequestError
from peftbench.methods._adapters import Bottleneck
from peftbench.methods._sites import blocks, norms, width
from peftbench.methods._stepped import Stepped
from peftbench.models.plan import Plan, Probe


@dataclass(frozen=True)
class AdapterHoulsby(Stepped):
    """x + A(f(x)) with A(y) = y + W_up gelu(W_down y + b) + b, for both branches f of every block.

    Where a block scales its branches (DINOv2), the adapter reads what the scale gives: it stands right before the skip.
    """

    knob: ClassVar[str | None] = "bottleneck"
    merges: ClassVar[bool] = False

    bottleneck: int = 64
    norms: bool = False  # train the scale and shift of every norm, too, as the authors do

    def __post_init__(self) -> None:
        if self.bottleneck < 1:
            raise RequestError(f"adapter_houlsby: bottleneck = {self.bottleneck} will not do: it is at least 1.")

    def plan(self, vit: nn.Module, probe: Probe) -> Plan:
        """A graft around the scale of each branch, which is an Identity where there is none."""
        size = {"width": width(vit), "r": self.bottleneck}
        chosen = tuple(f"{name}." for name in norms(vit)) if self.norms else ()
        return Plan(
            tune=frozenset(name for name, _ in vit.named_parameters() if name.startswith(chosen)),
            grafts={f"{block}.{scale}": (Bottleneck, size) for block in blocks(vit) for scale in ("ls1", "ls2")},
        )

    def most(self, vit: nn.Module) -> int:
        """The width."""
        return width(vit)


plugin = AdapterHoulsby
