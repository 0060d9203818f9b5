"""Prefix tuning: trained keys and values prepended to those of every attention (Li and Liang, ACL 2021)."""

from typing import Any, ClassVar

import torch
from timm.layers.attention import Attention
from torch import Tensor, nn
from torch.nn import functional as F

from peftbench.core.fields import Positive, checked
from peftbench.errors import PluginError
from peftbench.methods._fields import LARGEST_SIZE, Size
from peftbench.methods._sites import blocks
from peftbench.methods._stepped import Stepped
from peftbench.models.plan import Graft, Plan, Probe


class Prefixed(Graft):
    """Attention with `length` additional keys and values that belong to no token."""

    def __init__(self, base: nn.Module, length: int, std: float) -> None:
        super().__init__(base)
        if type(base) is not Attention:
            raise PluginError(f"prefix_tuning supports timm's plain Attention, not {type(base).__name__}.")
        width = base.get_parameter("qkv.weight").shape[0] // 3
        self.keys, self.values = (nn.Parameter(std * torch.randn(length, width)) for _ in range(2))

    @classmethod
    def size(cls, base: nn.Module, **sizes: Any) -> int:  # noqa: ANN401 - the contract's
        """Return 2 length D."""
        return 2 * int(sizes["length"]) * (base.get_parameter("qkv.weight").shape[0] // 3)

    def forward(self, x: Tensor, **_: object) -> Tensor:
        """(B, N, D) -> (B, N, D)."""
        attention: Any = self.base
        q, k, v = attention.qkv(x).unflatten(-1, (3, attention.num_heads, -1)).permute(2, 0, 3, 1, 4)  # (B, H, N, d)
        k = self._prepend(self.keys, attention.k_norm(k))
        v = self._prepend(self.values, v)
        dropout = attention.attn_drop.p if self.training else 0.0
        mixed = F.scaled_dot_product_attention(attention.q_norm(q), k, v, dropout_p=dropout)
        out: Tensor = attention.proj_drop(attention.proj(attention.norm(mixed.transpose(1, 2).flatten(2))))
        return out

    @staticmethod
    def _prepend(prefix: Tensor, tokens: Tensor) -> Tensor:
        """Prepend (length, D) to (B, H, N, d) -> (B, H, length + N, d)."""
        heads = prefix.to(tokens.dtype).unflatten(-1, (tokens.shape[1], -1)).transpose(0, 1)  # (H, length, d)
        return torch.cat([heads.expand(tokens.shape[0], -1, -1, -1), tokens], dim=2)


@checked
class PrefixTuning(Stepped):
    """softmax(q [P_k, k]^T / sqrt d) [P_v, v] in every head of every block."""

    knob: ClassVar[str | None] = "length"
    identity: ClassVar[bool] = False  # new keys change the attention from the start
    merges: ClassVar[bool] = False

    length: Size = 10
    std: Positive = 0.02  # of the normal distribution from which the prefixes are drawn

    def plan(self, vit: nn.Module, probe: Probe) -> Plan:
        """Wrap the attention of every block."""
        return Plan(grafts={f"{block}.attn": (Prefixed, self.values()) for block in blocks(vit)})

    def most(self, vit: nn.Module) -> int:
        """Return the largest number of prefixes that the field accepts."""
        return LARGEST_SIZE


plugin = PrefixTuning
