"""Where things are in timm's VisionTransformer, by the short names that options use."""

from torch import nn

PROJECTIONS = {"qkv": "attn.qkv", "proj": "attn.proj", "fc1": "mlp.fc1", "fc2": "mlp.fc2"}  # the matrices of a block


def blocks(vit: nn.Module) -> list[str]:
    """The names of the blocks, first to last."""
    return [f"blocks.{name}" for name, _ in vit.get_submodule("blocks").named_children()]


def width(vit: nn.Module) -> int:
    """Numbers a token has."""
    return int(vit.get_parameter("blocks.0.attn.qkv.weight").shape[1])
