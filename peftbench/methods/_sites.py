"""Layers of timm's VisionTransformer that methods change."""

from collections.abc import Sequence
from types import MappingProxyType

from timm.layers.norm import RmsNorm
from torch import Tensor, nn

from peftbench.errors import RequestError

ALIASES = MappingProxyType({"targets": "sites"})  # peft's word for the chosen layers
NORMS = (nn.LayerNorm, nn.RMSNorm, RmsNorm)  # some networks have RMS norms


def blocks(vit: nn.Module) -> list[str]:
    """Return the names of the blocks, first to last."""
    return [f"blocks.{name}" for name, _ in vit.get_submodule("blocks").named_children()]


def width(vit: nn.Module) -> int:
    """Return the embedding dimension of a token."""
    return int(matrix(vit, "blocks.0.attn.qkv").shape[1])


def matrix(vit: nn.Module, site: str) -> Tensor:
    """Return the weight (out, in) of a layer. Raises RequestError if the network has no such layer."""
    if not has(vit, site):
        raise RequestError(f"This network has no layer {site}, which the method changes; choose another backbone.")
    return vit.get_parameter(f"{site}.weight")


def has(vit: nn.Module, site: str) -> bool:
    """Return whether there is a module other than Identity at `site`."""
    try:
        return not isinstance(vit.get_submodule(site), nn.Identity)
    except AttributeError:
        return False


def thirds(sites: Sequence[str]) -> str:
    """Return which of q, k and v are among the sites, such as "qv"."""
    return "".join(part for part in "qkv" if part in sites)


def norms(vit: nn.Module) -> list[str]:
    """Return the names of all norms. They are found by type, since names differ (`norm1`, `ln_1`)."""
    return [name for name, module in vit.named_modules() if isinstance(module, NORMS)]


def last_norm(vit: nn.Module) -> list[str]:
    """Return the name of the norm after the blocks, before or after the pooling; a few networks have none."""
    return [name for name in ("norm", "fc_norm") if has(vit, name)]
