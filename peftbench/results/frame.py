"""Every job as a row of a pandas DataFrame at full precision, for further computations."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from peftbench.core.contract import Result
from peftbench.core.record import Record
from peftbench.results import summary
from peftbench.results.text import csv_text
from peftbench.statistics import bootstrap

if TYPE_CHECKING:
    import pandas  # noqa: ICN001 - by its full name the run-time type checks of the tests find it


def frame(results: Iterable[Result]) -> pandas.DataFrame:
    """Return one row per job, failed ones and trials included: its record and the interval of its macro F1.

    Metrics are columns `test/<rule>/<metric>` and `val/<rule>/<metric>`. `status` is done, failed or damaged.
    """
    import pandas as pd  # noqa: PLC0415 - slow to import, and `peftbench list` does not need it

    return pd.DataFrame([_job(result) for result in results])


def as_csv(table: pandas.DataFrame) -> str:
    """Return a table as CSV without its index, its texts as `csv_text` makes them; an undefined value is empty."""
    texts = table.select_dtypes(exclude=["number", "bool"])
    harmless = texts.map(lambda value: csv_text(value) if isinstance(value, str) else value)
    return str(table.assign(**{str(name): harmless[name] for name in harmless}).to_csv(index=False))


def _job(result: Result) -> dict[str, Any]:
    record = result.record
    status = {"status": "damaged"} if result.damage else {}
    reason = {"reason": summary.failure(result), "notes": "; ".join(summary.notes(record))}
    return {
        **_identity(record),
        **status,
        **reason,
        **_sizes(record),
        **_interval(result),
        **_metrics(record),
        **_costs(record),
    }


def _identity(record: Record) -> dict[str, Any]:
    """Return the columns that identify a job."""
    return {
        "id": record.id,
        "role": record.role,
        "status": record.status,
        "label": record.label,
        "method": record.method.name,
        "fields": json.dumps(record.method.fields, sort_keys=True, default=list),
        "dataset": record.data.name,
        "synthetic": bool(record.data.card.get("synthetic")),
        "positive": _positive(record),
        "splits": record.data.variant.splits,
        "train_share": record.data.variant.share,
        "shots": record.data.variant.shots or None,
        "train_images": record.data.sizes.get("train"),
        "backbone": record.backbone.name,
        "image_size": record.backbone.preprocessing["size"],
        "recipe": record.recipe.get("name"),
        "seed": record.seed,
        "rule": record.rule,
        "lr": record.recipe.get("lr"),
        "tuned": record.tuning is not None,
    }


def _positive(record: Record) -> str | None:
    """Return the positive one of two classes, to which F1 and sensitivity refer."""
    classes, task = record.data.card.get("classes", ()), record.data.card.get("task", "single")
    return str(classes[record.data.positive_index]) if len(classes) == 2 and task == "single" else None  # noqa: PLR2004


def _sizes(record: Record) -> dict[str, Any]:
    budget, counts = record.budget, record.counts
    return {
        "target": budget.target if budget else None,
        "edge": budget.edge if budget else None,
        "trainable": counts.trainable if counts else None,
        "head": counts.head if counts else None,
        "share": summary.trainable_share(record),
        "backbone_parameters": record.backbone.parameters,
    }


def _interval(result: Result) -> dict[str, float]:
    done = result.record.status == "done" and not result.damage
    found = summary.Replicates.of([result]).f1.interval if done else bootstrap.UNKNOWN
    score = summary.test_score(result.record, result.record.rule, "macro_f1")
    return {"macro_f1": score, "macro_f1_low": found.low, "macro_f1_high": found.high}


def _metrics(record: Record) -> dict[str, float | None]:
    """Return the chosen step and every metric under each selection rule."""
    found: dict[str, float | None] = {f"step/{rule}": choice.step for rule, choice in record.choices.items()}
    for rule, choice in record.choices.items():
        found |= {f"test/{rule}/{metric}": score for metric, score in choice.test.items()}
        found |= {f"val/{rule}/{metric}": score for metric, score in choice.val.items()}
    return found


def _costs(record: Record) -> dict[str, Any]:
    """Return costs, memory as `memory/<kind>` and the facts of the method's plan as `fact/<name>`."""
    costs = record.costs.model_dump(by_alias=False) if record.costs else {}
    memory: dict[str, int] = costs.pop("memory", None) or {}
    kinds = {f"memory/{kind}": size for kind, size in memory.items()}
    return {**costs, **kinds, **{f"fact/{name}": value for name, value in record.facts.items()}}
