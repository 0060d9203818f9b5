"""Presets of backbones: one checked TOML file each in `peftbench/backbones/`, or in `backbones/` of the working folder.

A preset states the architecture, the weights, the preprocessing and the pretraining of a backbone, and how sure each of
these facts is. An unknown key or a value of the wrong type raises a CatalogueError that names the file and the key.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from peftbench.core.catalogue_files import backbone_names, built_in, own_backbones, read
from peftbench.core.contract import HubFile, Preprocessing
from peftbench.core.fields import sentence
from peftbench.core.syntax import is_random
from peftbench.errors import CatalogueError
from peftbench.storage.files import sha256_json

Texts = Annotated[tuple[str, ...], Field(strict=False)]  # TOML has lists only
Share = Annotated[float, Field(gt=0, le=1)]
Triple = Annotated[tuple[float, float, float], Field(strict=False)]
Option: TypeAlias = bool | int | float | str | Annotated[tuple[int, ...], Field(strict=False)]
Sure: TypeAlias = Literal["checked", "documented", "unverified"]
PARTS = ("architecture", "input", "weights", "licence", "pretraining")
MEGABYTE = 1_000_000  # bytes
HEXADECIMAL = re.compile(r"[0-9a-f]+")


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Input(_Table):
    """How an image becomes the input: `crop` and `fit` as in `Preprocessing`."""

    size: Annotated[int, Field(gt=0)]  # pixels
    mean: Triple  # of pixels in 0..1, per channel
    std: Triple
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"
    crop: Share = 1.0  # share of the short side that the authors' center crop keeps
    fit: Literal["squash", "crop"] = "squash"

    @model_validator(mode="after")
    def _within_0_and_1(self) -> Input:
        if not all(0 <= m <= 1 for m in self.mean) or not all(0 < s <= 1 for s in self.std):
            raise ValueError("mean and std must be those of pixels in 0..1, such as 0.485, not 123.7")
        return self


class Weights(_Table):
    """A file on the Hugging Face hub, or a file on this machine."""

    repository: str = ""  # such as timm/vit_small_patch14_dinov2.lvd142m
    file: str = ""  # in the repository
    revision: str = ""  # commit; "": not known offline, the newest is taken
    sha256: str = ""  # "": not known offline, the hub's own digest is checked
    megabytes: float | None = None  # approximate size
    path: str = ""  # a file on this machine: relative to the working folder, or ~
    shipped: str = ""  # a file in the package
    prefix: str = ""  # of the tensors' names in the file, such as "visual.trunk."

    @model_validator(mode="after")
    def _one_origin(self) -> Weights:
        if bool(self.repository) != bool(self.file):
            raise ValueError("repository and file must be given together")
        if self.sha256 and not (len(self.sha256) == 64 and HEXADECIMAL.fullmatch(self.sha256)):  # noqa: PLR2004 - digits
            raise ValueError("sha256 must be 64 hexadecimal digits")
        return self


class Confidence(_Table):
    """How sure the facts are: checked by a test of peftbench, documented by the authors, or unverified."""

    architecture: Sure = "unverified"
    input: Sure = "unverified"
    weights: Sure = "unverified"
    licence: Sure = "unverified"
    pretraining: Sure = "unverified"


class Preset(_Table):
    """One backbone."""

    title: str
    architecture: str  # timm's name
    pooling: Literal["token", "avg", "map", "both"]  # class token, mean of the patches, attention, class token + mean
    input: Input
    weights: Weights = Weights()
    options: dict[str, Option] = {}  # further arguments of timm.create_model
    licence: str = "unknown"
    gated: str = ""  # address where access must be asked for
    pretraining: Texts = ()  # what it was trained on
    overlap: dict[str, str] = {}  # data set -> why its test images may be among those of the pretraining
    citation: str = ""
    notes: Texts = ()
    confidence: Confidence = Confidence()
    version: Annotated[int, Field(ge=1)] = 1  # raised when a correction changes the features

    @property
    def preprocessing(self) -> Preprocessing:
        """The preprocessing at the preset's own size; the crop counts only where images are cropped."""
        taken = self.input
        crop = taken.crop if taken.fit == "crop" else 1.0
        return Preprocessing(taken.size, taken.mean, taken.std, taken.interpolation, taken.fit, crop)

    @property
    def hub_file(self) -> HubFile | None:
        """The file on the hub; None if the weights are on this machine."""
        if not self.weights.repository:
            return None
        size = round(self.weights.megabytes * MEGABYTE) if self.weights.megabytes else None
        weights = self.weights
        return HubFile(weights.repository, weights.file, weights.revision, weights.sha256, size, self.gated)

    @property
    def unknown(self) -> tuple[str, ...]:
        """The facts about the file on the hub that are not known."""
        wanted = {"revision": self.weights.revision, "sha256": self.weights.sha256, "size": self.weights.megabytes}
        return tuple(name for name, value in wanted.items() if not value) if self.weights.repository else ()


def preset(name: str) -> Preset:
    """Return a preset, built in or the user's own. Raises UnknownNameError and CatalogueError."""
    own = own_backbones()
    return _read_own(own[name]) if name in own else _built_in(name)


@lru_cache
def _built_in(name: str) -> Preset:
    file = built_in("backbones", name)
    return _checked(file, read(file))


def _read_own(file: Path) -> Preset:
    """Read a user's preset; the key `base` names a built-in one whose values hold unless the file states others."""
    content = read(file)
    base = content.pop("base", None)
    if base is not None and base not in backbone_names():
        raise CatalogueError(f"{file}: base = {base!r} is no built-in preset; `peftbench list backbones` names them.")
    return _checked(file, _merged(read(built_in("backbones", base)), content) if base else content)


def _merged(base: Mapping[str, Any], content: Mapping[str, Any]) -> dict[str, Any]:
    """Return the base's values with those of the file in their place; a new file of weights replaces the old one."""
    found = dict(base)
    for key, value in content.items():
        inner = isinstance(value, Mapping) and key not in {"weights", "overlap"} and isinstance(found.get(key), Mapping)
        found[key] = {**found[key], **value} if inner else value
    stated = [
        part for part in PARTS if part in content or (part == "architecture" and {"options", "pooling"} & set(content))
    ]
    unsure = dict.fromkeys(PARTS if "weights" in content else stated, "unverified")
    found["confidence"] = {**base.get("confidence", {}), **unsure, **content.get("confidence", {})}
    return found


def _checked(file: Path, content: Mapping[str, Any]) -> Preset:
    try:
        return Preset.model_validate(content)
    except ValidationError as error:
        raise CatalogueError(sentence(error, file, lambda key: f"key {key!r}")) from None


def network_digest(name: str) -> str:
    """Return what a job's id must contain of a preset besides its name: "" for a built-in one of version 1.

    A user may change the network of a preset under the same name, so that its digest identifies it.
    """
    known = preset(name)
    if name not in own_backbones():
        return "" if known.version == 1 else f"version {known.version}"
    return sha256_json([known.architecture, known.options, known.pooling, known.weights.prefix])[:16]


def overlap(backbone: str, dataset: str, *, own: bool = True) -> str:
    """Return why the test images of a data set may be among those that a preset was pretrained on; "" if not known.

    Both are named as in a job, such as `clip_vit_b16[depth=8]` and `medmnist:octmnist[size=64]`. Without `own`, only
    built-in presets are looked up. Random weights have seen nothing. Raises CatalogueError for a user's wrong file.
    """
    name, plain = backbone.partition("[")[0], dataset.partition("[")[0]
    if is_random(backbone) or not (name in backbone_names() or (own and name in own_backbones())):
        return ""
    known = preset(name).overlap if own else _built_in(name).overlap
    return known.get(plain) or known.get(plain.partition(":")[0], "")
