"""FT-Att: train the attention layers only (Touvron et al., Three things everyone should know about ViTs, ECCV 2022)."""

from torch import nn

from peftbench.core.fields import checked
from peftbench.errors import RequestError
from peftbench.models.method import Method
from peftbench.models.plan import Plan, Probe


@checked
class FTAtt(Method):
    """Weights and biases of qkv and proj in every block; the norms of the blocks stay frozen."""

    train_pos_embed: bool = False  # frozen according to the paper, trained in the authors' code

    def plan(self, vit: nn.Module, probe: Probe) -> Plan:
        """Select by the path within a block, since the patch convolution is called `proj` as well."""
        places = (".attn.qkv.", ".attn.proj.")
        tune = {name for name, _ in vit.named_parameters() if any(place in name for place in places)}
        if not tune:
            raise RequestError("ft_att: this network has no attn.qkv and attn.proj to train; choose another backbone.")
        return Plan(tune=frozenset(tune | ({"pos_embed"} if self.train_pos_embed else set())))


plugin = FTAtt
