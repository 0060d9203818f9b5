"""What every method has in common whose count rises by the same amount with each step of an integer knob."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from peftbench.models.method import Fit, Method, edge


@dataclass(frozen=True)
class Stepped(Method):
    """Two counts say all others, so a budget is a division and not a search."""

    def most(self, vit: nn.Module) -> int:
        """The largest legal value of the knob on this network; the smallest is 1."""
        raise NotImplementedError

    def sizes(self, vit: nn.Module) -> range:
        """Every integer up to the largest."""
        return range(1, self.most(vit) + 1)

    def within(self, budget: int, vit: nn.Module) -> Fit:
        """The nearest count, ties to the smaller."""
        most, least = self.most(vit), self.turned(1).count(vit)
        step = self.turned(2).count(vit) - least if most > 1 else 1
        whole, rest = divmod(budget - least, step)
        value = min(max(1, 1 + whole + (2 * rest > step)), most)
        counts = least, least + (most - 1) * step
        return Fit(self.turned(value), least + (value - 1) * step, edge(budget, counts))
