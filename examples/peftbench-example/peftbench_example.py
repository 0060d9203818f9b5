"""BitFit on two biases a block: the query's and the MLP's first (Ben Zaken et al., ACL 2022, section 4)."""

from dataclasses import dataclass

import torch
from torch import nn

from peftbench.method import Method
from peftbench.plan import Plan, Probe


@dataclass(frozen=True)
class QueryBitFit(Method):
    """About half of BitFit's values. A method's fields are its options: `query_bitfit[mlp=false]`."""

    mlp: bool = True

    def plan(self, vit: nn.Module, probe: Probe) -> Plan:
        """The first third of each block's fused qkv bias is the query's; the MLP's bias trains whole."""
        blocks = [f"blocks.{name}" for name, _ in vit.get_submodule("blocks").named_children()]
        query = torch.arange(vit.get_parameter("blocks.0.attn.qkv.weight").shape[1])
        return Plan(
            tune=frozenset(f"{block}.mlp.fc1.bias" for block in blocks if self.mlp),
            entries={f"{block}.attn.qkv.bias": query for block in blocks},
        )
