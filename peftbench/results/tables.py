"""Tables as every report shows them, before they become Markdown, LaTeX, HTML or terminal output.

For each setting: an overview if there are several data sets, their averages, one table per data set, the SH-PEFT
paper's scores beside the measured ones, tiers, the effect of leaks between parts, the selection rules, costs, failed
jobs, and the protocol. Scores are in percent with one decimal. The whole first tier is marked: no method is shown to be
better than one of these.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from types import MappingProxyType
from typing import Any, get_args

from peftbench.core.contract import INCOMPLETE, Result
from peftbench.core.recipe import IN_BRACKETS, RECIPES
from peftbench.core.record import Cut, Record, Tuning
from peftbench.results import formatting, protocol, summary
from peftbench.results.comparison import compared, rank, rank_remarks
from peftbench.results.formatting import Cell
from peftbench.results.paper import paper_tables
from peftbench.results.summary import Block, MethodRow
from peftbench.results.table import Table, stem, transposed
from peftbench.results.text import printable

RULE_LABELS = MappingProxyType(
    {
        "validation": "best on validation",
        "validation_smoothed": "best on validation, mean of 3",
        "validation_loss": "lowest validation loss",
        "last": "last",
        "oracle": "test oracle: not a result",
    }
)
LEAKS_MEAN = (
    "The test images are the same. grouped: trained without the groups of later parts; deduplicated: also without "
    "images that resemble one of a later part. Differences with 95% intervals (bootstrap over groups of test images, "
    "both scores resampled together); they include the cost of fewer training images."
)
TIERS_MEAN = (
    "No method is shown to be better than one of the first tier. Paired on the same test images, over groups and "
    "seeds; 95% intervals of the difference in points, p-values adjusted over all pairs by Holm."
)
_DETAILS = MappingProxyType({"steps": "steps", "batch": "images per step", "head": "head"})  # of a recipe, in captions
_KERNELS = MappingProxyType(
    {"compile": "torch.compile", "graph": "CUDA graph", "deterministic": "deterministic kernels"}
)


def tables(results: Iterable[Result]) -> list[Table]:
    """Return the tables of all settings in reading order; those of the same results are made once for all formats."""
    return list(_tables(tuple(results)))


@lru_cache(maxsize=1)
def _tables(results: tuple[Result, ...]) -> tuple[Table, ...]:
    found: list[Table] = []
    for number, block in enumerate(summary.summarize(results), 1):
        rules = [_rules(block, name) for name in block.datasets]
        spent = [_spent(block, name) for name in block.datasets]
        leaks = [_leaks(block, name) for name in block.datasets]
        searches = [_searches(block, name) for name in block.datasets]
        groups = [_groups(block, name) for name in block.datasets]
        scores = [*_overview(block), *_averages(block), *_data_sets(block), *groups, *paper_tables(block)]
        made = [*scores, *_tiers(block), *leaks, *rules, *spent, *searches, _failures(block), *_protocol(block)]
        found += [replace(_printable(table), name=f"{table.name}_{number}") for table in made if table.rows]
    return tuple(found)


def main_tables(results: Iterable[Result]) -> list[Table]:
    """Return the tables that end a run: for each setting its data sets, then their averages."""
    return [table for block in summary.summarize(results) for table in [*_data_sets(block), *_averages(block)]]


# --- the tables ----------------------------------------------------------------------------------------------------


def _overview(block: Block) -> list[Table]:
    """Return macro F1 of every method on every data set, and the averages."""
    if len(block.datasets) == 1:
        return []
    averages = block.averages()
    groups = [*((name,) for name in block.datasets), *averages.values()]
    columns = ("method", "target", "trained", "share", *block.datasets, *averages)
    scores = [_marked_average(block, group) for group in groups]
    rows = tuple(zip(*_methods(block.rows), *scores, strict=True))
    return [Table("overview", "Macro F1", block.setting.short, _caption(block, block.datasets), columns, rows)]


def _marked_average(block: Block, names: Sequence[str]) -> list[Cell]:
    """Return macro F1 of every row, averaged over data sets, the first tier marked."""
    cells = [formatting.average_cell(row, names) for row in block.rows]
    return formatting.mark_tier(block.rows, cells, compared(block, names).tiers)


def _methods(rows: Sequence[MethodRow]) -> list[list[Cell]]:
    """Return the columns method, target, trained and share of rows that span data sets."""
    records = [row.records for row in rows]
    return [
        [formatting.label_cell(row) for row in rows],
        [formatting.target_cell(row, found) for row, found in zip(rows, records, strict=True)],
        [Cell(formatting.COSTS["trained"](found)) for found in records],
        [Cell(formatting.COSTS["share"](found)) for found in records],
    ]


def _averages(block: Block) -> list[Table]:
    """Return tables of macro F1, ACC and AUC averaged over groups of data sets."""
    made = []
    for number, (title, names) in enumerate(block.averages().items(), 1):
        facts = {
            "method": [formatting.label_cell(row) for row in block.rows],
            "target": [formatting.target_cell(row, row.records) for row in block.rows],
            "macro F1": _marked_average(block, names),
            "ACC": [formatting.score_cell(row.mean("accuracy", names)) for row in block.rows],
            "AUC": [formatting.score_cell(row.mean("auc", names)) for row in block.rows],
        }
        text = f"{title.capitalize()}: {', '.join(names)}. {_caption(block, names)}"
        made.append(Table(f"average{number}", title.capitalize(), block.setting.short, text, *transposed(facts)))
    return made


def _data_sets(block: Block) -> list[Table]:
    """Return one table per data set with scores, costs and notes of every method."""
    return [_data_set(block, name) for name in block.datasets]


def _data_set(block: Block, name: str) -> Table:
    rows = [row for row in block.rows if name in row.replicates]
    found = [row.replicates[name] for row in rows]
    facts: dict[str, list[Cell]] = {
        "method": [formatting.label_cell(row) for row in rows],
        "target": [formatting.target_cell(row, row.records) for row in rows],
        "macro F1": formatting.mark_tier(
            rows, [formatting.f1_cell(one) for one in found], compared(block, [name]).tiers
        ),
        "ACC": [formatting.score_cell(one.mean("accuracy")) for one in found],
        "AUC": [formatting.score_cell(one.mean("auc")) for one in found],
        **{title: [Cell(show(one.records)) for one in found] for title, show in formatting.COSTS.items()},
        "lr": [Cell(formatting.format_learning_rates(one.records)) for one in found],
        "notes": [Cell("; ".join(one.notes)) for one in found],
    }
    subject = f"{name} (synthetic data)" if block.synthetic(name) else name
    text = _caption(block, [name]) + _tuned(block)
    return Table(f"data_{stem(name)}", subject, block.setting.short, text, *transposed(facts))


def _groups(block: Block, name: str) -> Table:
    """Return the scores per patient or other group; no rows where no group has two test images."""
    key = block.records[name].data.card.get("group_key") or "group"
    found = [(row, one) for row in block.rows if (one := row.replicates.get(name)) and one.group_runs]
    facts: dict[str, list[Cell]] = {
        "method": [formatting.label_cell(row) for row, _ in found],
        "target": [formatting.target_cell(row, one.records) for row, one in found],
        "macro F1": [formatting.group_cell(one, "macro_f1") for _, one in found],
        "ACC": [formatting.group_cell(one, "accuracy") for _, one in found],
        "macro F1 per image": [formatting.f1_cell(one) for _, one in found],
    }
    counts = sorted({len(run[1]) for _, one in found for run in one.group_runs})
    text = (
        f"{name}: scores in % per {key}{_synthetic(block, [name])}; {block.setting.network}. The prediction of a {key} "
        f"is the mean probability over its images; one whose images have different labels is left out. "
        f"Counted: {' or '.join(map(str, counts))}. Brackets: 95% interval (bootstrap)."
    )
    return Table(f"per_group_{stem(name)}", f"{name}: per {key}", block.setting.short, text, *transposed(facts))


def _tiers(block: Block) -> list[Table]:
    """Return one table per data set and average: every compared method by tier, and its difference to the best."""
    groups = {**{name: (name,) for name in block.datasets}, **block.averages()}
    return [
        _tier_table(block, title, names) for title, names in groups.items() if len(compared(block, names).tiers) > 1
    ]


def _tier_table(block: Block, title: str, names: tuple[str, ...]) -> Table:
    found, rows = compared(block, names), {row.name: row for row in block.rows}
    best, *others = found.tiers
    pairs = {pair.other: pair for pair in found.pairs if pair.method == best}
    ordered = [rows[name] for name in (best, *others)]
    facts: dict[str, list[Cell]] = {
        "tier": [Cell(str(number)) for number in found.tiers.values()],
        "method": [Cell(row.name) for row in ordered],
        "share": [Cell(formatting.COSTS["share"](row.records)) for row in ordered],
        "macro F1": formatting.mark_tier(
            ordered, [formatting.average_cell(row, names) for row in ordered], found.tiers
        ),
        "less than the first": [Cell(formatting.NONE), *(formatting.gap_cell(pairs.get(name)) for name in others)],
        "p (Holm)": [Cell(formatting.NONE), *(formatting.p_cell(pairs.get(name)) for name in others)],
    }
    if ranked := rank(found):
        places = dict(zip(ranked.methods, ranked.average, strict=True))
        facts["average rank"] = [Cell(f"{places[row.name]:.2f}") for row in ordered]
    remarks = " ".join([*found.remarks(), *(rank_remarks(ranked) if ranked else [])])
    what = f"{title}: methods in tiers by macro F1{_synthetic(block, names)}; {block.setting.network}"
    text = f"{what}. {TIERS_MEAN} {remarks}"
    return Table(f"tiers_{stem(title)}", f"{title}: tiers", block.setting.short, text, *transposed(facts))


def _rules(block: Block, name: str) -> Table:
    """Return macro F1 under the selection rules, and the gain from choosing the step on the test set."""
    pairs = [(row, row.replicates[name]) for row in block.rows if name in row.replicates]
    done = [(row, one) for row, one in pairs if one.done]
    facts: dict[str, list[Cell]] = {
        "method": [formatting.label_cell(row) for row, _ in done],
        "target": [formatting.target_cell(row, one.records) for row, one in done],
    }
    chosen = {rule for _, one in done for record in one.records for rule in record.choices}
    for rule in (rule for rule in RULE_LABELS if rule in chosen):
        facts[RULE_LABELS[rule]] = [Cell(formatting.format_points(one.mean("macro_f1", rule))) for _, one in done]
    gains = [one.mean("macro_f1", "oracle") - one.mean("macro_f1") for _, one in done]
    facts["inflation"] = [Cell(formatting.format_points(gain)) for gain in gains]
    text = (
        f"{name}: macro F1 in % under each selection rule{_synthetic(block, [name])}; {block.setting.network}. "
        f"Inflation: gain over {RULE_LABELS[block.setting.selection]!r} if the step were chosen on the test set."
    )
    return Table(f"rules_{stem(name)}", f"{name}: selection rules", block.setting.short, text, *transposed(facts))


def _leaks(block: Block, name: str) -> Table:
    """Return macro F1 with the official parts and without leaks between parts, on the same test images."""
    cuts: dict[tuple[str, int | None], dict[str, MethodRow]] = defaultdict(dict)
    for row in block.rows:
        if name in row.replicates and row.replicates[name].done:
            cuts[row.on_official, row.target][row.records[0].data.variant.splits] = row
    several = [found for found in cuts.values() if "official" in found and len(found) > 1]
    facts: dict[str, list[Cell]] = {
        "method": [formatting.label_cell(found["official"]) for found in several],
        "target": [formatting.target_cell(found["official"], found["official"].records) for found in several],
    }
    for cut in get_args(Cut):
        scores = [
            formatting.f1_cell(found[cut].replicates[name]) if cut in found else Cell(formatting.NONE)
            for found in several
        ]
        facts[cut] = scores
    for cut in get_args(Cut)[1:]:
        both = [
            (found["official"].replicates[name], found[cut].replicates[name]) if cut in found else None
            for found in several
        ]
        facts[f"official - {cut}"] = [
            formatting.difference_cell(pair[0].difference(pair[1]) if pair else None) for pair in both
        ]
    text = (
        f"{name}: macro F1 in % with and without leaks between its parts{_synthetic(block, [name])}; "
        f"{block.setting.network}. {LEAKS_MEAN}"
    )
    return Table(f"leaks_{stem(name)}", f"{name}: leaks", block.setting.short, text, *transposed(facts))


def _spent(block: Block, name: str) -> Table:
    """Return operations and memory of a training step; no rows for records that are older than these fields."""
    pairs = [(row, row.replicates[name]) for row in block.rows if name in row.replicates]
    counted = [(row, one.records) for row, one in pairs if any(r.costs and r.costs.memory for r in one.records)]
    facts: dict[str, list[Cell]] = {
        "method": [formatting.label_cell(row) for row, _ in counted],
        "target": [formatting.target_cell(row, records) for row, records in counted],
        **{title: [Cell(show(records)) for _, records in counted] for title, show in formatting.SPENT.items()},
    }
    text = f"{name}: {formatting.SPENT_MEANS} {block.setting.network}{_synthetic(block, [name])}."
    return Table(f"costs_{stem(name)}", f"{name}: costs", block.setting.short, text, *transposed(facts))


def _searches(block: Block, name: str) -> Table:
    """Return the validation scores over all learning rates that were tried, one row per method and optimizer."""
    tunings = [
        (row, tuning, optimizer)
        for row in block.rows
        if name in row.replicates
        for tuning in _tunings(row.replicates[name].records)
        for optimizer in dict.fromkeys(tuning.optimizers or [""])
    ]
    facts = {
        "method": [formatting.label_cell(row) for row, _, _ in tunings],
        "optimizer": [Cell(optimizer) for _, _, optimizer in tunings],
        "rate: score": [Cell(formatting.format_search(tuning, optimizer)) for _, tuning, optimizer in tunings],
        "chosen": [Cell(formatting.format_chosen(tuning, optimizer)) for _, tuning, optimizer in tunings],
    }
    text = (
        f"{name}: macro F1 in % on validation at every learning rate that was tried; every method had the same number "
        f"of trials. {block.setting.network}{_synthetic(block, [name])}."
    )
    return Table(f"tuning_{stem(name)}", f"{name}: tuning", block.setting.short, text, *transposed(facts))


def _tunings(records: Sequence[Record]) -> list[Tuning]:
    """Return the searches of the seeds, each once: seeds may share one."""
    return list({tuple(r.tuning.trials): r.tuning for r in records if r.tuning}.values())


def _failures(block: Block) -> Table:
    """Return the jobs that failed or whose files are damaged, with the reason."""
    failed = [(row, name, job) for row in block.rows for name, one in row.replicates.items() for job in one.failed]
    facts = {
        "method": [formatting.label_cell(row) for row, _, _ in failed],
        "data set": [Cell(name) for _, name, _ in failed],
        "seed": [Cell(str(job.record.seed)) for _, _, job in failed],
        "reason": [Cell(summary.failure(job)) for _, _, job in failed],
    }
    text = f"{block.setting.network}. Jobs without a score, and why."
    return Table("failed", "Failed jobs", block.setting.short, text, *transposed(facts))


def _protocol(block: Block) -> list[Table]:
    """Return the data as found, and how every method was trained."""
    setting = block.setting.short
    text = "Parts of the first seed; other seeds may draw other ones where the split is not given."
    data = Table("protocol_data", "Data", setting, text, *transposed(protocol.data_columns(block)))
    text = f"{block.setting.network}. What all methods share; their own settings are in the tables above."
    return [data, Table("protocol", "Protocol", setting, text, *transposed(protocol.setting_columns(block)))]


def _printable(table: Table) -> Table:
    """Return the table with every text from outside made printable; each format escapes what it would interpret."""
    cells = tuple(
        tuple(replace(cell, text=printable(cell.text), aside=printable(cell.aside)) for cell in row)
        for row in table.rows
    )
    return replace(
        table,
        subject=printable(table.subject),
        setting=printable(table.setting),
        caption=printable(table.caption),
        columns=tuple(map(printable, table.columns)),
        rows=cells,
    )


def caption(results: Iterable[Result]) -> list[str]:
    """Return the captions below the terminal's table, one paragraph per setting."""
    return [_caption(block, block.datasets) for block in summary.summarize(results)]


def _caption(block: Block, names: Sequence[str]) -> str:
    """Return a description of the numbers: network, recipe, selection rule, seeds, data, intervals."""
    setting = block.setting
    seeds = sorted({result.record.seed for result in block.results})
    values = json.loads(setting.fields)
    details = "".join(f", {values[key]} {unit}" for key, unit in _DETAILS.items() if key in values)
    details += "".join(f", {key.replace('_', ' ')} {value}" for key, value in _changed(setting.recipe, values).items())
    details += "".join(f", {what}" for key, what in _KERNELS.items() if values.get(key))
    details += f", {values['precision']}" if values.get("precision", "auto") != "auto" else ""
    details += ", trained on train and val" if _refitted(block) else ""
    data = _data(block.records[names[0]]) if len(names) == 1 else f"{len(names)} data sets"
    data += _ordered(block, names) + _synthetic(block, names) + _partial(block, names)
    return (
        f"{setting.network}. Recipe {setting.recipe}{details}; step: {RULE_LABELS[setting.selection]}; "
        f"seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}. {data}. "
        f"Scores in %{', mean ± standard deviation over seeds' if len(seeds) > 1 else ''}; brackets: 95% interval "
        f"(bootstrap over groups of test images). Bold: first tier, no method is shown to be better."
        f"{_seen(block, names)}"
    )


def _seen(block: Block, names: Sequence[str]) -> str:
    """Return a sentence on the data sets whose test images the backbone may have seen in its pretraining."""
    found = block.overlaps(names)
    listed = "; ".join(f"{name}: {reason}" for name, reason in found.items())
    return f" The pretraining of {block.setting.backbone} may have seen test images: {listed}." if found else ""


def _refitted(block: Block) -> bool:
    """Return whether the jobs were trained on train and val after their search."""
    return any(result.record.tuning.refit for result in block.results if result.record.tuning)


def _changed(name: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the recipe's changed fields, except those that every caption lists."""
    values = {"optimizer" if key == "optimiser" else key: value for key, value in values.items()}
    own, given = RECIPES.get(name), {key: values[key] for key in IN_BRACKETS if key in values and key not in _DETAILS}
    return {key: value for key, value in given.items() if own and value != getattr(own, key)}


def _tuned(block: Block) -> str:
    tunings = [result.record.tuning for result in block.results if result.record.tuning]
    at_edge = " (edge): the lowest or highest rate that was tried." if any(one.edge for one in tunings) else ""
    return f" lr*: tuned on validation.{at_edge}" if tunings else ""


def _partial(block: Block, names: Sequence[str]) -> str:
    """Return what incomplete copies of data sets lack."""
    notes = [(name, note) for name in names for note in block.records[name].data.notes if note.startswith(INCOMPLETE)]
    return "".join(f"; {name}: {note[0].lower()}{note[1:].rstrip('.')}" for name, note in notes)


def _ordered(block: Block, names: Sequence[str]) -> str:
    """Return the order of the classes of ordinal data sets, on which their kappa depends."""
    cards = {name: block.records[name].data.card for name in names}
    orders = {name: " < ".join(card["classes"]) for name, card in cards.items() if card.get("task") == "ordinal"}
    return "".join(f"; classes{f' of {name}' if len(names) > 1 else ''}: {order}" for name, order in orders.items())


def _synthetic(block: Block, names: Sequence[str]) -> str:
    drawn = [name for name in names if block.synthetic(name)]
    which = "" if len(drawn) == len(names) else f" ({', '.join(drawn)})"
    return f"; synthetic data{which}" if drawn else ""


def _data(record: Record) -> str:
    card, data = record.data.card, record.data
    images, groups = data.sizes.get("test", 0), data.groups.get("test", 0)
    key = card.get("group_key") or "unknown: each image is its own group"
    return f"{card.get('title', data.name)}: {images} test images in {groups} groups ({key})"
