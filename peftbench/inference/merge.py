"""A job's model as one file of plain timm weights with a linear head."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor, nn

from peftbench.core.spec import Places
from peftbench.errors import RequestError
from peftbench.inference.model import Model, open_model
from peftbench.models.head import Classifier, Head
from peftbench.models.plan import Graft
from peftbench.storage import files

TOLERANCE = 1e-5  # largest difference of merged and unmerged logits, relative to the largest logit
NOT_MERGED = frozenset({"grafts", "shared", "sha256", "format"})  # fields of delta.json that do not hold afterwards


def merge(folder: Path, places: Places, out: Path) -> float:
    """Write plain timm weights with a linear head to `out`, and their description to `out` + ".json".

    Returns the largest difference of logits to the unmerged model, relative to the largest logit.

    Raises RequestError when the method's delta does not fold into the backbone, or changes the logits by more than
    TOLERANCE when it does.
    """
    _, merged, error = merged_models(folder, places)
    tensors, head = plain_tensors(merged.classifier)
    files.write_bytes(out, save({n: t.detach().cpu().contiguous().clone() for n, t in tensors.items()}))
    kept = {k: v for k, v in merged.about.items() if k not in NOT_MERGED}
    about = {**kept, "head": {**merged.about["head"], **head}, "sha256": files.sha256_file(out)}
    files.write_json(out.with_name(f"{out.name}.json"), about)
    return error


def merged_models(folder: Path, places: Places) -> tuple[Model, Model, float]:
    """Return the model with its adapter apart, the merged one, and the relative difference of their logits.

    Raises RequestError as `merge` does.
    """
    apart, merged = (open_model(folder, places, merge=m) for m in (False, True))
    name = merged.about["method"]["name"]
    if not merged.merged:
        raise RequestError(f"{name} cannot be merged: its adapter {_remaining(merged.classifier.vit)}.")
    error = relative_difference(apart, merged.classifier)
    if not error <= TOLERANCE:  # nan too
        raise RequestError(f"{name} was not merged: the logits would change by {error:.1e}; please report this.")
    return apart, merged, error


def _remaining(vit: nn.Module) -> str:
    """Return where adapters are left after merging."""
    sites = [name for name, module in vit.named_modules() if isinstance(module, Graft)]
    more = f" and {len(sites) - 1} more places" if len(sites) > 1 else ""
    return f"at {sites[0]}{more} does not fold into the backbone's own tensors"


def plain_tensors(classifier: Classifier) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return a timm state dict of backbone, `head.weight` and `head.bias`, and what remains to be done before the head.

    A batch norm folds into the linear layer; the L2 normalization of features does not, and is described instead.
    """
    head: Head = classifier.head
    weight, bias = head.linear.weight.double(), head.linear.bias.double()
    if isinstance(head.norm, nn.BatchNorm1d):
        mean, variance = (head.norm.get_buffer(f"running_{what}").double() for what in ("mean", "var"))
        weight = weight / (variance + head.norm.eps).sqrt()
        bias = bias - weight @ mean
    backbone = {n: t for n, t in classifier.vit.state_dict().items() if not n.startswith("head.")}
    dtype = head.linear.weight.dtype
    tensors = {**backbone, "head.weight": weight.to(dtype), "head.bias": bias.to(dtype)}
    before = {"kind": "l2", "scale": head.scale} if head.kind == "l2" else {"kind": "plain", "scale": 1.0}
    return tensors, before


@torch.inference_mode()
def relative_difference(apart: Model, merged: nn.Module) -> float:
    """Return the largest difference of two networks' logits on random images, relative to the largest logit."""
    side = apart.preprocessing.size
    images = torch.randn(4, 3, side, side, generator=torch.Generator().manual_seed(0)).to(apart.device)
    one, other = apart.classifier(images), merged(images)
    return float((one - other).abs().max() / one.abs().max().clamp_min(1.0))
