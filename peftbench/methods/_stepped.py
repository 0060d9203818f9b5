"""Base class of the methods whose count grows by the same amount with each step of an integer knob."""

from __future__ import annotations

from torch import nn

from peftbench.core.fields import checked
from peftbench.methods._sites import width
from peftbench.models.method import Match, Method, edge


@checked
class Stepped(Method):
    """Two counts determine all others, so a budget is met by a division instead of a search."""

    def most(self, vit: nn.Module) -> int:
        """Return the largest legal value of the knob on this network, the width by default; the smallest is 1."""
        return width(vit)

    def sizes(self, vit: nn.Module) -> range:
        """Return 1 to `most`."""
        return range(1, self.most(vit) + 1)

    def within(self, budget: int, vit: nn.Module) -> Match:
        """Return the size whose count is nearest to `budget`, ties to the smaller."""
        most, least = self.most(vit), self.at_size(1).count(vit)
        step = self.at_size(2).count(vit) - least if most > 1 else 1
        whole, rest = divmod(budget - least, step)
        value = min(max(1, 1 + whole + (2 * rest > step)), most)
        counts = least, least + (most - 1) * step
        return Match(self.at_size(value), least + (value - 1) * step, edge(budget, counts))
