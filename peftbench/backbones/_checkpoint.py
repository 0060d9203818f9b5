"""The backbone's tensors in a checkpoint as people have them: nested, prefixed, or with the names of other libraries.

Everything that is not the backbone, such as a head, a text tower or the decoder of masked autoencoders, is left out.
What was chosen and what was left out is returned in sentences.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from peftbench.errors import WeightsError

NESTS = (  # keys under which training programs store a state dict, the preferred ones first
    "state_dict_ema",
    "model_ema",
    "ema",
    "teacher",
    "state_dict",
    "model_state_dict",
    "model",
    "module",
    "net",
    "student",
)
AVERAGED = ("state_dict_ema", "model_ema", "ema", "teacher")
PREFIX = re.compile(  # of the tensors' names: wrappers and the names of attributes that hold a backbone
    r"((module|_orig_mod|model|model_ema|backbone|encoder|visual|trunk|vit|net|network|base_model|image_encoder|"
    r"vision_encoder|vision_model|visual_encoder|vision_tower|feature_extractor|student|teacher|momentum_encoder|base_encoder|"
    r"dinov2|dinov3|siglip|clip)\.)*"
)
ANCHORS = (  # the name of the patch convolution, by which the naming is recognized
    "patch_embed.proj.weight",  # timm, DINOv2, MAE
    "conv1.weight",  # open_clip and OpenAI
    "embeddings.patch_embeddings.projection.weight",  # transformers: ViT, DINOv2
    "embeddings.patch_embedding.weight",  # transformers: CLIP, SigLIP
)
DECODER = ("decoder_", "decoder.")  # of masked autoencoders
OPEN_CLIP = "visual."  # timm's filter recognizes open_clip's names by it
MASK = "mask_token"  # by it, timm's filter recognizes DINOv2's own names, which it needs for registers
DEEPEST = 4  # nested dictionaries


def find_backbone(content: object, file: Path, prefix: str = "") -> tuple[dict[str, Tensor], list[str]]:
    """Return the tensors of the backbone in a checkpoint, named as timm's filter takes them, and notes on the choice.

    `prefix` is a preset's own. Raises WeightsError if there is none, or if several and nothing tells which one.
    """
    state, notes = _unnested(content, file)
    state, dropped = _without_decoder(state)
    notes += [f"{file.name}: the decoder of its pretraining was left out ({dropped} tensors)."] if dropped else []
    chosen = prefix or _choose_prefix(state, file, notes)
    inside = {name.removeprefix(chosen): tensor for name, tensor in state.items() if name.startswith(chosen)}
    if not inside:
        raise WeightsError(f"{file} holds no tensor whose name begins with {chosen!r}. Correct weights.prefix.")
    others = len(state) - len(inside)
    if chosen and others:
        notes.append(f"{file.name}: took the tensors named {chosen}..., and left out {others} others.")
    return _timm_names(inside), notes


# --- nesting ---------------------------------------------------------------------------------------------------------


def _unnested(content: object, file: Path) -> tuple[dict[str, Tensor], list[str]]:
    """Return the flat dictionary of tensors that a checkpoint holds, and which one of several was taken."""
    notes: list[str] = []
    for _ in range(DEEPEST):
        if not isinstance(content, Mapping) or not content:
            break
        nested = [key for key in NESTS if isinstance(content.get(key), Mapping) and content[key]]
        if not nested or any(_is_backbone_tensor(str(name), value) for name, value in content.items()):
            break
        if len(nested) > 1:
            kind = " (averaged weights)" if nested[0] in AVERAGED else ""
            notes.append(f"{file.name}: took {nested[0]!r}{kind}, and left out {', '.join(map(repr, nested[1:]))}.")
        content = content[nested[0]]
    if not isinstance(content, Mapping):
        raise WeightsError(f"{file} holds no weights: it must map tensor names to tensors.")
    tensors = {str(name): value for name, value in content.items() if isinstance(value, Tensor)}
    if not tensors:
        raise WeightsError(f"{file} holds no weights: it must map tensor names to tensors.")
    return {n: t.float() if t.is_floating_point() else t for n, t in tensors.items()}, notes


def _is_backbone_tensor(name: str, value: object) -> bool:
    return isinstance(value, Tensor) and name.endswith(ANCHORS)


def _without_decoder(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], int]:
    """Return the tensors without those of a masked autoencoder's decoder, and how many these are."""
    kept = {n: t for n, t in state.items() if not n[PREFIX.match(n).end() :].startswith(DECODER)}  # type: ignore[union-attr]  # it matches ""
    dropped = len(state) - len(kept)
    if dropped:  # the mask token is the decoder's, too
        kept = {name: tensor for name, tensor in kept.items() if not name.endswith(MASK)}
    return kept, dropped


# --- prefixes --------------------------------------------------------------------------------------------------------


def _choose_prefix(state: Mapping[str, Tensor], file: Path, notes: list[str]) -> str:
    """Return what precedes the names of the backbone's tensors; "" if nothing does, or if there is no backbone."""
    found = sorted(
        {name.removesuffix(anchor) for name in state for anchor in ANCHORS if _is_anchor(name, anchor, state)}
    )
    known = [one for one in found if PREFIX.fullmatch(one)] or found
    if not known:
        return ""
    if len(known) == 1:
        return known[0]
    averaged = [one for one in known if {"teacher", "momentum_encoder", "model_ema"} & set(one.split("."))]
    if len(averaged) == 1:
        others = ", ".join(repr(one) for one in known if one != averaged[0])
        notes.append(f"{file.name}: took {averaged[0]!r} (averaged weights), and left out {others}.")
        return averaged[0]
    listed = ", ".join(map(repr, known))
    raise WeightsError(f"{file} holds several backbones: {listed}. State one as weights.prefix in a preset.")


def _is_anchor(name: str, anchor: str, state: Mapping[str, Tensor]) -> bool:
    """Return whether a name is `anchor` after a prefix; other networks have a conv1 too, but no class embedding."""
    before = name.removesuffix(anchor)
    whole = name.endswith(anchor) and (not before or before.endswith("."))
    return whole and (anchor != "conv1.weight" or f"{before}class_embedding" in state)


# --- names of other libraries ----------------------------------------------------------------------------------------


def _timm_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors as timm's filter takes them."""
    if "conv1.weight" in state and "class_embedding" in state:
        return {f"{OPEN_CLIP}{name}": tensor for name, tensor in state.items()}
    if "embeddings.patch_embeddings.projection.weight" in state:
        found = _fused(_renamed(state, TRANSFORMERS_VIT))
        return found | {MASK: found["cls_token"]} if "register_tokens" in found else found
    if "embeddings.patch_embedding.weight" in state:
        return _with_pooling(_fused(_renamed(state, TRANSFORMERS_CLIP)), state)
    return state


Rules = Sequence[tuple[str, str]]
TRANSFORMERS_VIT: Rules = (  # ViT, DINOv2 with and without registers
    (r"embeddings\.cls_token", "cls_token"),
    (r"embeddings\.register_tokens", "register_tokens"),
    (r"embeddings\.position_embeddings", "pos_embed"),
    (r"embeddings\.patch_embeddings\.projection\.(weight|bias)", r"patch_embed.proj.\1"),
    (r"encoder\.layer\.(\d+)\.(norm1|layernorm_before)\.(weight|bias)", r"blocks.\1.norm1.\3"),
    (r"encoder\.layer\.(\d+)\.(norm2|layernorm_after)\.(weight|bias)", r"blocks.\1.norm2.\3"),
    (r"encoder\.layer\.(\d+)\.attention\.attention\.(query|key|value)\.(weight|bias)", r"blocks.\1.attn.\2.\3"),
    (r"encoder\.layer\.(\d+)\.attention\.output\.dense\.(weight|bias)", r"blocks.\1.attn.proj.\2"),
    (r"encoder\.layer\.(\d+)\.layer_scale([12])\.lambda1", r"blocks.\1.ls\2.gamma"),
    (r"encoder\.layer\.(\d+)\.mlp\.(fc1|fc2)\.(weight|bias)", r"blocks.\1.mlp.\2.\3"),
    (r"encoder\.layer\.(\d+)\.mlp\.weights_in\.(weight|bias)", r"blocks.\1.mlp.fc1.\2"),
    (r"encoder\.layer\.(\d+)\.mlp\.weights_out\.(weight|bias)", r"blocks.\1.mlp.fc2.\2"),
    (r"encoder\.layer\.(\d+)\.intermediate\.dense\.(weight|bias)", r"blocks.\1.mlp.fc1.\2"),
    (r"encoder\.layer\.(\d+)\.output\.dense\.(weight|bias)", r"blocks.\1.mlp.fc2.\2"),
    (r"layernorm\.(weight|bias)", r"norm.\1"),
)
TRANSFORMERS_CLIP: Rules = (  # CLIP and SigLIP
    (r"embeddings\.class_embedding", "cls_token"),
    (r"embeddings\.position_embedding\.weight", "pos_embed"),
    (r"embeddings\.patch_embedding\.(weight|bias)", r"patch_embed.proj.\1"),
    (r"pre_layrnorm\.(weight|bias)", r"norm_pre.\1"),
    (r"post_layernorm\.(weight|bias)", r"norm.\1"),
    (r"encoder\.layers\.(\d+)\.layer_norm([12])\.(weight|bias)", r"blocks.\1.norm\2.\3"),
    (r"encoder\.layers\.(\d+)\.self_attn\.q_proj\.(weight|bias)", r"blocks.\1.attn.query.\2"),
    (r"encoder\.layers\.(\d+)\.self_attn\.k_proj\.(weight|bias)", r"blocks.\1.attn.key.\2"),
    (r"encoder\.layers\.(\d+)\.self_attn\.v_proj\.(weight|bias)", r"blocks.\1.attn.value.\2"),
    (r"encoder\.layers\.(\d+)\.self_attn\.out_proj\.(weight|bias)", r"blocks.\1.attn.proj.\2"),
    (r"encoder\.layers\.(\d+)\.mlp\.(fc1|fc2)\.(weight|bias)", r"blocks.\1.mlp.\2.\3"),
    (r"head\.probe", "attn_pool.latent"),
    (r"head\.attention\.out_proj\.(weight|bias)", r"attn_pool.proj.\1"),
    (r"head\.layernorm\.(weight|bias)", r"attn_pool.norm.\1"),
    (r"head\.mlp\.(fc1|fc2)\.(weight|bias)", r"attn_pool.mlp.\1.\2"),
)


def _renamed(state: Mapping[str, Tensor], rules: Rules) -> dict[str, Tensor]:
    """Return the tensors that a rule matches, under their new names; others are no part of the backbone."""
    found: dict[str, Tensor] = {}
    for name, tensor in state.items():
        for pattern, new in rules:
            if match := re.fullmatch(pattern, name):
                found[match.expand(new)] = tensor
                break
    return {name: _with_batch(name, tensor) for name, tensor in found.items()}


def _with_batch(name: str, tensor: Tensor) -> Tensor:
    """Return tokens and positions with the leading dimensions that timm has: (1, tokens, width)."""
    if name not in {"cls_token", "pos_embed"}:
        return tensor
    return tensor.reshape(1, -1, tensor.shape[-1])


def _fused(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors with queries, keys and values of each block in one."""
    fused = dict[str, Tensor]()
    for name, tensor in state.items():
        if ".attn.query." in name:
            parts = [name.replace("query", part) for part in ("query", "key", "value")]
            if all(part in state for part in parts):
                fused[name.replace("query", "qkv")] = torch.cat([state[part] for part in parts])
        elif not re.search(r"\.attn\.(key|value)\.", name):
            fused[name] = tensor
    return fused


def _with_pooling(found: dict[str, Tensor], state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors with those of SigLIP's attention pooling: one query, and keys with values."""
    for kind in ("weight", "bias"):
        joined = state.get(f"head.attention.in_proj_{kind}")
        if joined is not None:
            width = len(joined) // 3
            found |= {f"attn_pool.q.{kind}": joined[:width], f"attn_pool.kv.{kind}": joined[width:]}
    return found
