"""Attention pooling: a trained query pools the tokens of a frozen backbone (El-Nouby et al., AIM, ICML 2024)."""

from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from peftbench.core.fields import checked
from peftbench.errors import RequestError
from peftbench.methods._fields import Size
from peftbench.methods._sites import width
from peftbench.models.method import Method
from peftbench.models.plan import Graft, Plan, Probe


class Pooled(Graft):
    """Replace every token after the final norm by the pooled vector, so that any readout (token, mean) returns it."""

    def __init__(self, base: nn.Module, width: int, heads: int) -> None:
        super().__init__(base)
        self.query = nn.Parameter(0.02 * torch.randn(heads, 1, width // heads))
        self.key, self.value = (nn.Linear(width, width, bias=False) for _ in range(2))

    @classmethod
    def size(cls, base: nn.Module, **sizes: Any) -> int:  # noqa: ANN401, ARG003 - the contract's
        """Return 2 D^2 + D."""
        width = int(sizes["width"])
        return 2 * width**2 + width

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, D) -> (B, N, D)."""
        tokens: Tensor = self.base(x)
        k, v = (f(tokens).unflatten(-1, (len(self.query), -1)).transpose(1, 2) for f in (self.key, self.value))
        query = self.query.to(k.dtype).expand(x.shape[0], -1, -1, -1)
        pooled = F.scaled_dot_product_attention(query, k, v).transpose(1, 2).flatten(2)  # (B, 1, D)
        return pooled.expand_as(tokens)


@checked
class AttentionPooling(Method):
    """softmax(q_h (K y)^T / sqrt d) V y in every head h, y all tokens after the final norm; q, K and V train.

    Compared with the linear probe it shows what the frozen tokens hold beside the class token.
    """

    identity: ClassVar[bool] = False  # the head reads another vector
    merges: ClassVar[bool] = False

    heads: Size | None = None  # None: as many as the backbone has

    def plan(self, vit: nn.Module, probe: Probe) -> Plan:
        """Wrap the final norm."""
        attention: Any = vit.get_submodule("blocks.0.attn")
        heads, channels = self.heads or int(attention.num_heads), width(vit)
        if channels % heads:
            raise RequestError(f"attention_pooling: heads must divide the width {channels}, got {heads}.")
        return Plan(grafts={"norm": (Pooled, {"width": channels, "heads": heads})})


plugin = AttentionPooling
