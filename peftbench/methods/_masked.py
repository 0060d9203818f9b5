"""What every method has in common that trains k = round(ratio N) single entries of the backbone's tensors."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from torch import nn

from peftbench.errors import RequestError
from peftbench.models import top_k
from peftbench.models.method import Fit, Method, edge


@dataclass(frozen=True)
class Masked(Method):
    """Any count can be had, from one entry to all candidates; the others stay as they were, bit for bit."""

    knob: ClassVar[str | None] = "ratio"

    ratio: float = 0.01  # share of the backbone's weights

    def __post_init__(self) -> None:
        if not 0 < self.ratio <= 1:
            raise RequestError(f"ratio = {self.ratio} will not do: it lies above 0 and at most at 1.")

    def candidates_in(self, vit: nn.Module) -> list[str]:
        """The tensors whose entries may be chosen; all of them unless a method says otherwise."""
        return [name for name, _ in vit.named_parameters()]

    def ceiling(self, vit: nn.Module) -> int:
        """How many entries there are to choose from."""
        return sum(vit.get_parameter(name).numel() for name in self.candidates_in(vit))

    def count(self, vit: nn.Module) -> int:
        """round(ratio N), at most as many as there are candidates."""
        k, there = round(self.ratio * top_k.total(vit)), self.ceiling(vit)
        if k < 1 or k > there:
            raise RequestError(f"The ratio {self.ratio:g} asks for {k} weights; there are 1 to {there} candidates.")
        return k

    def within(self, budget: int, vit: nn.Module) -> Fit:
        """The budget itself."""
        there = self.ceiling(vit)
        reached = max(1, min(budget, there))
        return Fit(replace(self, ratio=top_k.share(reached, top_k.total(vit))), reached, edge(budget, (1, there)))
