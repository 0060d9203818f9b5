"""A finished job put to use: class probabilities of new images, or one plain file of weights.

Both start from the backbone's weights and the job's delta; neither needs the images that it was trained on.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import save
from torch import Tensor, nn

from peftbench.core.contract import Part, Preprocessing
from peftbench.core.spec import Places
from peftbench.data import image_files
from peftbench.data.batches import Images
from peftbench.data.decode import decode
from peftbench.errors import BrokenImagesError, DeltaError, RequestError
from peftbench.models import backbone, delta
from peftbench.models.head import Classifier, Head
from peftbench.models.plan import Graft
from peftbench.results.store import Store, read_record
from peftbench.storage import files
from peftbench.training.model_card import brightness, is_grey

BATCH = 64
MARGIN = 0.25  # of the training images' range, by which a new image's brightness may lie outside without a warning
EQUAL = 1e-5  # largest difference of merged and unmerged logits, relative to their size
MINORITY = 0.01  # of the training images, below which a kind of image counts as never seen


def find_job(store: Path, text: str) -> Path:
    """The folder of a job: by its path, its id, or as much of the id as is unique. Raises RequestError."""
    if (Path(text) / "delta.json").is_file():
        return Path(text)
    jobs = store / "jobs"
    found = sorted(p for p in jobs.iterdir() if p.name.startswith(text)) if jobs.is_dir() and text else []
    if len(found) != 1:
        many = f"{len(found)} jobs in {store} begin so" if found else f"no job in {store} has that id"
        raise RequestError(f"Cannot find the job {text!r}: {many}; `peftbench status {store}` lists them.")
    if not (found[0] / "delta.json").is_file():
        record = Store(store).job(found[0].name).record()
        why = "it failed, is a trial, or nothing trains"
        why = "its delta.json is gone" if record is not None and "delta.json" in record.files else why
        raise RequestError(f"The job {found[0].name} has no trained model: {why}.")
    return found[0]


def find_images(given: Sequence[Path]) -> list[Path]:
    """Files as given, folders as the image files in and below them, sorted. Raises RequestError when there is none."""
    found: list[Path] = []
    for path in given:
        if not path.exists():
            raise RequestError(f"{path} does not exist; name image files or folders of them.")
        found += image_files.images_in(path) if path.is_dir() else [path]
    if not found:
        raise RequestError(f"{given[0]} holds no image ({', '.join(sorted(image_files.EXTENSIONS))}).")
    return found


@dataclass(frozen=True)
class Prediction:
    """What a model says of one image."""

    image: str
    probabilities: tuple[float, ...]
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class Model:
    """A trained classifier, merged where its method can, and what it says of itself."""

    classifier: Classifier
    about: Mapping[str, Any]
    merged: bool
    device: str

    @property
    def classes(self) -> list[str]:
        """In the order of the logits."""
        return list(self.about["head"]["classes"])

    @property
    def preprocessing(self) -> Preprocessing:
        """What every image goes through."""
        told: dict[str, Any] = {
            k: tuple(v) if isinstance(v, list) else v for k, v in self.about["preprocessing"].items()
        }
        return Preprocessing(**told)

    @torch.inference_mode()
    def probabilities(self, pixels: NDArray[np.uint8]) -> NDArray[np.float64]:
        """(n, 3, S, S) decoded images -> (n, classes), at the temperature found on validation."""
        inputs = Images(pixels, self.preprocessing, torch.device(self.device))
        index = np.arange(len(pixels))
        batches = [self.classifier(inputs.batch(index[i : i + BATCH])) for i in range(0, len(index), BATCH)]
        logits = torch.cat(batches).double() / (self.about.get("temperature") or 1.0)
        several = self.about.get("task") == "multi_label"
        found: NDArray[np.float64] = (logits.sigmoid() if several else logits.softmax(dim=1)).cpu().numpy()
        return found

    def predict(self, files: Sequence[Path]) -> Iterator[Prediction]:
        """Each image's probabilities, with a warning where it does not look like the training data.

        Raises BrokenImagesError for images that do not open.
        """
        for i in range(0, len(files), BATCH):
            some = list(files[i : i + BATCH])
            names = tuple(map(str, some))
            pixels, bad = decode(Part(some, np.zeros(len(some), np.int64), names, names), self.preprocessing)
            if bad:
                many = f" and {len(bad) - 1} more do" if len(bad) > 1 else " does"
                raise BrokenImagesError(f"The image {some[bad[0]]}{many} not open; leave out what is none.")
            warned, sizes = self.warnings(pixels), [_too_small(file, self.preprocessing.size) for file in some]
            for name, row, small, said in zip(names, self.probabilities(pixels), sizes, warned, strict=True):
                yield Prediction(name, tuple(map(float, row)), (*small, *said))

    def warnings(self, pixels: NDArray[np.uint8]) -> list[tuple[str, ...]]:
        """For each image (n, 3, S, S), in which ways it is unlike the training images."""
        seen = self.about["trained_on"]["look"]
        grey, (means, spreads) = is_grey(pixels), brightness(pixels)
        return [tuple(_unlike(seen, bool(g), m, s)) for g, m, s in zip(grey, means, spreads, strict=True)]


def _unlike(seen: Mapping[str, Any], grey: bool, mean: float, spread: float) -> Iterator[str]:  # noqa: FBT001
    if (seen["grey"] if grey else 1 - seen["grey"]) < MINORITY:
        yield "grey, unlike the training images" if grey else "in colour, unlike the training images"
    for what, value, (low, high) in (("brightness", mean, seen["mean"]), ("contrast", spread, seen["contrast"])):
        slack = MARGIN * max(high - low, 10.0)
        if not low - slack <= value <= high + slack:
            yield f"{what} {value:.0f} outside of the training images' {low:.0f} to {high:.0f}"


def _too_small(file: Path, side: int) -> tuple[str, ...]:
    """Said of a picture that had to be enlarged; DICOM, which Pillow cannot open, is never that small."""
    try:
        with Image.open(file) as picture:
            short = min(picture.size)
    except OSError:
        return ()
    return (f"its short side is {short} px, the network looks at {side}",) if short < side else ()


def open_model(folder: Path, places: Places, *, merge: bool = True) -> Model:
    """The model of a finished job. Raises WeightsError, DeltaError when the weights are not those it was made for."""
    about = delta.read_about(folder)
    _refuse_anothers(folder)
    base = str(about.get("base"))
    if base.startswith("random:"):
        source = backbone.locate(about["backbone"], about["image_size"])
        seed = int(base.removeprefix("random:"))
    else:
        source, seed = backbone.locate(about["backbone"], about["image_size"], places.weights), 0
    vit = source.build(seed)
    tuned, tensors = delta.restore(vit, folder, source.digest(seed))
    head = Head(vit.num_features, len(about["head"]["classes"]), about["head"]["kind"], about["head"]["scale"], 0)
    try:
        head.load_state_dict(tensors)
    except RuntimeError:
        raise DeltaError(f"The delta in {folder} holds no head for {len(about['head']['classes'])} classes.") from None
    classifier = Classifier(vit, head).eval()
    merged = tuned.merge() if merge else False
    return Model(classifier.to(places.device), about, merged, places.device)


def _refuse_anothers(folder: Path) -> None:
    """Raises DeltaError for a delta that is not the one the job's record vouches for; one by itself is welcome."""
    if (record := read_record(folder / "record.json")) is None:
        return
    for name in ("delta.json", "delta.safetensors"):
        if record.files.get(name) != files.sha256_file(folder / name):
            raise DeltaError(f"{folder / name} is not what the job's record was written for; run the job again.")


# --- one plain file --------------------------------------------------------------------------------------------------


def merge(folder: Path, places: Places, out: Path) -> float:
    """Write plain timm weights with a linear head to `out`, and what to know of them beside it.

    Returns the largest difference of logits, relative to their size. Raises RequestError where the method's change does
    not fold into the backbone, or does so with other logits.
    """
    apart, whole = (open_model(folder, places, merge=m) for m in (False, True))
    name = whole.about["method"]["name"]
    if not whole.merged:
        raise RequestError(f"{name} cannot be merged: what it adds {_left(whole.classifier.vit)}.")
    tensors, head = plain_tensors(whole.classifier)
    off = difference(apart, whole)
    if off > EQUAL:
        raise RequestError(f"{name} was not merged: the logits would change by {off:.1e}; please report this.")
    files.write_bytes(out, save({n: t.detach().cpu().contiguous().clone() for n, t in tensors.items()}))
    kept = {k: v for k, v in whole.about.items() if k not in {"grafts", "shared", "sha256", "format"}}
    told = {**kept, "head": {**whole.about["head"], **head}, "sha256": files.sha256_file(out)}
    files.write_json(out.with_name(f"{out.name}.json"), told)
    return off


def _left(vit: nn.Module) -> str:
    """Which grafts are still there, in words."""
    sites = [name for name, module in vit.named_modules() if isinstance(module, Graft)]
    more = f" and {len(sites) - 1} more places" if len(sites) > 1 else ""
    return f"at {sites[0]}{more} does not fold into the backbone's own tensors"


def plain_tensors(classifier: Classifier) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """A timm state dict of backbone and `head.weight`, `head.bias`, and what remains to be done before that head.

    A batch norm folds into the linear layer; bringing features to a length does not, and is told.
    """
    head: Head = classifier.head
    weight, bias = head.linear.weight.double(), head.linear.bias.double()
    if isinstance(head.norm, nn.BatchNorm1d):
        mean, variance = (head.norm.get_buffer(f"running_{what}").double() for what in ("mean", "var"))
        weight = weight / (variance + head.norm.eps).sqrt()
        bias = bias - weight @ mean
    own = {n: t for n, t in classifier.vit.state_dict().items() if not n.startswith("head.")}
    dtype = head.linear.weight.dtype
    tensors = {**own, "head.weight": weight.to(dtype), "head.bias": bias.to(dtype)}
    before = {"kind": "l2", "scale": head.scale} if head.kind == "l2" else {"kind": "plain", "scale": 1.0}
    return tensors, before


@torch.inference_mode()
def difference(apart: Model, whole: Model) -> float:
    """Of two models' logits on random images, the largest relative to the largest logit."""
    side = apart.preprocessing.size
    images = torch.randn(4, 3, side, side, generator=torch.Generator().manual_seed(0)).to(apart.device)
    one, other = apart.classifier(images), whole.classifier(images)
    return float((one - other).abs().max() / one.abs().max().clamp_min(1.0))


def header(model: Model) -> list[str]:
    """What must stand in every output."""
    about = model.about
    heat = about.get("temperature")
    calibrated = f"temperature {heat:g}, found on validation" if heat else "not calibrated (no validation part)"
    seen = f"{about['trained_on']['dataset']} ({about['trained_on']['modality']})"
    return [
        f"{about['method']['name']} on {about['backbone']}, job {about['job']}, trained on {seen}",
        f"base weights {about['base']}",
        f"probabilities: {calibrated}",
        str(about["use"]),
    ]


def as_csv(model: Model, predictions: Sequence[Prediction]) -> str:
    """Comment lines beginning with #, then one line an image."""
    out = io.StringIO()
    out.writelines(f"# {line}\n" for line in header(model))
    table = csv.writer(out, lineterminator="\n")
    table.writerow(["image", "predicted", *model.classes, "warnings"])
    for one in predictions:
        shown = [f"{p:.6f}" for p in one.probabilities]
        table.writerow([one.image, chosen(model, one), *shown, "; ".join(one.warnings)])
    return out.getvalue()


def as_json(model: Model, predictions: Sequence[Prediction]) -> str:
    """The same as one JSON object."""
    rows = [
        {
            "image": one.image,
            "predicted": chosen(model, one),
            "probabilities": dict(zip(model.classes, one.probabilities, strict=True)),
            "warnings": one.warnings,
        }
        for one in predictions
    ]
    about = {k: model.about[k] for k in ("base", "backbone", "job", "temperature", "use")}
    return json.dumps({**about, "method": model.about["method"], "predictions": rows}, indent=1)


def chosen(model: Model, one: Prediction) -> str:
    """The likeliest class; of several labels an image, all above one half."""
    if model.about.get("task") == "multi_label":
        return "+".join(c for c, p in zip(model.classes, one.probabilities, strict=True) if p > 0.5)  # noqa: PLR2004
    return model.classes[int(np.argmax(one.probabilities))]
