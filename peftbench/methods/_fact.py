"""FacT: the changes of all matrices of all blocks as one tensor, written as a product of small factors.

Every matrix is cut into squares of the width D: one for each of query, key, value and proj, M / D for each of fc1 and
fc2. With inputs from the left, each square changes by s U core V; U (D, r) and V (r, D) are the same for all squares
of the network. Where the cores (r, r) come from is what its two formats differ in.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from peftbench.errors import RequestError
from peftbench.methods._sites import PROJECTIONS, blocks, matrix, width
from peftbench.models.method import Fit, Method, edge
from peftbench.models.plan import Graft, Shared


class Factors(Shared):
    """U, uniform, and V, zero at the start."""

    def __init__(self, width: int, r: int) -> None:
        super().__init__()
        self.down = nn.Parameter(uniform((width, r), 1 / math.sqrt(width)))
        self.up = nn.Parameter(torch.zeros(r, width))


class Factored(Graft):
    """W x + b + s times the change of every square of W."""

    def __init__(self, base: nn.Module, scale: float, dropout: float, shared: Factors) -> None:
        super().__init__(base)
        self.scale, self.dropout, self.shared = scale, nn.Dropout(dropout), shared
        self.squares = squares(base, len(shared.down))

    def cores(self) -> Tensor:
        """(squares along the inputs, along the outputs, r, r)."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        hidden = x.unflatten(-1, (self.squares[0], -1)) @ self.shared.down
        hidden = self.dropout(torch.einsum("...ir,iors->...os", hidden, self.cores()))
        out: Tensor = self.base(x) + self.scale * (hidden @ self.shared.up).flatten(-2)
        return out

    @torch.no_grad()
    def merged(self) -> nn.Module:
        """The layer with the change in its weight."""
        layer = deepcopy(self.base)
        change = torch.einsum("dr,iors,se->oeid", self.shared.down, self.cores(), self.shared.up)
        weight = layer.get_parameter("weight")
        weight.add_(self.scale * change.reshape(weight.shape))
        return layer


@dataclass(frozen=True)
class FacT(Method):
    """What both formats share."""

    knob: ClassVar[str | None] = "r"

    r: int = 16
    scale: float = 1.0  # s; the authors search it for each data set among 0.01, 0.1, 1, 10 and 100
    dropout: float = 0.1

    def __post_init__(self) -> None:
        if self.r < 1:
            raise RequestError(f"r = {self.r} will not do: the rank is at least 1.")
        if not math.isfinite(self.scale) or self.scale == 0:
            raise RequestError(f"scale = {self.scale} will not do: it is a number other than 0.")
        if not 0 <= self.dropout < 1:
            raise RequestError(f"dropout = {self.dropout} will not do: it lies in [0, 1).")

    def sizes(self, vit: nn.Module) -> Sequence[int]:
        """Up to the width."""
        return range(1, width(vit) + 1)

    def count(self, vit: nn.Module) -> int:
        """By formula."""
        return self.formula(width(vit), sum(sites(vit).values()))

    def formula(self, width: int, squares: int) -> int:
        """Trainable parameters on a network of this width whose matrices make so many squares."""
        raise NotImplementedError

    def within(self, budget: int, vit: nn.Module) -> Fit:
        """The nearest count, ties to the smaller; the network is measured once for all ranks."""
        measures = width(vit), sum(sites(vit).values())
        counts = {r: self.turned(r).formula(*measures) for r in self.sizes(vit)}
        r = min(counts, key=lambda rank: (abs(counts[rank] - budget), rank))
        return Fit(self.turned(r), counts[r], edge(budget, list(counts.values())))


def sites(vit: nn.Module) -> dict[str, int]:
    """Every matrix of every block -> of how many squares it is."""
    names = [f"{block}.{layer}" for block in blocks(vit) for layer in PROJECTIONS.values()]
    return {name: math.prod(along(matrix(vit, name), width(vit))) for name in names}


def squares(layer: nn.Module, width: int) -> tuple[int, int]:
    """Of how many squares a layer's matrix is, along its inputs and along its outputs. Raises RequestError."""
    return along(layer.get_parameter("weight"), width)


def along(weight: Tensor, width: int) -> tuple[int, int]:
    """The same of a matrix (out, in)."""
    outputs, inputs = weight.shape
    if inputs % width or outputs % width:
        raise RequestError(f"FacT cuts matrices into squares of {width}; one of {outputs} x {inputs} cannot be cut so.")
    return inputs // width, outputs // width


def uniform(shape: Sequence[int], reach: float) -> Tensor:
    """Drawn evenly from [-reach, reach]."""
    return torch.empty(*shape).uniform_(-reach, reach)
