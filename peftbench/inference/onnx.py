"""A job's model as one ONNX file: images of 0..255 in, calibrated probabilities out.

Normalization, head, temperature and softmax are inside, so that other software has to scale the image and no more.
Adapters that cannot be merged are exported as they are.
"""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from peftbench.core.spec import Places
from peftbench.errors import RequestError
from peftbench.inference import card
from peftbench.inference.model import Model, open_model
from peftbench.storage import files

NEEDED = ("onnx", "onnxruntime", "onnxscript")
MISSING = "--to onnx needs {name}; install it: pip install 'peftbench[onnx]'."
TOLERANCE = 1e-4  # largest difference of probabilities between onnxruntime and torch
OPSET = 18
LIMIT = 2**31 - 2**20  # bytes of a Protocol Buffers file, which ONNX is
CHECKED = 3  # images of the batch that both compute; exported with 2, so that the number is seen to be free


class Exported(nn.Module):
    """Map images (N, 3, S, S), uint8, to probabilities (N, classes)."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        taken = model.preprocessing
        self.register_buffer("mean", 255 * torch.tensor(taken.mean).view(3, 1, 1))
        self.register_buffer("scale", 1 / (255 * torch.tensor(taken.std).view(3, 1, 1)))
        self.vit, self.head = model.classifier.vit, model.classifier.head
        self.temperature, self.multi_label = model.temperature or 1.0, model.is_multi_label

    def forward(self, images: Tensor) -> Tensor:
        """Return what `peftbench predict` prints for these pixels."""
        inputs = (images.float() - self.get_buffer("mean")) * self.get_buffer("scale")
        logits = self.head.linear(self.head.normalize(self.vit(inputs))) / self.temperature
        found: Tensor = logits.sigmoid() if self.multi_label else logits.softmax(dim=1)
        return found


def refuse_without_extra() -> None:
    """Raise RequestError with the command that installs what is missing. Imports nothing."""
    for name in NEEDED:
        if find_spec(name) is None:
            raise RequestError(MISSING.format(name=name))


def write_file(folder: Path, places: Places, out: Path) -> float:
    """Write the model to `out`; return the largest difference of probabilities between onnxruntime and torch.

    Raises RequestError without the extra, for weights of 2 GB and more, for a network that torch cannot export, and
    when onnxruntime computes other probabilities.
    """
    refuse_without_extra()
    model = open_model(folder, places)
    network = Exported(model).eval()
    if (size := sum(t.numel() * t.element_size() for t in network.state_dict().values())) > LIMIT:
        raise RequestError(f"An ONNX file holds 2 GB at most; these weights are {size / 1e9:.1f} GB. Use --to timm.")
    content = _serialized(network, model, metadata(model))
    error = _difference(content, network, model.preprocessing.size)
    if not error <= TOLERANCE:  # nan too
        raise RequestError(f"onnxruntime would compute probabilities that differ by {error:.1e}; please report this.")
    files.write_bytes(out, content)
    return error


def metadata(model: Model) -> dict[str, str]:
    """Return the texts in the file's `metadata_props`; values that are no texts are JSON."""
    about = model.about
    seen = {name: about["trained_on"][name] for name in ("dataset", "modality")}
    side = model.preprocessing.size
    return {
        "classes": json.dumps(model.classes),
        "task": str(about.get("task", "single")),
        "input": f"RGB images of {side} x {side} px, uint8 (N, 3, {side}, {side}), not normalized",
        "output": f"probabilities (N, {len(model.classes)})",
        "preprocessing": json.dumps(model.preprocessing.stored()),
        "preprocessing_inside": "mean, std",
        "temperature": json.dumps(model.temperature),
        "method": json.dumps(about["method"]),
        "backbone": str(about["backbone"]),
        "base": str(about["base"]),
        "licence": card.base_card(model).licence,
        "trained_on": json.dumps(seen),
        "job": str(about["job"]),
        "use": str(about["use"]),
    }


def _serialized(network: Exported, model: Model, texts: Mapping[str, str]) -> bytes:
    """Return the bytes of the ONNX file. Raises RequestError where torch cannot export the network."""
    name, example = model.about["method"]["name"], _images(model.preprocessing.size, 2)
    try:
        with _quiet(), torch.no_grad():
            program = torch.onnx.export(
                network,
                (torch.from_numpy(example),),
                input_names=["images"],
                output_names=["probabilities"],
                dynamic_shapes=({0: torch.export.Dim("batch", min=1)},),
                opset_version=OPSET,
                dynamo=True,
                verbose=False,
            )
    except Exception as error:
        reason = (str(error).splitlines() or [""])[0][:200].rstrip(".")
        raise RequestError(f"torch cannot export {name} to ONNX ({type(error).__name__}: {reason}).") from error
    if program is None:
        raise RequestError(f"torch cannot export {name} to ONNX.")
    proto: Any = program.model_proto
    onnx = import_module("onnx")
    _strip(proto)
    onnx.helper.set_model_props(proto, dict(texts))
    onnx.checker.check_model(proto)
    content: bytes = proto.SerializeToString()
    return content


def _strip(proto: Any) -> None:  # noqa: ANN401 - of a package that may be missing
    """Remove what torch notes on each node: stack traces, with paths of this machine."""
    graph = proto.graph
    nodes = [*graph.node, *(node for function in proto.functions for node in function.node)]
    for noted in (graph, *nodes, *graph.value_info, *graph.initializer, *graph.input, *graph.output, *proto.functions):
        del noted.metadata_props[:]
        noted.doc_string = ""


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep torch's notes on the export to itself."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)


def _images(side: int, count: int) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (count, 3, side, side), dtype=np.uint8)


def _difference(content: bytes, network: Exported, side: int) -> float:
    """Return the largest difference of probabilities on random images, and on a white one.

    Raises RequestError for a file that accepts one number of images only.
    """
    images = _images(side, CHECKED)
    images[-1] = 255
    session = import_module("onnxruntime").InferenceSession(content, providers=["CPUExecutionProvider"])
    if isinstance(batch := session.get_inputs()[0].shape[0], int):
        raise RequestError(f"torch exports this network for {batch} images at a time only; use --to timm.")
    (found,) = session.run(["probabilities"], {"images": images})
    with torch.inference_mode():
        wanted = network(torch.from_numpy(images)).numpy()
    return float(np.abs(found - wanted).max())
