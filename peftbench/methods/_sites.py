"""Where things are in timm's VisionTransformer, by the short names that options use."""

from timm.layers.norm import RmsNorm
from torch import Tensor, nn

from peftbench.errors import RequestError

PROJECTIONS = {"qkv": "attn.qkv", "proj": "attn.proj", "fc1": "mlp.fc1", "fc2": "mlp.fc2"}  # the matrices of a block
NORMS = (nn.LayerNorm, nn.RMSNorm, RmsNorm)  # some networks have the latter instead


def blocks(vit: nn.Module) -> list[str]:
    """The names of the blocks, first to last."""
    return [f"blocks.{name}" for name, _ in vit.get_submodule("blocks").named_children()]


def width(vit: nn.Module) -> int:
    """Numbers a token has."""
    return int(matrix(vit, "blocks.0.attn.qkv").shape[1])


def matrix(vit: nn.Module, site: str) -> Tensor:
    """The weight (out, in) of a layer. Raises RequestError where blocks are built otherwise."""
    if not has(vit, site):
        raise RequestError(f"This network has no {site}, which the method changes: its blocks are not the usual ones.")
    return vit.get_parameter(f"{site}.weight")


def has(vit: nn.Module, site: str) -> bool:
    """Whether there is something that computes at `site`."""
    try:
        return not isinstance(vit.get_submodule(site), nn.Identity)
    except AttributeError:
        return False


def norms(vit: nn.Module) -> list[str]:
    """The names of all norms, chosen by kind: their own names differ from network to network."""
    return [name for name, module in vit.named_modules() if isinstance(module, NORMS)]


def last_norm(vit: nn.Module) -> list[str]:
    """The name of the norm behind the blocks, ahead of the pooling or behind it; a few networks have none."""
    return [name for name in ("norm", "fc_norm") if has(vit, name)]
