"""The last blocks and the final norm, whole: partial fine-tuning (Yosinski et al., NeurIPS 2014)."""

from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from peftbench.errors import RequestError
from peftbench.methods._sites import blocks
from peftbench.methods._stepped import Stepped
from peftbench.models.plan import Plan, Probe


@dataclass(frozen=True)
class LastBlocks(Stepped):
    """Backward stops below them, so a step costs less than with any method that trains something in every block."""

    knob: ClassVar[str | None] = "last"

    last: int = 1  # how many blocks

    def __post_init__(self) -> None:
        if self.last < 1:
            raise RequestError(f"last_blocks: last = {self.last} will not do: it is at least 1.")

    def plan(self, vit: nn.Module, probe: Probe) -> Plan:
        """Every tensor of the last blocks and of what lies behind them."""
        if self.last > self.most(vit):
            raise RequestError(
                f"last_blocks: last = {self.last} will not do: this network has {self.most(vit)} blocks."
            )
        whole = (*blocks(vit)[-self.last :], "norm", "fc_norm", "attn_pool")
        return Plan(tune=frozenset(n for n, _ in vit.named_parameters() if n.startswith(tuple(f"{w}." for w in whole))))

    def most(self, vit: nn.Module) -> int:
        """All blocks."""
        return len(blocks(vit))


plugin = LastBlocks
