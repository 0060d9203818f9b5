"""FT-Att: the attention layers alone (Touvron et al., Three things everyone should know about ViTs, ECCV 2022)."""

from dataclasses import dataclass

from torch import nn

from peftbench.errors import RequestError
from peftbench.models.method import Method
from peftbench.models.plan import Plan, Probe


@dataclass(frozen=True)
class FTAtt(Method):
    """Weights and biases of qkv and proj in every block; the norms beside them stay frozen."""

    train_pos_embed: bool = False  # the paper's wording leaves it frozen, the authors' code trains it

    def plan(self, vit: nn.Module, probe: Probe) -> Plan:
        """Chosen by their place in a block: the patch convolution is called `proj`, too."""
        places = (".attn.qkv.", ".attn.proj.")
        tune = {name for name, _ in vit.named_parameters() if any(place in name for place in places)}
        if not tune:
            raise RequestError("ft_att: the blocks of this network have no attn.qkv and attn.proj to train.")
        return Plan(tune=frozenset(tune | ({"pos_embed"} if self.train_pos_embed else set())))


plugin = FTAtt
