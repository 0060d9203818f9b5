"""FacT: the updates of all matrices of all blocks as one tensor, written as a product of small factors.

Every matrix is divided into squares of the width D: one for each of query, key, value and proj, M / D for each of fc1
and fc2. With inputs from the left, each square changes by s U core V; U (D, r) and V (r, D) are shared by all squares
of the network. The two formats differ in how the cores (r, r) are made.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from copy import deepcopy
from typing import ClassVar

import torch
from torch import Tensor, nn

from peftbench.core.fields import Fraction, checked
from peftbench.errors import RequestError
from peftbench.methods._fields import Factor, Size
from peftbench.methods._sites import blocks, matrix, width
from peftbench.models.method import Match, Method, nearest
from peftbench.models.plan import Graft, Shared
from peftbench.models.tensor_names import PROJECTIONS


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
        self.squares = squares(base.get_parameter("weight"), len(shared.down))

    def cores(self) -> Tensor:
        """Return the cores, (squares along the inputs, along the outputs, r, r)."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        hidden = x.unflatten(-1, (self.squares[0], -1)) @ self.shared.down
        hidden = self.dropout(torch.einsum("...ir,iors->...os", hidden, self.cores()))
        out: Tensor = self.base(x) + self.scale * (hidden @ self.shared.up).flatten(-2)
        return out

    @torch.no_grad()
    def merged(self) -> nn.Module:
        """Return the layer with the change in its weight."""
        layer = deepcopy(self.base)
        change = torch.einsum("dr,iors,se->oeid", self.shared.down, self.cores(), self.shared.up)
        weight = layer.get_parameter("weight")
        weight.add_(self.scale * change.reshape(weight.shape))
        return layer


@checked
class FacT(Method):
    """Base class of both formats."""

    knob: ClassVar[str | None] = "r"

    r: Size = 16
    scale: Factor = 1.0  # s; the authors tune it for each data set among 0.01, 0.1, 1, 10 and 100
    dropout: Fraction = 0.1

    def sizes(self, vit: nn.Module) -> Sequence[int]:
        """Return 1 to the width."""
        return range(1, width(vit) + 1)

    def count(self, vit: nn.Module) -> int:
        """Return the count by formula."""
        return self.formula(width(vit), sum(sites(vit).values()))

    def formula(self, width: int, squares: int) -> int:
        """Return the trainable parameters on a network of this width with this many squares."""
        raise NotImplementedError

    def within(self, budget: int, vit: nn.Module) -> Match:
        """Return the rank whose count is nearest to `budget`, reading the network's shapes once for all ranks."""
        shape = width(vit), sum(sites(vit).values())
        return nearest(self, budget, {r: self.at_size(r).formula(*shape) for r in self.sizes(vit)})


def sites(vit: nn.Module) -> dict[str, int]:
    """Return every matrix of every block and its number of squares."""
    names = [f"{block}.{layer}" for block in blocks(vit) for layer in PROJECTIONS.values()]
    return {name: math.prod(squares(matrix(vit, name), width(vit))) for name in names}


def squares(weight: Tensor, width: int) -> tuple[int, int]:
    """Return the number of squares along the inputs and the outputs of a matrix (out, in). Raises RequestError."""
    outputs, inputs = weight.shape
    if inputs % width or outputs % width:
        raise RequestError(
            f"FacT divides matrices into squares of {width}, which does not fit a matrix of {outputs} x {inputs}; "
            "choose another backbone."
        )
    return inputs // width, outputs // width


def uniform(shape: Sequence[int], reach: float) -> Tensor:
    """Draw a tensor uniformly from [-reach, reach]."""
    return torch.empty(*shape).uniform_(-reach, reach)
