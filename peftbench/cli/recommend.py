"""`peftbench recommend`: which method to use within limits of cost."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated

import typer

from peftbench.cli.console import make_table, say, show, show_json, warn
from peftbench.cli.options import STORE, JsonOption, MetricOption, StoreArgument

if TYPE_CHECKING:
    from peftbench.results.recommendation import Candidate, Recommendation

ShareOption = Annotated[
    str, typer.Option("--max-share", help="Largest trainable share, such as 0.5%, or number, such as 100k.")
]
MemoryOption = Annotated[str, typer.Option("--max-memory", help="Largest peak of memory in training, such as 8GiB.")]
LatencyOption = Annotated[
    str, typer.Option("--max-latency", help="Longest time per image of a batch when predicting, such as 20ms.")
]
COLUMNS = ("tier", "method", "score", "gap [95%]", "p (Holm)", "trained", "memory", "latency", "seconds", "CPU s")
WORDS = frozenset({"method"})


def recommend(
    store: StoreArgument = STORE,
    max_share: ShareOption = "",
    max_memory: MemoryOption = "",
    max_latency: LatencyOption = "",
    metric: MetricOption = "macro_f1",
    json: JsonOption = False,
) -> None:
    """List the first tier of methods within cost limits, their costs, and what would separate them.

    Costs of every compared method are shown, and how many seeds or test groups would separate the first tier.
    """
    from peftbench.results import recommendation
    from peftbench.results.limits import Limits
    from peftbench.results.store import Store

    limits = Limits.read(max_share, max_memory, max_latency)
    found = recommendation.recommend(Store(store).results(warn), store, limits, metric)
    if json:
        show_json([one.as_dict() for one in found])
        return
    for one in found:
        _show(one)


def _show(found: Recommendation) -> None:
    say(found.sentence, style="bold")
    say(f"{found.network}; recipe {found.recipe}")
    compared = [one for one in found.methods if one.tier is not None]
    if compared:
        rows = [_cells(one) for one in compared]
        show(make_table(COLUMNS, rows, right=frozenset(COLUMNS) - WORDS, ruled=True))
    for one in found.methods:
        if one.tier is None and not one.is_bound:
            say(f"Not compared: {one.method} {one.excluded}.")
    for line in found.remarks:
        say(line)
    for note in found.methods[0].notes if compared else ():
        say(f"Note on {found.methods[0].method}: {note}.")
    for command in found.commands:
        say(command)
    say("")


def _cells(one: Candidate) -> tuple[str, ...]:
    from peftbench.results.formatting import NONE, format_count, format_percent, format_points, format_probability
    from peftbench.storage.sizes import format_size

    spent = one.spent
    place = (str(one.tier), one.method, format_points(one.score), _gap(one), format_probability(one.p))
    if spent is None:
        return (*place, *[NONE] * 5)
    cpu = NONE if math.isnan(spent.cpu_seconds) else f"{spent.cpu_seconds:,.1f}"
    sizes = f"{format_count(spent.trainable)} ({format_percent(spent.share)})", format_size(spent.memory)
    return (*place, *sizes, spent.latency_text, f"{spent.seconds:,.1f}", cpu)


def _gap(one: Candidate) -> str:
    if one.gap is None:
        return ""
    difference, low, high = (f"{100 * value:.1f}" for value in one.gap)
    return difference if math.isnan(one.gap[1]) else f"{difference} [{low}, {high}]"
