"""Tables that put what the SH-PEFT paper prints beside what was measured, with what differs in protocol beneath.

Published columns are headed `published`, measured ones `measured`: the two were made on other splits, and mostly with
another backbone and recipe, so their difference is no result.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from statistics import fmean
from typing import Any

from peftbench.core import catalogue
from peftbench.core.constants import PAPER_DATASETS
from peftbench.core.published import AVERAGE, PublishedScore, main_scores, published_methods, published_scores
from peftbench.core.record import WHOLE, Record
from peftbench.results import formatting
from peftbench.results.formatting import NONE, Cell
from peftbench.results.summary import Block, MethodRow
from peftbench.results.table import Table, stem, transposed

PAPER = "SH-PEFT paper (Liu et al., MICCAI 2024)"
RATIO = 0.01  # trainable share of SH-PEFT in the paper's tables
STATED = {"optimiser": "sgd", "lr": 1e-3, "schedule": "cosine", "steps": 40_000, "batch": 64, "head": "l2"}
NOT_STATED = ("momentum", "weight_decay", "precision", "augmentation", "head_scale", "selection")
SHOWN_AS = {"optimiser": "optimizer", "lr": "learning rate", "batch": "images per step", "selection": "step"}
BACKBONE, SIDE = "clip_vit_b16", 224


def paper_tables(block: Block) -> list[Table]:
    """Return the tables of a setting that holds data sets and methods of the paper; none for other settings."""
    names = tuple(name for name in block.datasets if name in PAPER_DATASETS)
    rows = filter(None, (row_of(block, method) for method in published_methods()))
    if not any(name in row.replicates for row in rows for name in names):
        return []
    made = [_main(block, names), _ablations(block, names), *(_models(block, name) for name in names)]
    return [table for table in made if table.rows]


def row_of(block: Block, label: str) -> MethodRow | None:
    """Return the row of a method as the paper uses it: on whole data sets, at its own size, SH-PEFT at 1%."""
    rows = [row for row in block.rows if row.records and _is(row.records[0], label)]
    return min(rows, key=lambda row: (row.target is not None, -len(row.records)), default=None)


def _is(record: Record, label: str) -> bool:
    ratio = record.method.fields.get("ratio")
    chosen = isinstance(ratio, float) and math.isclose(ratio, RATIO, rel_tol=1e-3)
    at_own_size = record.budget is None or record.budget.target is None or chosen
    same = record.method.label == label and not record.backbone.random
    return same and at_own_size and record.data.variant == WHOLE


# --- the tables ------------------------------------------------------------------------------------------------------


def _main(block: Block, names: tuple[str, ...]) -> Table:
    """Return the paper's table 1 on the data sets that were run."""
    methods = published_methods()
    kinds = {one.method: one.type for one in published_scores() if one.table == 1}
    rows = {method: row_of(block, method) for method in methods}
    facts: dict[str, list[Cell]] = {
        "method": [Cell(method) for method in methods],
        "type": [Cell(kinds[method]) for method in methods],
    }
    for name in names:
        facts[f"{name}, published"] = [_percent(main_scores(method)[name]) for method in methods]
        facts[f"{name}, measured"] = [_measured(rows[method], [name]) for method in methods]
    if len(names) > 1:
        title = AVERAGE if len(names) == len(PAPER_DATASETS) else f"average ({len(names)} of {len(PAPER_DATASETS)})"
        facts[f"{title}, published"] = [_percent(_published_average(method, names)) for method in methods]
        facts[f"{title}, measured"] = [_measured(rows[method], names) for method in methods]
    text = (
        f"Macro F1 in % as printed in table 1 of the {PAPER}, and as measured here, with 95% intervals. Type: S "
        f"selective, A additive, P prompt tuning. {_beneath(block, names)}"
    )
    return Table("paper", "The paper's table 1", block.setting.short, text, *transposed(facts))


def _published_average(method: str, names: Sequence[str]) -> float:
    """Return the average as printed, or over fewer data sets computed from the printed cells."""
    scores = main_scores(method)
    return scores[AVERAGE] if len(names) == len(PAPER_DATASETS) else fmean(scores[name] for name in names)


def _ablations(block: Block, names: tuple[str, ...]) -> Table:
    """Return tables 4 and 5; no rows unless two of their variants were run."""
    cells = [one for one in published_scores() if one.table in {4, 5} and one.metric == "macro_f1"]
    rows = [(one, row_of(block, one.method)) for one in cells]
    if len({one.method for one, row in rows if row}) < 2:  # noqa: PLR2004 - SH-PEFT itself is no ablation
        rows = []
    accuracy = {one.label: one for one in published_scores() if one.table in {4, 5} and one.metric == "accuracy"}
    facts = {
        "table": [Cell(str(one.table)) for one, _ in rows],
        "method": [Cell(one.label, f"({one.method})") for one, _ in rows],
        "F1, published": [_published(one) for one, _ in rows],
        "F1, measured": [_measured(row, names) for _, row in rows],
        "ACC, published": [_published(accuracy[one.label]) for one, _ in rows],
        "ACC, measured": [_score(row, "accuracy", names) for _, row in rows],
    }
    text = (
        f"Tables 4 and 5 of the {PAPER}: averages over its six data sets in %; measured: averages over "
        f"{', '.join(names)}. {_beneath(block, names)}"
    )
    return Table("paper_ablations", "The paper's tables 4 and 5", block.setting.short, text, *transposed(facts))


def _models(block: Block, name: str) -> Table:
    """Return SH-PEFT beside the models made for one data set, of the paper's tables 2 and 3."""
    cells = [one for one in published_scores() if one.table in {2, 3} and one.dataset == name]
    own = row_of(block, "shpeft")
    cells = cells if own and name in own.replicates else []
    labels = list(dict.fromkeys(one.label for one in cells))
    found = {(one.label, one.metric): one for one in cells}
    methods = [found[label, "macro_f1"].method for label in labels]
    rows = [row_of(block, method) if method else None for method in methods]
    facts = {
        "model": [Cell(label, found[label, "macro_f1"].venue) for label in labels],
        "F1, published": [_published(found[label, "macro_f1"]) for label in labels],
        "F1, measured": [_measured(row, [name]) for row in rows],
        "ACC, published": [_published(found[label, "accuracy"]) for label in labels],
        "ACC, measured": [_score(row, "accuracy", [name]) for row in rows],
    }
    text = (
        f"Table {cells[0].table if cells else ''} of the {PAPER}: models that were made for {name}, beside SH-PEFT, "
        f"in %. {_beneath(block, [name])}"
    )
    subject = f"{name}: task-specific models"
    return Table(f"paper_{stem(name)}", subject, block.setting.short, text, *transposed(facts))


def _percent(value: float) -> Cell:
    return Cell(f"{value:.1f}")


def _published(one: PublishedScore) -> Cell:
    return Cell(NONE) if one.value is None else _percent(one.value)


def _measured(row: MethodRow | None, names: Sequence[str]) -> Cell:
    return formatting.average_cell(row, names) if row else Cell(NONE)


def _score(row: MethodRow | None, metric: str, names: Sequence[str]) -> Cell:
    return formatting.score_cell(row.mean(metric, names) if row else math.nan)


# --- differences in protocol -----------------------------------------------------------------------------------------


def _beneath(block: Block, names: Sequence[str]) -> str:
    return f"What differs from the paper: {'; '.join(differences(block, names))}."


def differences(block: Block, names: Sequence[str]) -> list[str]:
    """Return what differs from the paper's protocol, and what it does not state, in phrases."""
    setting, found = block.setting, []
    if setting.backbone != BACKBONE or setting.size != SIDE:
        found.append(f"backbone {setting.short} (paper: CLIP ViT-B/16, {SIDE} px)")
    values = json.loads(setting.fields)
    found += _recipe(values, block)
    stated = {**values, "selection": setting.selection}
    if values.get("optimiser") != "sgd":
        stated.pop("momentum", None)
    unknown = [f"{SHOWN_AS.get(key, key)} {stated[key]}" for key in NOT_STATED if key in stated]
    seeds = len({result.record.seed for result in block.results})
    unknown.append(f"{seeds} seed{'s' if seeds > 1 else ''}")
    found.append(f"not stated in the paper, here {', '.join(unknown).replace('_', ' ')}")
    return [*found, *_sizes(block, names)]


def _recipe(values: dict[str, Any], block: Block) -> Iterator[str]:
    """Yield the stated values of the recipe that differ; a rate that was tuned is called so."""
    tuned = any(result.record.tuning for result in block.results)
    rates = {float(result.record.recipe["lr"]) for result in block.results if result.record.has_learning_rate}
    if tuned or rates != {STATED["lr"]}:
        yield f"learning rate {'tuned' if tuned else 'of each method'} (paper: {STATED['lr']:g})"
    for key, value in STATED.items():
        if key in values and values[key] != value:
            yield f"{SHOWN_AS.get(key, key)} {values[key]} (paper: {value})"


def _sizes(block: Block, names: Sequence[str]) -> Iterator[str]:
    """Yield the data sets whose parts have other sizes, as train/val/test."""
    for name in names:
        here, paper = block.records[name].data.sizes, dict(catalogue.dataset_entry(name).paper)
        both = [tuple(sizes.get(part, 0) for part in ("train", "val", "test")) for sizes in (here, paper)]
        if paper and both[0] != both[1]:
            own, printed = ("/".join(f"{count:,}" for count in one) for one in both)
            yield f"{name} {own} images (paper: {printed})"
