"""Partial fine-tuning: train the last blocks and the final norm (Yosinski et al., NeurIPS 2014)."""

from typing import ClassVar

from torch import nn

from peftbench.core.fields import AtLeast1, checked
from peftbench.errors import RequestError
from peftbench.methods._sites import blocks
from peftbench.methods._stepped import Stepped
from peftbench.models.plan import Plan, Probe


@checked
class LastBlocks(Stepped):
    """Backward stops below these blocks, so a step costs less than training something in every block."""

    knob: ClassVar[str | None] = "last"

    last: AtLeast1 = 1  # number of blocks

    def plan(self, vit: nn.Module, probe: Probe) -> Plan:
        """Select every tensor of the last blocks and of the modules after them."""
        if self.last > self.most(vit):
            raise RequestError(
                f"last_blocks: last must be at most {self.most(vit)}, the blocks of this network, got {self.last}."
            )
        whole = (*blocks(vit)[-self.last :], "norm", "fc_norm", "attn_pool")
        return Plan(tune=frozenset(n for n, _ in vit.named_parameters() if n.startswith(tuple(f"{w}." for w in whole))))

    def most(self, vit: nn.Module) -> int:
        """Return the number of blocks."""
        return len(blocks(vit))


plugin = LastBlocks
