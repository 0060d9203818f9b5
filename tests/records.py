"""Fake finished and failed jobs as a store holds them: what reports are written from."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from peftbench.core.contract import Result
from peftbench.core.record import (
    SCHEMA,
    WHOLE,
    BackboneFacts,
    Budget,
    Choice,
    Costs,
    Counts,
    DataFacts,
    MethodFacts,
    Record,
    Tuning,
    Variant,
)
from peftbench.results.store import JobFolder
from peftbench.statistics.scores import accuracy, confusion, macro_f1

PARAMETERS = 2_700_000
RULES = ("validation", "last", "oracle")


@dataclass(frozen=True)
class Fake:
    """One job to be faked; `skill` is how far the true class's logit lies above the others."""

    method: str = "lora"
    dataset: str = "busi"
    seed: int = 0
    skill: float = 1.0
    target: int | None = None
    trainable: int = 27_648
    label: str = ""
    recipe: str = "standard"
    lr: float = 1e-3
    tuned: bool = True
    random: bool = False
    synthetic: bool = False
    classes: int = 3
    images: int = 90
    per_group: int = 2
    absent: int = -1  # a class that the test set lacks
    edge: str | None = None
    reason: str = ""  # of a failure
    role: str = "final"
    variant: Variant = WHOLE
    backbone: str = "mini"
    flops: float | None = None  # of a prediction
    own_test: bool = False  # whether the seed has test images of its own
    same_label: bool = False  # whether the images of a group have one label

    @property
    def id(self) -> str:
        return hashlib.sha256(repr(self).encode()).hexdigest()[:16]

    def predictions(self, rule: str) -> dict[str, np.ndarray[Any, Any]]:
        labels = np.arange(self.images) % self.classes
        labels[labels == self.absent] = 0
        rng = np.random.default_rng([self.seed, RULES.index(rule), len(self.method)])
        logits = rng.normal(size=(self.images, self.classes)).astype(np.float32)
        logits[np.arange(self.images), labels] += self.skill + 0.2 * (rule == "oracle")
        groups = np.arange(self.images) // (self.classes * self.per_group)
        if self.same_label:
            groups = groups * self.classes + labels
        return {"logits": logits, "labels": labels, "groups": groups}

    def write(self, store: Path) -> Result:
        folder = store / "jobs" / self.id
        folder.mkdir(parents=True)
        arrays: dict[str, np.ndarray[Any, Any]] = {}
        for rule in () if self.reason else RULES:
            found = self.predictions(rule)
            for part in ("test", "val"):
                arrays |= {f"{part}/{rule}/logits": found["logits"]}
                arrays |= {f"{part}/labels": found["labels"], f"{part}/groups": found["groups"]}
        if arrays:
            JobFolder(folder).write_predictions(arrays)
        record = self.record().sealed()
        (folder / "record.json").write_text(record.model_dump_json())
        return Result(record, folder)

    def record(self) -> Record:
        return Record.model_validate(
            {
                "schema_version": SCHEMA,
                "id": self.id,
                "role": self.role,
                "status": "failed" if self.reason else "done",
                "reason": self.reason,
                "method": MethodFacts(name=self.method, version=1, fields={}, label=self.label or self.method),
                "data": self.data(),
                "backbone": self.network(),
                "recipe": {
                    "name": self.recipe,
                    "lr": self.lr,
                    "selection": "validation",
                    "steps": 80,
                    "head": "plain",
                },
                "seed": self.seed,
                "threads": 1,
                "budget": Budget(target=self.target, reached=self.trainable, knob="r", edge=self.edge)  # type: ignore[arg-type]
                if self.target
                else None,
                "counts": None
                if self.reason
                else Counts(trainable=self.trainable, head=192 * self.classes + self.classes),
                "choices": {} if self.reason else {rule: self.choice(rule) for rule in RULES},
                "costs": None if self.reason else self.costs(),
                "tuning": Tuning(grid=[1e-4, self.lr], scores=[0.4, 0.5], trials=["a", "b"], chosen=self.lr)
                if self.tuned
                else None,
            }
        )

    def data(self) -> DataFacts:
        return DataFacts(
            name=self.dataset,
            fingerprint="f" * 64,
            split="official",
            sizes={"train": 400, "val": 50, "test": self.images},
            groups={"train": 200, "val": 25, "test": self.images // (self.classes * self.per_group)},
            card={
                "title": self.dataset.replace("_", " ").title(),
                "group_key": "patient",
                "synthetic": self.synthetic,
                "classes": [f"c{i}" for i in range(self.classes)],
            },
            notes=[],
            variant=self.variant,
            test=f"{self.seed:016x}" if self.own_test else "e" * 16,
        )

    def network(self) -> BackboneFacts:
        return BackboneFacts(
            name=self.backbone + ("@random" if self.random else ""),
            digest=f"random:{self.seed}" if self.random else "d" * 64,
            random=self.random,
            parameters=PARAMETERS,
            preprocessing={"size": 64},
        )

    def choice(self, rule: str) -> Choice:
        found = self.predictions(rule)
        table = confusion(found["logits"], found["labels"])
        scores = {
            "macro_f1": macro_f1(table).item(),
            "accuracy": accuracy(table).item(),
            "brier_score_loss": 1 - accuracy(table).item(),
            "auc": None if self.absent >= 0 else min(1.0, 0.5 + 0.2 * self.skill),
        }
        return Choice(step={"validation": 48, "last": 80, "oracle": 64}[rule], val=scores, test=scores)

    def costs(self) -> Costs:
        return Costs(
            seconds=12.34,
            selection_seconds=0.5,
            train_seconds=10.0,
            evaluation_seconds=1.0,
            images_per_second=200.0,
            peak_memory=431 * 2**20,
            delta_bytes=4 * self.trainable,
            flops_forward=self.flops,
        )


def study(
    store: Path, datasets: tuple[str, ...] = ("covid_ct", "busi", "phantom_ct"), seeds: tuple[int, ...] = (0, 1)
) -> list[Result]:
    """A small study: baselines, three methods at several budgets, full tuning; one job failed, one AUC is undefined."""
    fakes = []
    for dataset in datasets:
        for seed in seeds:
            common: dict[str, Any] = {"dataset": dataset, "seed": seed, "synthetic": dataset.startswith("phantom")}
            common["absent"] = 2 if dataset == "busi" else -1
            fakes += [
                Fake("majority", skill=-1.0, trainable=0, tuned=False, **common),
                Fake("linear", skill=0.3, trainable=0, random=True, **common),
                Fake("linear", skill=1.0, trainable=0, **common),
                Fake("bitfit", skill=1.5, trainable=18_432, **common),
                Fake("my_own_method", skill=1.4, trainable=9_000, tuned=False, **common),
                Fake("full", skill=2.2, trainable=PARAMETERS, lr=1e-4, **common),
            ]
            fakes += _curve("lora", (1.4, 1.8, 2.0), common) + _curve("shpeft", (1.7, 2.1, 2.2), common)
    failed = Fake(
        "ssf",
        datasets[0],
        synthetic=datasets[0].startswith("phantom"),
        reason="out of memory at batch 32; the last image was '/scans/patient_17.png'",
    )
    return [fake.write(store) for fake in [*fakes, failed]]


def _curve(method: str, skills: tuple[float, ...], common: dict[str, Any]) -> list[Fake]:
    shares = (0.001, 0.01, 0.1)
    label = "shpeft[lam=0.5]" if method == "shpeft" else ""
    return [
        Fake(
            method,
            label=label,
            skill=skill,
            target=round(share * PARAMETERS),
            trainable=max(round(share * PARAMETERS * 1.02), 4000),
            edge="floor" if share * PARAMETERS < 4000 else None,
            **common,
        )
        for share, skill in zip(shares, skills, strict=True)
    ]


def faked(*_: object) -> Record:
    """The record of some job, at once: also in a process that imports no torch."""
    return Fake().record()
