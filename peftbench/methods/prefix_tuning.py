"""Prefix tuning: trained keys and values ahead of those of every attention (Li and Liang, ACL 2021)."""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from timm.layers.attention import Attention
from torch import Tensor, nn
from torch.nn import functional as F

from peftbench.errors import PluginError, RequestError
from peftbench.methods._sites import blocks
from peftbench.methods._stepped import Stepped
from peftbench.models.plan import Graft, Plan, Probe

MOST = 8192  # prefixes: beyond, attention costs gigabytes an image


class Prefixed(Graft):
    """Attention in which every token can also look at `length` keys and values that belong to no token."""

    def __init__(self, base: nn.Module, length: int, std: float) -> None:
        super().__init__(base)
        if type(base) is not Attention:
            raise PluginError(f"prefix_tuning knows timm's plain Attention, not {type(base).__name__}.")
        width = base.get_parameter("qkv.weight").shape[0] // 3
        self.keys, self.values = (nn.Parameter(std * torch.randn(length, width)) for _ in range(2))

    @classmethod
    def size(cls, base: nn.Module, **sizes: Any) -> int:  # noqa: ANN401 - the contract's
        """2 length D."""
        return 2 * int(sizes["length"]) * (base.get_parameter("qkv.weight").shape[0] // 3)

    def forward(self, x: Tensor, **_: object) -> Tensor:
        """(B, N, D) -> (B, N, D)."""
        attention: Any = self.base
        q, k, v = attention.qkv(x).unflatten(-1, (3, attention.num_heads, -1)).permute(2, 0, 3, 1, 4)  # (B, H, N, d)
        k = self._joined(self.keys, attention.k_norm(k))
        v = self._joined(self.values, v)
        dropout = attention.attn_drop.p if self.training else 0.0
        mixed = F.scaled_dot_product_attention(attention.q_norm(q), k, v, dropout_p=dropout)
        out: Tensor = attention.proj_drop(attention.proj(attention.norm(mixed.transpose(1, 2).flatten(2))))
        return out

    @staticmethod
    def _joined(prefix: Tensor, tokens: Tensor) -> Tensor:
        """(length, D) ahead of (B, H, N, d) -> (B, H, length + N, d)."""
        heads = prefix.to(tokens.dtype).unflatten(-1, (tokens.shape[1], -1)).transpose(0, 1)  # (H, length, d)
        return torch.cat([heads.expand(len(tokens), -1, -1, -1), tokens], dim=2)


@dataclass(frozen=True)
class PrefixTuning(Stepped):
    """softmax(q [P_k, k]^T / sqrt d) [P_v, v] in every head of every block."""

    knob: ClassVar[str | None] = "length"
    identity: ClassVar[bool] = False  # a new key takes part of the attention from the start
    merges: ClassVar[bool] = False

    length: int = 10
    std: float = 0.02  # of the normal distribution that the prefixes are drawn from

    def __post_init__(self) -> None:
        if not 1 <= self.length <= MOST:
            raise RequestError(f"prefix_tuning: length = {self.length} will not do: there are 1 to {MOST:,} prefixes.")
        if not 0 < self.std < float("inf"):
            raise RequestError(f"prefix_tuning: std = {self.std} will not do: it is above 0.")

    def plan(self, vit: nn.Module, probe: Probe) -> Plan:
        """A graft around the attention of every block."""
        return Plan(grafts={f"{block}.attn": (Prefixed, self.values()) for block in blocks(vit)})

    def most(self, vit: nn.Module) -> int:
        """As many as one may call for."""
        return MOST


plugin = PrefixTuning
