"""A job's model as a folder of the Hugging Face hub that `timm.create_model("local-dir:FOLDER")` loads."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
from safetensors.torch import save
from timm.models.eva import Eva
from torch import nn

from peftbench.core.contract import Preprocessing
from peftbench.core.spec import Places
from peftbench.errors import RequestError
from peftbench.inference import card
from peftbench.inference.merge import TOLERANCE, merged_models, plain_tensors, relative_difference
from peftbench.inference.model import Model
from peftbench.models import backbone
from peftbench.storage import files

INSTEAD = "use --to onnx, which holds the whole network, or --to timm"


def write_folder(folder: Path, places: Places, out: Path) -> float:
    """Write model.safetensors, config.json and README.md into the folder `out`.

    Returns the largest difference of logits to the unmerged model, relative to the largest logit.

    Raises RequestError when method, backbone or head cannot be expressed in plain timm, or timm computes other logits.
    """
    apart, merged, _ = merged_models(folder, places)
    config = timm_config(merged)
    tensors, _ = plain_tensors(merged.classifier)
    written: Mapping[str, bytes] = {
        "model.safetensors": save({n: t.detach().cpu().contiguous().clone() for n, t in tensors.items()}),
        "config.json": json.dumps(config, indent=1).encode(),
        "README.md": card.model_card(merged, folder).encode(),
    }
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as draft:
        for name, content in written.items():
            (Path(draft) / name).write_bytes(content)
        error = relative_difference(apart, _loaded(Path(draft)))
    if not error <= TOLERANCE:  # nan too
        raise RequestError(f"timm would compute logits that differ by {error:.1e}; {INSTEAD}.")
    out.mkdir(exist_ok=True)
    for name, content in written.items():
        files.write_bytes(out / name, content)
    return error


def timm_config(model: Model) -> dict[str, Any]:
    """Return the content of config.json. Raises RequestError for a head or network that timm alone cannot build."""
    if model.classifier.head.kind == "l2":
        raise RequestError(f"The head normalizes features to one length, which plain timm has no layer for; {INSTEAD}.")
    name, size = str(model.about["backbone"]), model.about["image_size"]
    plugin = backbone.locate(name, size, blank=True).plugin
    arguments = getattr(plugin, "timm_arguments", None)
    found = arguments(size) if arguments else None
    if found is None:
        raise RequestError(f"No argument of timm.create_model builds the network of {name}; {INSTEAD}.")
    architecture, options = found
    if isinstance(model.classifier.vit, Eva):
        options = {**options, "qkv_fused": True}  # as `create_network` of the backbones builds them
    classes = model.classes
    return {
        "architecture": architecture.partition(".")[0],
        "num_classes": len(classes),
        "num_features": model.classifier.head.linear.in_features,
        "label_names": classes,
        "model_args": {**options, "num_classes": len(classes)},
        "pretrained_cfg": {
            **_input(model.preprocessing),
            "num_classes": len(classes),
            "custom_load": False,
            "license": card.base_card(model).licence,
            "first_conv": "patch_embed.proj",
            "classifier": "head",
        },
        "peftbench": {
            "use": model.about["use"],
            "job": model.about["job"],
            "base": model.about["base"],
            "task": model.about.get("task", "single"),
            "temperature": model.temperature,
        },
    }


def _input(preprocessing: Preprocessing) -> dict[str, Any]:
    """Return the preprocessing under timm's names."""
    side = preprocessing.size
    return {
        "input_size": [3, side, side],
        "fixed_input_size": True,
        "mean": list(preprocessing.mean),
        "std": list(preprocessing.std),
        "interpolation": preprocessing.interpolation,
        "crop_pct": preprocessing.crop if preprocessing.fit == "crop" else 1.0,
        "crop_mode": "center" if preprocessing.fit == "crop" else "squash",
    }


def _loaded(folder: Path) -> nn.Module:
    """Return the network that timm makes of the folder. Raises RequestError where it fails."""
    try:
        return timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    except Exception as error:
        reason = " ".join(str(error).split())[:200].rstrip(".")
        raise RequestError(f"timm cannot build this network ({type(error).__name__}: {reason}); {INSTEAD}.") from error
