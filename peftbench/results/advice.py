"""Sentences that qualify a recommendation: how sure it is, and what would separate the methods of its first tier."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path

from peftbench.core.constants import DEFAULT_STORE
from peftbench.core.contract import Result
from peftbench.results import summary
from peftbench.results.comparison import Compared, Pair, compared
from peftbench.results.summary import Block
from peftbench.statistics.power import MOST_GROUPS, MOST_SEEDS, SEVERAL, Needed, needed
from peftbench.statistics.tiers import ALPHA, UNDECIDED

FEW_GROUPS = 100  # in a test set, below which it is called small
EXPLAINED = 3  # methods of the first tier for which the seeds or groups that would separate them are stated


def remarks(found: Compared, whole: Block) -> list[str]:
    """Return the sentences on a comparison of the methods within the limits; `whole` has all methods."""
    return [
        *_about_data(found.datasets, whole),
        *found.remarks(),
        *_failures(found, whole),
        *_decision(found),
        *_each(found),
    ]


def words(names: Sequence[str]) -> str:
    """Return names as an English list: `a`, `a and b`, `a, b and c`."""
    *first, last = names
    return f"{', '.join(first)} and {last}" if first else last


def store_option(store: Path) -> list[str]:
    """Return the words that name a store in a command; none for the default one."""
    return [] if store == DEFAULT_STORE else ["--store", str(store)]


def verb(names: Sequence[object]) -> str:
    """Return the verb that fits so many names."""
    return "is" if len(names) == 1 else "are"


def _about_data(names: Sequence[str], block: Block) -> Iterator[str]:
    drawn = [name for name in names if block.synthetic(name)]
    if drawn:
        yield f"Synthetic data ({words(drawn)}): this recommends no method for real images."
    if len(names) > 1:
        yield f"Scores are averaged over {len(names)} data sets; the order may differ on one of them."
    for name in names:
        data = block.records[name].data
        if (groups := data.groups.get("test", 0)) < FEW_GROUPS:
            key = data.card.get("group_key") or "image"
            yield f"Small test set: {name} has {groups} groups ({key}), so only large differences can be shown."


def _failures(found: Compared, whole: Block) -> Iterator[str]:
    jobs: dict[tuple[str, str], list[Result]] = {}
    for row in whole.rows:
        for name in found.datasets:
            if name in row.replicates and row.replicates[name].failed:
                jobs[row.name, name] = list(row.replicates[name].failed)
    for (method, name), failed in jobs.items():
        seeds = words([str(one.record.seed) for one in failed])
        yield f"Failed: {method} on {name}, seed {seeds}: {summary.failure(failed[0]).rstrip('.')}."


def _decision(found: Compared) -> Iterator[str]:
    """Yield which differences may be noise, and what would separate the best from the others of its tier."""
    first = [name for name, tier in found.tiers.items() if tier == 1]
    if not found.tiers:
        yield "No method can be compared."
    elif len(found.tiers) == 1:
        yield f"Only {first[0]} can be compared: there is no other method."
    elif len(first) > 1:
        yield f"No difference was shown between {words(first)}; it may be noise."
    for other in first[1 : 1 + EXPLAINED]:
        if pair := pair_of(found, first[0], other):
            yield _what_decides(pair, found)
    if len(first) > 1 + EXPLAINED:
        yield f"Other methods of the first tier: {', '.join(first[1 + EXPLAINED :])}."


def pair_of(found: Compared, one: str, other: str) -> Pair | None:
    """Return the comparison of two methods, whichever comes first in it."""
    return next((pair for pair in found.pairs if {pair.method, pair.other} == {one, other}), None)


def _what_decides(pair: Pair, found: Compared) -> str:
    points, which = 100 * abs(pair.found.difference), f"{pair.method} and {pair.other}"
    if math.isnan(pair.found.error):
        return f"How many seeds would separate {which} cannot be estimated: the test set has fewer than two groups."
    if pair.found.difference == 0:
        return f"{which} have the same score, so more data is not expected to separate them."
    start = f"To show the observed difference of {points:.1f} points between {which} with 80% power"
    return f"{start}, {_enough(needed(pair.found, next_level(found.pairs)), pair, found)}."


def next_level(pairs: Sequence[Pair]) -> float:
    """Return the level at which the next of the undecided pairs would be decided, by Holm."""
    return ALPHA / max(1, sum(pair.verdict == UNDECIDED for pair in pairs))


def _enough(more: Needed, pair: Pair, found: Compared) -> str:
    groups = _groups(more.groups, pair, found) if more.groups else ""
    if pair.found.seeds == 1:
        enough = f"it takes {groups}" if groups else f"{MOST_GROUPS:,.0f} times the groups are not enough"
        return f"{enough}; with one seed the number of seeds needed cannot be estimated"
    options = [f"{more.seeds} seeds on these test images"] if more.seeds else []
    options += [f"{groups} with the same seeds"] if groups else []
    options += [f"{SEVERAL} seeds and {_groups(more.groups_and_seeds, pair, found)}"] if more.groups_and_seeds else []
    limits = f"{MOST_SEEDS} seeds or {MOST_GROUPS:,.0f} times the test groups are not enough"
    return f"it takes {' or '.join(options)}" if options else limits


def _groups(times: float | None, pair: Pair, found: Compared) -> str:
    """Return a number of groups, on several data sets as a multiple."""
    if len(found.datasets) > 1:
        return f"{times or 0:.1f} times the test groups of each data set"
    return f"about {math.ceil((times or 0) * pair.found.groups):,} test groups (now {pair.found.groups:,})"


def _each(found: Compared) -> Iterator[str]:
    """Yield the first tier on each of several data sets."""
    for name in found.datasets if len(found.datasets) > 1 else ():
        tiers = compared(found.block, (name,), found.metric).tiers
        first = [method for method, tier in tiers.items() if tier == 1]
        if first:
            yield f"First tier on {name}: {', '.join(first)}."
