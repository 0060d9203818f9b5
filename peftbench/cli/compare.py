"""`peftbench compare`: which differences between the methods of a store are real."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from peftbench.cli.console import make_table, say, show, show_json, warn
from peftbench.cli.options import STORE, JsonOption, MetricOption, StoreArgument

if TYPE_CHECKING:
    from peftbench.results.comparison import Compared, Pair

AgainstOption = Annotated[str, typer.Option("--against", help="Compare all methods with this one, such as lora.")]
CsvOption = Annotated[Path | None, typer.Option("--csv", help="Write all pairs to this file, at full precision.")]
COLUMNS = ("method", "other", "difference", "95% interval", "p", "p (Holm)", "verdict")
RIGHT = frozenset({"difference", "95% interval", "p", "p (Holm)"})


def compare(
    store: StoreArgument = STORE,
    metric: MetricOption = "macro_f1",
    against: AgainstOption = "",
    csv: CsvOption = None,
    json: JsonOption = False,
) -> None:
    """Compare methods pair by pair on each data set and over data sets: differences, p-values, verdicts, tiers."""
    from peftbench.results import comparison
    from peftbench.results.frame import as_csv
    from peftbench.results.redaction import publish
    from peftbench.results.store import Store
    from peftbench.storage.files import write_text

    found = comparison.compare(publish(Store(store).results(warn)), metric, against)
    table = comparison.frame(found)
    if csv:
        write_text(csv, as_csv(table))
    if json:
        show_json(table.to_dict("records"))
        return
    for group in found:
        _show(group)
    if csv:
        say(f"{csv}: {len(table)} pairs.")


def _show(group: Compared) -> None:
    """Print the pairs, tiers and ranks of one group of data sets."""
    from peftbench.results.comparison import rank, rank_remarks

    network = group.block.setting.network
    say(f"{', '.join(group.datasets)}: {group.metric}; {network}", style="bold")
    show(make_table(COLUMNS, [_cells(pair) for pair in group.pairs], right=RIGHT, ruled=True))
    for number in sorted(set(group.tiers.values())) if not group.against else ():
        say(f"Tier {number}: {', '.join(name for name, tier in group.tiers.items() if tier == number)}")
    for line in group.remarks():
        say(line)
    if not group.against and (ranked := rank(group)):
        order = sorted(zip(ranked.average, ranked.methods, strict=True))
        say(f"Average ranks: {', '.join(f'{name} {place:.2f}' for place, name in order)}")
        for line in rank_remarks(ranked):
            say(line)
    say("")


def _cells(pair: Pair) -> tuple[str, ...]:
    """Return a pair as a row, scores in points."""
    from peftbench.results.formatting import format_probability

    found = pair.found
    low, high = found.interval
    bounds = "" if math.isnan(low) else f"[{100 * low:+.1f}, {100 * high:+.1f}]"
    return (
        *(pair.method, pair.other, f"{100 * found.difference:+.1f}", bounds),
        *(format_probability(found.p), format_probability(pair.p), pair.verdict),
    )
