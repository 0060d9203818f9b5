"""The rules for data sets, metrics, reports and backbones bite: each fault is caught by the rule meant for it."""
# ruff: noqa: ARG002, ARG005 - the contracts give more than a spoilt plug-in needs

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import nn

from peftbench.backbones._preset import Preset
from peftbench.core.contract import DatasetCard, Labels, Logits, Part, Preprocessing, Result, Splits
from peftbench.errors import MissingDataError
from peftbench.models.backbone import Network
from peftbench.reports.csv import Csv
from peftbench.testing import Finding, check_backbone, check_dataset, check_metric, check_report, failed, findings


@dataclass(frozen=True)
class Mini(Preset):
    preset: ClassVar[str] = "mini"


IMPORTS_TORCH = findings.imports_torch


@pytest.fixture(autouse=True)
def _this_file_imports_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(findings, "imports_torch", lambda _module: False)


def caught(found: Sequence[Finding]) -> set[str]:
    return {finding.rule for finding in found if finding.verdict == "failed"}


# --- data sets -------------------------------------------------------------------------------------------------------

CARD = DatasetCard("Dots", "drawings", ("a", "b"), "CC0", "drawn from a seed", group_key="patient")


def part(name: str, images: int = 6) -> Part:
    pixels, labels = np.zeros((images, 8, 8, 3), np.uint8), np.arange(images) % 2
    names = tuple(f"{name}/{i}.png" for i in range(images))
    return Part(pixels, labels, names, tuple(f"{name} {i // 2}" for i in range(images)))


SPLITS = Splits(part("train"), part("val"), part("test"), "drawn")


@dataclass(frozen=True)
class Dots:
    card: DatasetCard = CARD
    splits: Callable[[], Splits] = lambda: SPLITS

    def load(self, root: Path, seed: int) -> Splits:
        return self.splits()


def with_train(**changes: Any) -> Callable[[], Splits]:
    return lambda: replace(SPLITS, train=replace(SPLITS.train, **changes))


def other_order() -> Splits:
    return replace(SPLITS, test=SPLITS.test.take(np.random.default_rng().permutation(6)))


SPOILT_DATASETS: dict[str, tuple[Dots, str]] = {
    "no licence": (Dots(replace(CARD, licence="")), "the card is complete"),
    "a class twice": (Dots(replace(CARD, classes=("a", "a"))), "the card is complete"),
    "fewer labels than images": (Dots(splits=with_train(labels=np.arange(5) % 2)), "it loads"),
    "a label too high": (Dots(splits=with_train(labels=np.array([0, 1, 2, 0, 1, 0]))), "labels are in range"),
    "a class that train lacks": (Dots(splits=with_train(labels=np.zeros(6, np.int64))), "labels are in range"),
    "a name twice": (Dots(splits=with_train(names=("train/0.png",) * 6)), "no image lies in two parts"),
    "a patient in two parts": (Dots(splits=with_train(groups=("test 0",) * 6)), "groups do not cross"),
    "no seed": (Dots(splits=other_order), "the same seed gives the same parts"),
    "no image": (Dots(splits=with_train(images=[Path("nowhere.png")] * 6)), "its images open"),
}


def test_a_sound_data_set_keeps_every_rule(tmp_path: Path) -> None:
    assert failed(check_dataset(Dots(), tmp_path)) == []


@pytest.mark.parametrize("fault", SPOILT_DATASETS)
def test_a_spoilt_data_set_is_caught(fault: str, tmp_path: Path) -> None:
    dataset, meant = SPOILT_DATASETS[fault]
    assert caught(check_dataset(dataset, tmp_path)) == {meant}


def test_crossing_groups_may_be_noted(tmp_path: Path) -> None:
    shown = replace(with_train(groups=("test 0",) * 6)(), notes=("1 patient lies in train and in test.",))
    assert failed(check_dataset(Dots(splits=lambda: shown), tmp_path)) == []


def test_a_data_set_that_is_not_here_is_skipped_with_the_way_to_get_it(tmp_path: Path) -> None:
    def missing() -> Splits:
        raise MissingDataError("Get it from its authors.")

    first, *others = check_dataset(Dots(splits=missing), tmp_path)
    assert first == Finding("it loads", "", "skipped", "Get it from its authors.")
    assert {finding.verdict for finding in others} == {"skipped"}


# --- metrics ---------------------------------------------------------------------------------------------------------


def hits(logits: Logits, labels: Labels) -> float:
    return float((logits.argmax(1) == labels).mean()) if len(labels) else float("nan")


def mistakes(logits: Logits, labels: Labels) -> float:
    return 1 - hits(logits, labels)


def first_image(logits: Logits, labels: Labels) -> float:
    return hits(logits, labels) * (1 + logits[0, 0]) if len(labels) else float("nan")


def sorts_its_input(logits: Logits, labels: Labels) -> float:
    scored = hits(logits, labels)
    logits.sort(axis=1)
    return scored


def test_a_sound_metric_keeps_every_rule() -> None:
    assert failed(check_metric(hits)) == []
    assert failed(check_metric(mistakes, "mean_error")) == []


@pytest.mark.parametrize(
    ("metric", "meant"),
    [
        (lambda x, y: float((x.argmax(1) == y).mean()), {"undefined values are nan"}),  # warns of an empty mean
        (lambda x, y: "good", {"it gives numbers"}),
        (sorts_its_input, {"it gives numbers"}),
        (mistakes, {"better predictions score better"}),
        (first_image, {"the order of images does not matter", "better predictions score better"}),
    ],
)
def test_a_spoilt_metric_is_caught(metric: Any, meant: set[str]) -> None:
    assert caught(check_metric(metric, "hits")) == meant


def test_a_metric_that_imports_torch_is_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "heavy_metric.py").write_text("import torch\n")
    (tmp_path / "torch.py").touch()  # one that is imported at once
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(findings, "imports_torch", IMPORTS_TORCH)

    def heavy(logits: Logits, labels: Labels) -> float:
        return hits(logits, labels)

    heavy.__module__ = "heavy_metric"
    assert caught(check_metric(heavy)) == {"importing it needs no torch"}


# --- reports ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Writes(Csv):
    """The sound report and one act more."""

    act: Callable[[Sequence[Result], Path], object] = lambda _results, _out: None

    def write(self, results: Sequence[Result], out: Path) -> list[Path]:
        files = super().write(results, out)
        self.act(results, out)
        return files


def tells_names(results: Sequence[Result], out: Path) -> None:
    with (out / "results.csv").open("a") as file:
        file.writelines((result.folder / "private.json").read_text() for result in results)


@pytest.mark.parametrize(
    ("act", "meant"),
    [
        (lambda _, out: (out / "more.txt").write_text("x"), "it writes files"),
        (lambda _, out: (out.parent / "beside.txt").write_text("x"), "the store stays as it was"),
        (lambda results, _: [(r.folder / "seen").touch() for r in results], "the store stays as it was"),
        (lambda _, out: (out / "results.csv").write_bytes(np.random.bytes(9)), "written twice it is the same"),  # noqa: NPY002
        (lambda results, _: results[0].predictions("last"), "failures are no error"),
        (tells_names, "no image is named"),
    ],
)
def test_a_spoilt_report_is_caught(act: Any, meant: str) -> None:
    assert caught(check_report(Writes(act))) == {meant}


# --- backbones -------------------------------------------------------------------------------------------------------


class WithHead(Mini):
    def network(self, image_size: int | None) -> Network:
        vit = super().network(image_size)
        vit.reset_classifier(3)
        return vit


class TakesMemory(Mini):
    def network(self, image_size: int | None) -> Network:
        vit = super().network(image_size)
        vit.norm = nn.LayerNorm(192, device="cpu")
        return vit


class OneSize(Mini):
    def preprocessing(self, image_size: int | None) -> Preprocessing:
        return super().preprocessing(None)


class Bytes(Mini):
    def preprocessing(self, image_size: int | None) -> Preprocessing:
        return dataclasses.replace(super().preprocessing(image_size), mean=(128.0, 128.0, 128.0))


class TakesAnything(Mini):
    def load(self, vit: Network, file: Path) -> list[str]:
        vit.load_state_dict({name: torch.zeros_like(tensor) for name, tensor in vit.state_dict().items()})
        return []


class Forgets(Mini):
    def load(self, vit: Network, file: Path) -> list[str]:
        kept = vit.get_parameter("norm.weight").detach().clone()
        notes = super().load(vit, file)
        vit.get_parameter("norm.weight").data = kept
        return notes


@pytest.mark.parametrize(
    ("kind", "meant"),
    [
        (WithHead, "it builds on the meta device"),
        (TakesMemory, "it builds on the meta device"),
        (OneSize, "it gives one row of features an image"),
        (Bytes, "the card is complete"),
        (TakesAnything, "weights of another network are refused"),
        (Forgets, "its weights fill it"),
    ],
)
def test_a_spoilt_backbone_is_caught(kind: type[Mini], meant: str) -> None:
    assert caught(check_backbone(kind())) == {meant}
