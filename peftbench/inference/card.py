"""What a published model states about itself: data, scores with intervals, limits, licences. No name of an image."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader

from peftbench.core.contract import BackboneCard, Result
from peftbench.core.record import Record
from peftbench.inference.model import Model
from peftbench.models import backbone
from peftbench.results.redaction import public_names, redact
from peftbench.results.store import JobFolder
from peftbench.results.summary import pretraining_overlap
from peftbench.statistics import bootstrap
from peftbench.statistics.scores import LABEL_STATISTICS

TEMPLATE = "_model_card.md.jinja"
HIDDEN = ("recall_", "precision_")  # of single classes, which fill pages where there are many


@dataclass(frozen=True)
class Score:
    """A score on the test part, with its 95% interval where it is a function of the confusion matrix."""

    metric: str
    value: float
    low: float | None = None
    high: float | None = None


def base_card(model: Model) -> BackboneCard:
    """Return origin and licence of the backbone."""
    return backbone.locate(str(model.about["backbone"]), model.about["image_size"], blank=True).plugin.card


def result_of(folder: Path) -> Result | None:
    """Return the job's result; None for a delta that was copied without its record."""
    return JobFolder(folder).result()


def scores(result: Result) -> list[Score]:
    """Return the test scores at the step that the recipe's rule chose, those with an interval first."""
    record = result.record
    values = record.choices[record.rule].test
    known = {metric: value for metric, value in values.items() if value is not None and not metric.startswith(HIDDEN)}
    sure = [_with_interval(result, metric) for metric in LABEL_STATISTICS if result.has_predictions and metric in known]
    done = {score.metric for score in sure}
    return sure + [Score(metric, value) for metric, value in sorted(known.items()) if metric not in done]


def _with_interval(result: Result, metric: str) -> Score:
    estimate = bootstrap.estimate([result.predictions(result.record.rule)], metric)
    interval = estimate.interval
    sure = estimate.draws.size > 0
    return Score(metric, estimate.value, interval.low if sure else None, interval.high if sure else None)


def limits(model: Model, record: Record | None) -> list[str]:
    """Return what the model must not be trusted with, a sentence each."""
    found = ["It was not tested on images of another site, scanner or population."]
    if model.temperature is None:
        found.append("Its probabilities are not calibrated: there was no validation part.")
    if record is None:
        return [*found, "Its scores are unknown: the job's record was not beside its weights."]
    found.append("Scores are those of one training run; the intervals cover the choice of test groups only.")
    if record.data.card.get("synthetic"):
        found.append("It was trained on synthetic images.")
    if not record.data.card.get("group_key"):
        found.append("Patients of the images are unknown: images of one may be in several parts.")
    if record.backbone.random:
        found.append("The backbone was not pretrained.")
    if overlap := pretraining_overlap(record):
        found.append(f"The pretraining of the backbone may have seen the test images: {overlap.rstrip('.')}.")
    return found + [f"{redact(note).rstrip('.')}." for note in dict.fromkeys(record.notes + record.data.notes)]


def model_card(model: Model, folder: Path) -> str:
    """Return the model card of a Hugging Face folder as Markdown."""
    result = result_of(folder)
    record = result.record if result else None
    templates = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=False,  # noqa: S701 - Markdown, not HTML
        trim_blocks=True,
        lstrip_blocks=True,
    )
    facts = {
        "title": record.plain_label if record else str(model.about["method"]["name"]),
        "model": model,
        "about": model.about,
        "base": base_card(model),
        "dataset": model.about["trained_on"]["dataset"],
        "data": _data(record),
        "record": record,
        "scores": scores(result) if result else [],
        "limits": limits(model, record),
    }
    return templates.get_template(TEMPLATE).render(facts)


def _data(record: Record | None) -> Mapping[str, Any]:
    """Return the facts of the data set's card that may be published."""
    if record is None:
        return {}
    card = record.data.card
    own = record.data.name.partition(":")[0] in {"folder", "table"}
    return {
        "title": public_names([record.data.name])[record.data.name] if own else card["title"],
        "licence": card["licence"],
        "source": "own images" if own else card["source"],
        "citation": card.get("citation", ""),
        "group": card.get("group_key") or "image",
    }
