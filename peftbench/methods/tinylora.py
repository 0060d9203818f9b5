"""TinyLoRA: a few numbers per layer, which change it along its singular directions (Morris et al., 2026)."""

from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar

from torch import nn

from peftbench.core.fields import checked
from peftbench.methods._fields import Seed, Size
from peftbench.methods._hub import HubMethod
from peftbench.models.plan import Plan, Probe, Sizes

MOST_NUMBERS = 1024  # per layer; more are better spent on a rank


@checked
class TinyLoRA(HubMethod):
    """W' = W + U S^(1/2) (sum_i v_i P_i) S^(1/2) V', U S V' the r largest singular directions, P_i (r, r) random.

    v starts at zero.
    """

    kind: ClassVar[str] = "TINYLORA"
    knob: ClassVar[str | None] = "u"

    u: Size = 64  # numbers per layer
    r: Size = 2
    key: Seed = 42

    def options(self) -> Sizes:
        """Return numbers and rank."""
        return {"u": self.u, "r": self.r, "init_weights": True}

    def plan(self, vit: nn.Module, probe: Probe) -> Plan:
        """Give every layer projections of its own."""
        plan = super().plan(vit, probe)
        seeded = enumerate(plan.grafts.items(), start=self.key)
        return replace(
            plan, grafts={site: (kind, {**sizes, "projection_seed": n}) for n, (site, (kind, sizes)) in seeded}
        )

    def trained(self, rows: int, columns: int) -> int:
        """Return the numbers per layer."""
        return self.u

    def sizes(self, vit: nn.Module) -> Sequence[int]:
        """Return 1 to MOST_NUMBERS."""
        return range(1, MOST_NUMBERS + 1)


plugin = TinyLoRA
