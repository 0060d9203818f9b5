"""Cross-validation: the out-of-fold predictions of all images, pooled into one record for the tables.

Every fold is a job of its own, tuned on its own validation part, and is not shown in tables. The pooled record looks
like a job whose test part is the whole data set: its metrics are computed on the joined predictions, so that methods
are compared on the same images, each predicted by a model that has not seen it or its group.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from peftbench.core.contract import Logits, Result
from peftbench.core.record import Choice, Costs, Record
from peftbench.core.spec import Job
from peftbench.results.store import JobFolder, Store
from peftbench.storage.files import sha256_json
from peftbench.training.record_writer import compute_scores

MetricScores: TypeAlias = dict[str, float | None]


def pool_all(jobs: Sequence[Job], store: Store) -> list[str]:
    """Pool the folds among the jobs; return the ids of all jobs to show, pooled ones in place of their folds."""
    shown, folds = list[str](), dict[tuple[Any, ...], list[Job]]()
    for job in jobs:
        if not job.variant.folds:
            shown.append(job.id)
            continue
        key = (job.label, job.target, job.backbone, job.dataset, replace(job.variant, fold=0), job.seed)
        folds.setdefault(key, []).append(job)
    return shown + [pool(sorted(found, key=lambda job: job.variant.fold), store) for found in folds.values()]


def pool(jobs: Sequence[Job], store: Store) -> str:
    """Write the record and the predictions of one method over all folds; return its id."""
    job_id = sha256_json(["folds", [job.id for job in jobs]])[:16]
    folder = store.job(job_id)
    records = [record for job in jobs if (record := store.job(job.id).record()) is not None]
    done = folder.look()[1]
    if len(records) < len(jobs) or (done is not None and done.status == "done"):
        return job_id
    with folder.claim() as claimed:
        if not claimed:
            return job_id
        pooled = records[0].model_copy(update={"id": job_id, "role": "final", "files": {}, "tuning": _tuning(records)})
        if failed := [record for record in records if record.status == "failed"]:
            reason = f"{failed[0].data.split.partition(',')[0]}: {failed[0].reason}"
            update: dict[str, Any] = {"status": "failed", "reason": reason, "choices": {}, "costs": None}
            folder.write_record(pooled.model_copy(update=update))
            return job_id
        found = _Pooled([store.job(job.id).result() for job in jobs])
        folder.write_predictions(found.arrays())
        folder.write_private({"names": {"test": found.names}, "groups": {"test": found.groups}})
        folder.write_record(pooled.model_copy(update=found.facts(jobs)))
    return job_id


def _tuning(records: Sequence[Record]) -> Any:  # noqa: ANN401 - a Tuning or None
    """Return the search of a fold, of one that ended at an edge if there is one."""
    return next((r.tuning for r in records if r.tuning and r.tuning.edge), records[0].tuning)


class _Pooled:
    """The test predictions of all folds in the order of the images' names."""

    def __init__(self, results: Sequence[Result | None]) -> None:
        self._results = [result for result in results if result is not None]
        private = [json.loads(JobFolder(result.folder).private_file.read_bytes()) for result in self._results]
        names = [name for one in private for name in one["names"]["test"]]
        groups = [group for one in private for group in one["groups"]["test"]]
        self._order = np.argsort(np.asarray(names, np.str_), kind="stable")
        self.names = [names[i] for i in self._order]
        self.groups = [groups[i] for i in self._order]
        self.records = [result.record for result in self._results]
        self.rules = [rule for rule in self.records[0].choices if all(rule in r.choices for r in self.records)]
        self.labels = np.concatenate([result.predictions(self.rules[0])[1] for result in self._results])[self._order]

    def logits(self, rule: str) -> Logits:
        """Return the logits (n, classes) at the steps that a rule chose in each fold."""
        found: Logits = np.concatenate([result.predictions(rule)[0] for result in self._results])[self._order]
        return found

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Return the content of predictions.npz."""
        groups = np.unique(np.asarray(self.groups, np.str_), return_inverse=True)[1].astype(np.int64)
        logits = {f"test/{rule}/logits": self.logits(rule) for rule in self.rules}
        return {"test/labels": self.labels, "test/groups": groups, **logits}

    def facts(self, jobs: Sequence[Job]) -> dict[str, Any]:
        """Return the values of the record that differ from those of a fold."""
        first, records = self.records[0], self.records
        sizes = {part: round(statistics.fmean(r.data.sizes[part] for r in records)) for part in ("train", "val")}
        groups = {part: round(statistics.fmean(r.data.groups[part] for r in records)) for part in ("train", "val")}
        data = first.data.model_copy(
            update={
                "fingerprint": sha256_json([r.data.fingerprint for r in records]),
                "split": f"{jobs[0].variant.folds} folds{first.data.split.partition(',')[1]}"
                f"{first.data.split.partition(',')[2]}",
                "sizes": sizes | {"test": len(self.labels)},
                "groups": groups | {"test": len(set(self.groups))},
                "variant": replace(jobs[0].variant, fold=0),
                "test": sha256_json([self.names, self.labels.tolist()])[:16],
                "balance": {
                    "test": [sum(counts) for counts in zip(*(r.data.balance["test"] for r in records), strict=True)]
                },
            }
        )
        rates = ", ".join(f"{r.recipe['optimiser']} {r.recipe['lr']:g}" for r in records)
        notes = [f"out-of-fold predictions; learning rates by fold: {rates}"]
        return {
            "data": data,
            "choices": {rule: self._choice(rule) for rule in self.rules},
            "costs": _total([r.costs for r in records if r.costs]),
            "notes": [*notes, *dict.fromkeys(note for r in records for note in r.notes)],
        }

    def _choice(self, rule: str) -> Choice:
        logits, data = self.logits(rule), self.records[0].data
        groups, task = self.groups if data.card.get("group_key") else (), data.card.get("task", "single")
        steps = [r.choices[rule].step for r in self.records]
        test = compute_scores(logits, self.labels, groups, task, data.positive_index)
        val = _mean([r.choices[rule].val for r in self.records])
        return Choice(step=round(statistics.fmean(steps)), val=val, test=test)


def _mean(scores: Sequence[Mapping[str, float | None]]) -> MetricScores:
    """Return the mean of each metric over folds; None where it is undefined in one of them."""
    values = {name: [one.get(name) for one in scores] for name in scores[0]}
    return {
        name: None if None in found else statistics.fmean(v for v in found if v is not None)
        for name, found in values.items()
    }


def _total(costs: Sequence[Costs]) -> Costs | None:
    """Return the times of all folds added up, and the peak memory of the largest."""
    if not costs:
        return None
    names = ("seconds", "selection_seconds", "train_seconds", "evaluation_seconds")
    sums: dict[str, Any] = {name: sum(getattr(one, name) for one in costs) for name in names}
    return costs[0].model_copy(update=sums | {"peak_memory": max(one.peak_memory for one in costs)})
