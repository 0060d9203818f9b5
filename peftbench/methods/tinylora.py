"""TinyLoRA: a handful of numbers a site, moved along its singular directions (2026)."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from torch import nn

from peftbench.methods._hub import HubMethod
from peftbench.models.plan import Plan, Probe, Sizes


@dataclass(frozen=True)
class TinyLoRA(HubMethod):
    """W' = W + U S (sum_i v_i P_i) V', U S V' r largest singular directions, P_i (r, r) random; v zero first."""

    kind: ClassVar[str] = "TINYLORA"
    knob: ClassVar[str | None] = "u"

    u: int = 64  # numbers a site
    r: int = 2
    key: int = 42

    def options(self) -> Sizes:
        """Numbers and rank."""
        return {"u": self.u, "r": self.r, "init_weights": True}

    def plan(self, vit: nn.Module, probe: Probe) -> Plan:
        """Every site has projections of its own."""
        plan = super().plan(vit, probe)
        seeded = enumerate(plan.grafts.items(), start=self.key)
        return replace(
            plan, grafts={site: (kind, {**sizes, "projection_seed": n}) for n, (site, (kind, sizes)) in seeded}
        )

    def trained(self, rows: int, columns: int) -> int:
        """The numbers."""
        return self.u

    def sizes(self, vit: nn.Module) -> Sequence[int]:
        """At most a thousand: more are better spent on a rank."""
        return range(1, 1025)


plugin = TinyLoRA
