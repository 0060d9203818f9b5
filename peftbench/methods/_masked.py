"""Base class of the methods that train k = round(ratio N) single weights of the backbone."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

from torch import nn

from peftbench.core.fields import Share, checked
from peftbench.errors import RequestError
from peftbench.models import top_k
from peftbench.models.method import Match, Method, edge


@checked
class Masked(Method):
    """Train any number of weights, from one to all candidates; the others keep their values bit for bit."""

    knob: ClassVar[str | None] = "ratio"

    ratio: Share = 0.01  # share of the backbone's weights

    def candidates_in(self, vit: nn.Module) -> list[str]:
        """Return the tensors whose weights may be selected: all, unless a subclass overrides it."""
        return [name for name, _ in vit.named_parameters()]

    def ceiling(self, vit: nn.Module) -> int:
        """Return the number of candidate weights."""
        return sum(vit.get_parameter(name).numel() for name in self.candidates_in(vit))

    def count(self, vit: nn.Module) -> int:
        """Return k = round(ratio N). Raises RequestError if there are fewer candidate weights, or if k is 0."""
        k, available = round(self.ratio * top_k.backbone_size(vit)), self.ceiling(vit)
        if k < 1 or k > available:
            raise RequestError(
                f"The ratio {self.ratio:g} selects {k} weights, but there are 1 to {available} candidates on this "
                "network; choose another ratio."
            )
        return k

    def within(self, budget: int, vit: nn.Module) -> Match:
        """Return the ratio that trains `budget` weights, as far as there are candidates."""
        available = self.ceiling(vit)
        reached = max(1, min(budget, available))
        ratio = top_k.shortest_share(reached, top_k.backbone_size(vit))
        return Match(replace(self, ratio=ratio), reached, edge(budget, (1, available)))
