"""The trained model of a job, rebuilt from the backbone's weights and the job's delta.

The images that it was trained on are not needed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peftbench.core.contract import Preprocessing
from peftbench.core.spec import Places
from peftbench.errors import DeltaError
from peftbench.models import backbone, delta
from peftbench.models.head import Classifier
from peftbench.results.redaction import public_names
from peftbench.results.store import JobFolder, read_record
from peftbench.storage import files


@dataclass(frozen=True)
class Model:
    """A trained classifier with what is stored about it in `delta.json`."""

    classifier: Classifier
    about: Mapping[str, Any]
    merged: bool  # whether the delta was folded into the backbone
    device: str

    @property
    def classes(self) -> list[str]:
        """Names of the classes, in the order of the logits."""
        return list(self.about["head"]["classes"])

    @property
    def is_multi_label(self) -> bool:
        """Whether an image may belong to several classes."""
        return bool(self.about.get("task") == "multi_label")

    @property
    def temperature(self) -> float | None:
        """The temperature fitted on validation; None where there was no validation part."""
        return self.about.get("temperature") or None

    @property
    def preprocessing(self) -> Preprocessing:
        """How an image becomes the input of the network."""
        return Preprocessing.restored(self.about["preprocessing"])


def open_model(folder: Path, places: Places, *, merge: bool = True) -> Model:
    """Return the model of a finished job; with `merge` folded into the backbone where its method can.

    Raises WeightsError or DeltaError when the backbone's weights are not those that the job was trained on.
    """
    about = _published(delta.read_about(folder))
    _check_digests(folder)
    base = str(about.get("base"))
    if base.startswith("random:"):
        source = backbone.locate(about["backbone"], about["image_size"])
        seed = int(base.removeprefix("random:"))
    else:
        source, seed = backbone.locate(about["backbone"], about["image_size"], places.weights), 0
    if source.network_digest != about.get("network", ""):
        raise DeltaError(
            f"backbones/{source.spec.name}.toml describes another network than the one that the delta in {folder} was "
            "trained on. Restore the file."
        )
    vit = source.build(seed)
    tuned, tensors = delta.restore(vit, folder, source.digest(seed))
    try:
        head = delta.restore_head(vit.num_features, about, tensors.__getitem__)
    except (KeyError, RuntimeError):
        raise DeltaError(f"The delta in {folder} holds no head for {len(about['head']['classes'])} classes.") from None
    classifier = Classifier(vit, head).eval()
    merged = tuned.merge() if merge else False
    return Model(classifier.to(places.device), about, merged, places.device)


def _published(about: Mapping[str, Any]) -> dict[str, Any]:
    """Return what is stored about a model with the name of its data set that may be published: no path."""
    seen = dict(about.get("trained_on", {}))
    if name := seen.get("dataset"):
        seen["dataset"] = public_names([name])[name]
    return {**about, "trained_on": seen}


def _check_digests(folder: Path) -> None:
    """Raise DeltaError for a delta that is not the one in the job's record; a delta without a record is accepted."""
    if (record := read_record(JobFolder(folder).record_file)) is None:
        return
    for name in ("delta.json", "delta.safetensors"):
        if record.files.get(name) != files.sha256_file(folder / name):
            raise DeltaError(f"{folder / name} does not match the digest in the job's record; run the job again.")
