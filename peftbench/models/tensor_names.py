"""Names of the layers and tensors of timm's VisionTransformer."""

from collections.abc import Mapping
from types import MappingProxyType

PROJECTIONS: Mapping[str, str] = MappingProxyType(  # the matrices of a block: short name -> layer
    {"qkv": "attn.qkv", "proj": "attn.proj", "fc1": "mlp.fc1", "fc2": "mlp.fc2"}
)
TOKENS = ("cls_token", "reg_token", "pos_embed")
EMBEDDINGS = ("patch_embed.", *TOKENS)  # prefixes
BEFORE_BLOCKS = (*EMBEDDINGS, "norm_pre.")  # prefixes of the tensors that an image passes before the first block
