"""Layers of timm's VisionTransformer that methods change."""

from collections.abc import Sequence
from types import MappingProxyType

from timm.layers.norm import RmsNorm
from timm.models.eva import EvaBlock
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


def branch_ends(vit: nn.Module, block: str) -> tuple[str, str]:
    """Return the modules at the ends of a block's two branches: LayerScale, an Identity in networks without one.

    Eva's blocks hold LayerScale as a tensor, after which DropPath comes.
    """
    is_eva = isinstance(vit.get_submodule(block), EvaBlock)
    first, second = ("drop_path1", "drop_path2") if is_eva else ("ls1", "ls2")
    return f"{block}.{first}", f"{block}.{second}"


def scale_branch(block: nn.Module, branch: int, y: Tensor) -> Tensor:
    """Return a branch's output times its LayerScale, in a Block or an EvaBlock of timm; `branch` is 1 or 2."""
    if isinstance(block, EvaBlock):
        gamma = (block.gamma_1, block.gamma_2)[branch - 1]
        return y if gamma is None else gamma * y
    out: Tensor = block.get_submodule(f"ls{branch}")(y)
    return out


def thirds(sites: Sequence[str]) -> str:
    """Return which of q, k and v are among the sites, such as "qv"."""
    return "".join(part for part in "qkv" if part in sites)


def norms(vit: nn.Module) -> list[str]:
    """Return the names of all norms. They are found by type, since names differ (`norm1`, `ln_1`)."""
    return [name for name, module in vit.named_modules() if isinstance(module, NORMS)]


def last_norm(vit: nn.Module) -> list[str]:
    """Return the name of the norm after the blocks, before or after the pooling; a few networks have none."""
    return [name for name in ("norm", "fc_norm") if has(vit, name)]
