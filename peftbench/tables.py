"""What every report shows, before it is Markdown, LaTeX, a page or a terminal: captions, columns, marks.

One overview of a setting where it has several data sets, then a table a data set, the selection rules side by side, and
the jobs that failed. Scores are in percent with one decimal; best and second are marked as shown, so ties share a mark.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from peftbench import cells, summary
from peftbench.cells import Cell
from peftbench.contract import Record, Result
from peftbench.summary import Block, Row

if TYPE_CHECKING:
    import pandas
    import rich.table

RULES = MappingProxyType(
    {"validation": "best on validation", "last": "last step", "oracle": "test oracle: not a result"}
)
_DETAILS = MappingProxyType({"steps": "steps", "batch": "images a step", "head": "head"})  # of a recipe, in captions
_IN_TERMINAL = ("macro F1", "ACC", "AUC", "trained", "with head", "seconds", "memory")


@dataclass(frozen=True)
class Table:
    """One table, ready to be set."""

    name: str  # of a file or label: letters, digits and _
    title: str
    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    prose: frozenset[str] = frozenset({"method", "data set", "notes", "reason"})  # columns set flush left


def tables(results: Iterable[Result]) -> list[Table]:
    """All tables of all settings, in the order they should be read. Raises StoreError for unreadable predictions."""
    found: list[Table] = []
    for number, block in enumerate(summary.summarise(results), 1):
        made = [*_overview(block), *_data_sets(block), *_averages(block), _rules(block), _failures(block)]
        found += [replace(table, name=f"{table.name}_{number}") for table in made if table.rows]
    return found


# --- the tables ----------------------------------------------------------------------------------------------------


def _overview(block: Block) -> list[Table]:
    """Macro F1 of every method on every data set, with the averages that may honestly be taken."""
    if len(block.datasets) == 1:
        return []
    averages = block.averages()
    groups = [*((name,) for name in block.datasets), *averages.values()]
    columns = ("method", "target", "trained", "share", *block.datasets, *averages)
    scores = [cells.marked([cells.f1_average(row, group) for row in block.rows]) for group in groups]
    rows = tuple(zip(*_methods(block.rows), *scores, strict=True))
    return [Table("overview", f"Macro F1: {block.setting.network}", caption(block), columns, rows)]


def _methods(rows: Sequence[Row]) -> list[list[Cell]]:
    """The columns method, target, trained and share of rows that span data sets."""
    records = [row.records for row in rows]
    return [
        [cells.label(row) for row in rows],
        [cells.target(row, found) for row, found in zip(rows, records, strict=True)],
        [Cell(cells.COSTS["trained"](found)) for found in records],
        [Cell(cells.COSTS["share"](found)) for found in records],
    ]


def _averages(block: Block) -> list[Table]:
    """Macro F1, ACC and AUC averaged over the data sets that belong together."""
    made = []
    for number, (title, names) in enumerate(block.averages().items(), 1):
        facts = {
            "method": [cells.label(row) for row in block.rows],
            "target": [cells.target(row, row.records) for row in block.rows],
            "macro F1": cells.marked([cells.f1_average(row, names) for row in block.rows]),
            "ACC": cells.marked([cells.score(row.mean("accuracy", names)) for row in block.rows]),
            "AUC": cells.marked([cells.score(row.mean("auc", names)) for row in block.rows]),
        }
        text = f"{title.capitalize()}: {', '.join(names)}. {caption(block)}"
        made.append(Table(f"average{number}", f"{title}: {block.setting.network}", text, *_transposed(facts)))
    return made


def _data_sets(block: Block) -> list[Table]:
    """A table a data set with everything about every method."""
    return [_data_set(block, name) for name in block.datasets]


def _data_set(block: Block, name: str) -> Table:
    rows = [row for row in block.rows if name in row.entries]
    entries = [row.entries[name] for row in rows]
    facts: dict[str, list[Cell]] = {
        "method": [cells.label(row) for row in rows],
        "target": [cells.target(row, row.records) for row in rows],
        "macro F1": cells.marked([cells.f1(entry) for entry in entries]),
        "ACC": cells.marked([cells.score(entry.score("accuracy")) for entry in entries]),
        "AUC": cells.marked([cells.score(entry.score("auc")) for entry in entries]),
        **{title: [Cell(show(entry.records)) for entry in entries] for title, show in cells.COSTS.items()},
        "lr": [Cell(cells.rates(entry.records)) for entry in entries],
        "notes": [Cell("; ".join(entry.notes)) for entry in entries],
    }
    return Table(f"data_{name}", f"{name}: {block.setting.network}", caption(block, name), *_transposed(facts))


def _rules(block: Block) -> Table:
    """Macro F1 under the three selection rules, and what choosing on the test set would have added."""
    pairs = [(name, row) for name in block.datasets for row in block.rows if name in row.entries]
    done = [(name, row, row.entries[name]) for name, row in pairs if row.entries[name].done]
    facts: dict[str, list[Cell]] = {
        "data set": [Cell(name) for name, _, _ in done],
        "method": [cells.label(row) for _, row, _ in done],
        "target": [cells.target(row, entry.records) for _, row, entry in done],
    }
    for rule, title in RULES.items():
        facts[title] = [Cell(cells.points(entry.score("macro_f1", rule))) for _, _, entry in done]
    gains = [entry.score("macro_f1", "oracle") - entry.score("macro_f1") for _, _, entry in done]
    facts["inflation"] = [Cell(cells.points(gain)) for gain in gains]
    text = "Macro F1 in % under each selection rule; inflation is what choosing the step on the test set would add."
    return Table("rules", f"Selection rules: {block.setting.network}", text, *_transposed(facts))


def _failures(block: Block) -> Table:
    """The jobs that failed and why."""
    failed = [
        (row, name, job.record) for row in block.rows for name, entry in row.entries.items() for job in entry.failed
    ]
    facts = {
        "method": [cells.label(row) for row, _, _ in failed],
        "data set": [Cell(name) for _, name, _ in failed],
        "seed": [Cell(str(record.seed)) for _, _, record in failed],
        "reason": [Cell(summary.public(record.reason)) for _, _, record in failed],
    }
    return Table("failed", f"Failed jobs: {block.setting.network}", "Jobs that failed and why.", *_transposed(facts))


def _transposed(facts: dict[str, list[Cell]]) -> tuple[tuple[str, ...], tuple[tuple[Cell, ...], ...]]:
    return tuple(facts), tuple(zip(*facts.values(), strict=True))


def caption(block: Block, dataset: str = "") -> str:
    """How the numbers came about: network, recipe, rule, seeds, data, intervals."""
    setting, several = block.setting, not dataset
    seeds = sorted({result.record.seed for result in block.results})
    data = f"{len(block.datasets)} data sets{_synthetic(block)}" if several else _data(block.records[dataset])
    values = json.loads(setting.fields)
    details = "".join(f", {values[key]} {unit}" for key, unit in DETAILS.items() if key in values)
    return (
        f"{setting.network}. Recipe {setting.recipe}{details}; step: {RULES[setting.selection]}; "
        f"seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}. {data}. Scores in %{_seeds(seeds)}; "
        "brackets: 95% bootstrap over groups of test images. Best bold, second underlined; "
        "lr*: chosen on validation."
    )


def _seeds(seeds: Sequence[int]) -> str:
    return ", mean ± standard deviation over seeds" if len(seeds) > 1 else ""


def _synthetic(block: Block) -> str:
    drawn = [name for name in block.datasets if block.synthetic(name)]
    which = "" if len(drawn) == len(block.datasets) else f" ({', '.join(drawn)})"
    return f"; synthetic data{which}" if drawn else ""


def _data(record: Record) -> str:
    card, data = record.data.card, record.data
    groups, key = data.groups.get("test", 0), card.get("group_key") or "nothing known, each image for itself"
    drawn = "; synthetic data" if card.get("synthetic") else ""
    return f"{card.get('title', data.name)}: {data.sizes.get('test', 0)} test images in {groups} groups ({key}){drawn}"


# --- for the terminal and for pandas -------------------------------------------------------------------------------


def terminal(results: Iterable[Result]) -> rich.table.Table:
    """The end of a run in 120 columns: a block of rows a data set, then the averages, then what failed."""
    from rich import box  # noqa: PLC0415 - as above
    from rich.table import Table as Screen  # noqa: PLC0415

    made = tables(results)
    failed = [" · ".join(map(str, row)) for table in made if table.name.startswith("failed") for row in table.rows]
    captions = dict.fromkeys(table.caption for table in made if table.name.startswith(("data", "average")))
    screen = Screen(box=box.SIMPLE_HEAD, caption="\n".join([*captions, *(f"failed: {one}" for one in failed)]))
    screen.caption_justify = "left"
    screen.add_column("", ratio=1)
    for column in _IN_TERMINAL:
        screen.add_column(column, justify="right", no_wrap=True)
    for table in made:
        if table.name.startswith(("data", "average")):
            _add_block(screen, table)
    return screen
