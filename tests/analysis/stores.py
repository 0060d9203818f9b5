"""A store of full jobs whose changes are made by hand, so that the most-moved weights are known."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from peftbench.analysis.full_jobs import FullJob, FullSeries, find_series
from peftbench.core.record import Record
from peftbench.core.spec import Places
from peftbench.models import backbone, delta
from peftbench.models.plan import Plan
from peftbench.results.redaction import publish
from peftbench.results.store import JobFolder, Store
from peftbench.training.job import run
from tests import studies

Changes = Mapping[str, tuple[list[int], float]]  # tensor -> flat indices, and how far they move; others by 1e-6


def make(
    home: Path, methods: tuple[str, ...] = ("full",), images: str = "images", seed: int = 0, steps: int = 1
) -> list[JobFolder]:
    """Run jobs of a few steps on drawn images; return their folders."""
    asked = studies.small(home / images, methods=methods, steps=steps, evaluations=1, seeds=(seed,))
    where = studies.places(home)
    jobs = studies.jobs(asked, where)
    assert all(run(job, where) for job in jobs)
    return [Store(where.store).job(job.id) for job in jobs]


def rewrite(folder: JobFolder, changes: Changes) -> dict[str, Tensor]:
    """Replace the tuned weights of a full job by pretrained ones with known changes; return them."""
    about = json.loads((folder.path / "delta.json").read_text())
    pretrained = dict(backbone.locate(about["backbone"], about["image_size"]).build(0).named_parameters())
    _, state, _ = delta.read(folder.path, about["base"])
    tuned = {name: tensor.detach() + 1e-6 for name, tensor in pretrained.items()}
    for name, (index, far) in changes.items():
        tuned[name].view(-1)[index] = pretrained[name].detach().view(-1)[index] + far
    head = {name: tensor for name, tensor in state.items() if name.startswith("head/")}
    facts = {key: value for key, value in about.items() if key not in {"format", "grafts", "shared", "sha256"}}
    delta.write(
        folder.path,
        Plan(tune=frozenset(tuned)),
        {**{f"tune/{name}": tensor for name, tensor in tuned.items()}, **head},
        facts,
    )
    record = folder.record()
    assert record is not None
    folder.write_record(Record.model_validate(record.model_dump(by_alias=True)))
    return tuned


def series(where: Places) -> FullSeries:
    """The only series of a store."""
    (found,) = find_series(publish(Store(where.store).results()), where)
    return found


def by_name(where: Places) -> dict[str, FullJob]:
    """The jobs of the only series by data set and seed."""
    return {job.name: job for job in series(where).jobs}


def same(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
