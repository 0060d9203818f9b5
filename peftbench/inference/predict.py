"""Class probabilities of new images, with a warning where an image is unlike the training data."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from peftbench.core.contract import Part
from peftbench.data import image_files
from peftbench.data.batches import ImageBatches
from peftbench.data.decode import decode
from peftbench.data.image_io import broken_sentence
from peftbench.errors import BrokenImagesError, RequestError
from peftbench.inference.model import Model
from peftbench.results.text import csv_text, printable
from peftbench.training.model_card import brightness, is_grey

DecodedPixels: TypeAlias = NDArray[np.uint8]  # decoded images (n, 3, S, S)

NONE_BROKEN: Mapping[str, str] = MappingProxyType({})
BATCH = 64
MARGIN = 0.25  # of the range of the training images, by which brightness may lie outside without a warning
LEAST_RANGE = 10.0  # grey levels; narrower ranges are widened to this
MINORITY = 0.01  # kinds below this share of the training images are treated as unseen
THRESHOLD = 0.5  # probability above which a class of a multi-label task is predicted


def find_images(given: Sequence[Path]) -> list[Path]:
    """Return files as given, and for a folder the image files in and below it, sorted.

    Raises RequestError for a path that does not exist, and when there is no image at all.
    """
    found: list[Path] = []
    for path in given:
        if not path.exists():
            raise RequestError(f"{path} does not exist; name image files or folders of them.")
        found += image_files.images_in(path) if path.is_dir() else [path]
    if not found:
        raise RequestError(f"{given[0]} holds no image ({', '.join(sorted(image_files.EXTENSIONS))}).")
    return found


# --- predictions -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Prediction:
    """The probabilities of one image, in the order of the model's classes."""

    image: str
    probabilities: tuple[float, ...]
    warnings: tuple[str, ...]


def predict(model: Model, files: Sequence[Path], broken: dict[str, str] | None = None) -> Iterator[Prediction]:
    """Yield a prediction for each image.

    Args:
        model: the classifier.
        files: the images.
        broken: receives the names of images that cannot be decoded, with the reason; without it, they are an error.

    Raises BrokenImagesError.
    """
    for i in range(0, len(files), BATCH):
        batch = list(files[i : i + BATCH])
        names = tuple(map(str, batch))
        pixels, bad = decode(Part(batch, np.zeros(len(batch), np.int64), names, names), model.preprocessing)
        reasons = {names[position]: reason for position, reason in bad.items()}
        if reasons and broken is None:
            raise BrokenImagesError(broken_sentence(reasons, ", or pass --skip-broken"))
        (broken if broken is not None else {}).update(reasons)
        yield from _predictions(model, *_intact(batch, pixels, bad))


def _intact(files: Sequence[Path], pixels: DecodedPixels, bad: Collection[int]) -> tuple[list[Path], DecodedPixels]:
    keep = [position for position in range(len(files)) if position not in bad]
    return [files[position] for position in keep], pixels[keep]


def _predictions(model: Model, files: Sequence[Path], pixels: DecodedPixels) -> Iterator[Prediction]:
    """Yield the predictions of decoded images (n, 3, S, S)."""
    if not files:
        return
    size = model.preprocessing.size
    for file, row, unlike in zip(files, probabilities(model, pixels), differences(model, pixels), strict=True):
        yield Prediction(str(file), tuple(map(float, row)), (*_enlarged(file, size), *unlike))


@torch.inference_mode()
def probabilities(model: Model, pixels: DecodedPixels) -> NDArray[np.float64]:
    """Return calibrated probabilities (n, classes) of decoded images (n, 3, S, S)."""
    inputs = ImageBatches(pixels, model.preprocessing, torch.device(model.device))
    index = np.arange(len(pixels))
    batches = [model.classifier(inputs.batch(index[i : i + BATCH])) for i in range(0, len(index), BATCH)]
    logits = torch.cat(batches).double() / (model.temperature or 1.0)
    found: NDArray[np.float64] = (logits.sigmoid() if model.is_multi_label else logits.softmax(dim=1)).cpu().numpy()
    return found


def predicted_class(model: Model, one: Prediction) -> str:
    """Return the most probable class; in a multi-label task all classes above THRESHOLD, joined by +."""
    if model.is_multi_label:
        return "+".join(c for c, p in zip(model.classes, one.probabilities, strict=True) if p > THRESHOLD)
    return model.classes[int(np.argmax(one.probabilities))]


# --- warnings --------------------------------------------------------------------------------------------------------


def differences(model: Model, pixels: DecodedPixels) -> list[tuple[str, ...]]:
    """Return for each decoded image (n, 3, S, S) in which ways it is unlike the training images."""
    seen = model.about["trained_on"]["look"]
    grey, (means, spreads) = is_grey(pixels), brightness(pixels)
    return [tuple(_unlike(seen, bool(g), m, s)) for g, m, s in zip(grey, means, spreads, strict=True)]


def _unlike(seen: Mapping[str, Any], grey: bool, mean: float, spread: float) -> Iterator[str]:  # noqa: FBT001 - a value
    if (seen["grey"] if grey else 1 - seen["grey"]) < MINORITY:
        yield "grey, unlike the training images" if grey else "in color, unlike the training images"
    for what, value, (low, high) in (("brightness", mean, seen["mean"]), ("contrast", spread, seen["contrast"])):
        slack = MARGIN * max(high - low, LEAST_RANGE)
        if not low - slack <= value <= high + slack:
            yield f"{what} {value:.0f} outside the range of the training images, {low:.0f} to {high:.0f}"


def _enlarged(file: Path, side: int) -> tuple[str, ...]:
    """Return a warning for an image that was enlarged; DICOM, which Pillow does not read, is never that small."""
    try:
        with Image.open(file) as picture:
            short = min(picture.size)
    except OSError:
        return ()
    return (f"enlarged: its short side is {short} px, the network's input {side} px",) if short < side else ()


# --- output ----------------------------------------------------------------------------------------------------------


def header(model: Model) -> list[str]:
    """Return the lines on the model that every output carries."""
    about = model.about
    calibration = f"temperature {model.temperature:g}, fitted on validation" if model.temperature else "not calibrated"
    seen = f"{about['trained_on']['dataset']} ({about['trained_on']['modality']})"
    return [
        f"{about['method']['name']} on {about['backbone']}, job {about['job']}, trained on {seen}",
        f"base weights {about['base']}",
        f"probabilities: {calibration}",
        str(about["use"]),
    ]


def as_csv(model: Model, predictions: Sequence[Prediction], broken: Mapping[str, str] = NONE_BROKEN) -> str:
    """Return comment lines that begin with #, then one line per image; comments name the images that were left out.

    A text that looks like a formula gets a leading apostrophe; `as_json` keeps every text as it is.
    """
    out = io.StringIO()
    left_out = [f"left out: {name} ({reason})" for name, reason in broken.items()]
    out.writelines(f"# {printable(line)}\n" for line in (*header(model), *left_out))
    table = csv.writer(out, lineterminator="\n")
    table.writerow(["image", "predicted", *map(csv_text, model.classes), "warnings"])
    for one in predictions:
        shown = [f"{p:.6f}" for p in one.probabilities]
        image, predicted = csv_text(one.image), csv_text(predicted_class(model, one))
        table.writerow([image, predicted, *shown, csv_text("; ".join(one.warnings))])
    return out.getvalue()


def as_json(model: Model, predictions: Sequence[Prediction], broken: Mapping[str, str] = NONE_BROKEN) -> str:
    """Return the same as one JSON object."""
    rows = [
        {
            "image": one.image,
            "predicted": predicted_class(model, one),
            "probabilities": dict(zip(model.classes, one.probabilities, strict=True)),
            "warnings": one.warnings,
        }
        for one in predictions
    ]
    about = {k: model.about[k] for k in ("base", "backbone", "job", "temperature", "use")}
    left_out = {"left_out": dict(broken)} if broken else {}
    return json.dumps({**about, "method": model.about["method"], "predictions": rows, **left_out}, indent=1)
