"""Prompts: trained tokens beside those of the image (Jia et al., Visual Prompt Tuning, ECCV 2022)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from peftbench.errors import RequestError
from peftbench.methods._stepped import Stepped
from peftbench.models.plan import Graft, Sizes

MOST = 8192  # tokens: beyond, attention costs gigabytes an image


class Prompted(Graft):
    """Prompts join the tokens behind the first one, `base` runs, and the prompts leave.

    Whatever the network does with its output (pooling, stored features) sees the image's own tokens in their places.
    """

    def __init__(self, base: nn.Module, tokens: int, width: int, reach: float, dropout: float = 0.0) -> None:
        """`tokens` prompts of `width` numbers, drawn evenly from [-reach, reach]."""
        super().__init__(base)
        self.tokens, self.dropout = tokens, nn.Dropout(dropout)
        self.prompt = nn.Parameter(torch.empty(1, tokens, width).uniform_(-reach, reach))

    @classmethod
    def size(cls, base: nn.Module, **sizes: Any) -> int:  # noqa: ANN401, ARG003 - the contract's
        """Tokens x width."""
        return int(sizes["tokens"] * sizes["width"])

    def joined(self, x: Tensor) -> Tensor:
        """(B, N, D) -> (B, N + tokens, D)."""
        prompt = self.dropout(self.prompt.expand(len(x), -1, -1))
        return torch.cat([x[:, :1], prompt.to(x.dtype), x[:, 1:]], dim=1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, D) -> (B, N, D)."""
        return left(self.base(self.joined(x)), self.tokens)


class Joining(Prompted):
    """The prompts join and stay."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, D) -> (B, N + tokens, D)."""
        out: Tensor = self.base(self.joined(x))
        return out


class Leaving(Graft):
    """The prompts that joined earlier leave behind `base`."""

    def __init__(self, base: nn.Module, tokens: int) -> None:
        super().__init__(base)
        self.tokens = tokens

    @classmethod
    def size(cls, base: nn.Module, **sizes: Any) -> int:  # noqa: ANN401, ARG003 - the contract's
        """Nothing."""
        return 0

    def forward(self, x: Tensor) -> Tensor:
        """(B, N + tokens, D) -> (B, N, D)."""
        return left(self.base(x), self.tokens)


def left(x: Tensor, tokens: int) -> Tensor:
    """(B, N + tokens, D) -> (B, N, D) without the prompts behind the first token."""
    return torch.cat([x[:, :1], x[:, 1 + tokens :]], dim=1)


@dataclass(frozen=True)
class Prompts(Stepped):
    """What the shallow and the deep variant share."""

    knob: ClassVar[str | None] = "tokens"
    identity: ClassVar[bool] = False  # random tokens take part in attention from the start
    merges: ClassVar[bool] = False  # the sequence is longer

    tokens: int = 5
    dropout: float = 0.0
    before_norm_pre: bool = False  # CLIP's norm ahead of the first block normalises the prompts, too

    def __post_init__(self) -> None:
        if not 1 <= self.tokens <= MOST:
            raise RequestError(f"tokens = {self.tokens} will not do: there are 1 to {MOST:,} prompts.")
        if not 0 <= self.dropout < 1:
            raise RequestError(f"dropout = {self.dropout} will not do: it lies in [0, 1).")

    def most(self, vit: nn.Module) -> int:
        """As many as one may call for."""
        return MOST

    def drawn(self, vit: nn.Module) -> Sizes:
        """Sizes of a `Prompted`. The authors' fan-in is the volume of a patch, for deep prompts, too."""
        kernel = vit.get_parameter("patch_embed.proj.weight")  # (D, 3, height, width)
        reach = math.sqrt(6 / (kernel[0].numel() + len(kernel)))
        return {"tokens": self.tokens, "width": len(kernel), "reach": reach, "dropout": self.dropout}
