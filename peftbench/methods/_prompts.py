"""Prompts: trained tokens beside those of the image (Jia et al., Visual Prompt Tuning, ECCV 2022)."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from timm.models.eva import Eva
from torch import Tensor, nn

from peftbench.core.fields import Fraction, checked
from peftbench.errors import RequestError
from peftbench.methods._fields import LARGEST_SIZE, Size
from peftbench.methods._stepped import Stepped
from peftbench.models.plan import Graft, Sizes


class Prompted(Graft):
    """Insert prompts after the first token, run `base`, and remove the prompts.

    So later stages (pooling, stored features) see the image's own tokens at their usual positions.
    """

    def __init__(self, base: nn.Module, tokens: int, width: int, reach: float, dropout: float = 0.0) -> None:
        """Draw `tokens` prompts of dimension `width` uniformly from [-reach, reach]."""
        super().__init__(base)
        self.tokens, self.dropout = tokens, nn.Dropout(dropout)
        self.prompt = nn.Parameter(torch.empty(1, tokens, width).uniform_(-reach, reach))

    @classmethod
    def size(cls, base: nn.Module, **sizes: Any) -> int:  # noqa: ANN401, ARG003 - the contract's
        """Return tokens x width."""
        return int(sizes["tokens"] * sizes["width"])

    def insert(self, x: Tensor) -> Tensor:
        """Insert the prompts: (B, N, D) -> (B, N + tokens, D)."""
        prompt = self.dropout(self.prompt.expand(x.shape[0], -1, -1))
        return torch.cat([x[:, :1], prompt.to(x.dtype), x[:, 1:]], dim=1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, D) -> (B, N, D)."""
        return without_prompts(self.base(self.insert(x)), self.tokens)


class Joining(Prompted):
    """Insert prompts before `base` and keep them."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, D) -> (B, N + tokens, D)."""
        out: Tensor = self.base(self.insert(x))
        return out


class Leaving(Graft):
    """Remove prompts, which were inserted earlier, after `base`."""

    def __init__(self, base: nn.Module, tokens: int) -> None:
        super().__init__(base)
        self.tokens = tokens

    @classmethod
    def size(cls, base: nn.Module, **sizes: Any) -> int:  # noqa: ANN401, ARG003 - the contract's
        """Return 0: it has no parameters."""
        return 0

    def forward(self, x: Tensor) -> Tensor:
        """(B, N + tokens, D) -> (B, N, D)."""
        return without_prompts(self.base(x), self.tokens)


def without_prompts(x: Tensor, tokens: int) -> Tensor:
    """Remove the prompts after the first token: (B, N + tokens, D) -> (B, N, D)."""
    return torch.cat([x[:, :1], x[:, 1 + tokens :]], dim=1)


@checked
class Prompts(Stepped):
    """Base class of VPT-Shallow and VPT-Deep."""

    knob: ClassVar[str | None] = "tokens"
    identity: ClassVar[bool] = False  # random tokens take part in attention from the start
    merges: ClassVar[bool] = False  # the sequence is longer

    tokens: Size = 5
    dropout: Fraction = 0.0
    before_norm_pre: bool = False  # insert before CLIP's norm ahead of the first block, not after it

    def most(self, vit: nn.Module) -> int:
        """Return the largest number of prompts that the field accepts."""
        return LARGEST_SIZE

    def refuse_rotary(self, vit: nn.Module) -> None:
        """Raise RequestError for rotary positions, which timm gives to every token after a fixed number of others."""
        if isinstance(vit, Eva) and vit.rope is not None:
            name = type(self).__module__.rpartition(".")[2]
            raise RequestError(
                f"{name}: this network has rotary positions, which leave no place for prompts between its tokens; "
                "choose another method or backbone."
            )

    def prompt_sizes(self, vit: nn.Module) -> Sizes:
        """Return the sizes of a `Prompted`. As in the authors' code, fan-in is a patch's volume in every layer."""
        self.refuse_rotary(vit)
        kernel = vit.get_parameter("patch_embed.proj.weight")  # (D, 3, height, width)
        reach = math.sqrt(6 / (kernel[0].numel() + len(kernel)))
        return {"tokens": self.tokens, "width": len(kernel), "reach": reach, "dropout": self.dropout}
