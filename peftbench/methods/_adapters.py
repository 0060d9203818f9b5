"""Adapters that several methods use: a bottleneck after a module, a linear change of a layer's input."""

from __future__ import annotations

from copy import deepcopy
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from peftbench.models.plan import Graft


class Bottleneck(Graft):
    """y + W_up act(W_down y + b_down) + b_up, with y the output of the wrapped module.

    W_up and the biases start at zero, so step 0 is the pretrained network.
    """

    ACTIVATIONS: ClassVar[dict[str, type[nn.Module]]] = {"gelu": nn.GELU, "relu": nn.ReLU}

    def __init__(self, base: nn.Module, width: int, r: int, activation: str = "gelu", std: float = 0.01) -> None:
        super().__init__(base)
        self.down, self.up = nn.Linear(width, r), nn.Linear(r, width)
        self.activation = self.ACTIVATIONS[activation]()
        nn.init.trunc_normal_(self.down.weight, std=std, a=-2 * std, b=2 * std)
        for tensor in (self.down.bias, self.up.weight, self.up.bias):
            nn.init.zeros_(tensor)

    @classmethod
    def size(cls, base: nn.Module, **sizes: Any) -> int:  # noqa: ANN401, ARG003 - the contract's
        """Return 2 r width + r + width."""
        width, r = int(sizes["width"]), int(sizes["r"])
        return 2 * r * width + r + width

    def change(self, y: Tensor) -> Tensor:
        """Return what is added to y: (..., width) -> (..., width)."""
        out: Tensor = self.up(self.activation(self.down(y)))
        return out

    def forward(self, x: Tensor, **options: Any) -> Tensor:  # noqa: ANN401 - those of the wrapped module
        """(..., width) -> (..., width)."""
        y: Tensor = self.base(x, **options)
        return y + self.change(y)


class Ahead(Graft):
    """W (x + change(x)) + b: an affine change of a Linear layer's input, which can be folded into W and b."""

    def change(self, x: Tensor) -> Tensor:
        """Return what is added to x: (..., in) -> (..., in), affine in evaluation mode."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        out: Tensor = self.base(x + self.change(x))
        return out

    @torch.no_grad()
    def merged(self) -> nn.Module | None:
        """Return a layer with W + W A and b + W a, where change(x) = A x + a; None if the layer has no bias."""
        layer, training = deepcopy(self.base), self.training
        if layer.bias is None:
            return None
        weight = layer.get_parameter("weight")
        self.eval()
        offset = self.change(weight.new_zeros(weight.shape[1]))
        slope = (self.change(torch.eye(weight.shape[1], dtype=weight.dtype, device=weight.device)) - offset).T
        self.train(training)
        layer.get_parameter("bias").add_(weight @ offset)
        weight.add_(weight @ slope)
        return layer
