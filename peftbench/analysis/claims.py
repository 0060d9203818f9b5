"""Ten claims of the SH-PEFT paper (Liu et al., MICCAI 2024), each decided from what a store holds.

A claim holds, or fails, only where an interval or a test adjusted for the number of its comparisons shows it; otherwise
it is undecided. That a method is not shown to be worse is no reason for a claim to hold.
"""

from __future__ import annotations

import math
import shlex
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from peftbench.analysis.evidence import (
    Conclusion,
    Evidence,
    Verdict,
    number,
    search_of,
    seeds_to_decide,
    superior,
    together,
)
from peftbench.core import catalogue
from peftbench.core.constants import HYBRID_SHARES, TENTH
from peftbench.core.contract import Result
from peftbench.core.published import published_methods, published_scores
from peftbench.core.record import Record
from peftbench.results import summary
from peftbench.results.comparison import Pair
from peftbench.results.paper import RATIO
from peftbench.results.summary import MethodRow
from peftbench.statistics import paired
from peftbench.statistics.means import Mean, difference, mean
from peftbench.statistics.paired import Comparison
from peftbench.statistics.tiers import ALPHA, UNDECIDED, holm

SHPEFT = "shpeft"
MARGIN = 0.02  # of a score: differences within it count as none where a claim is that something does not matter
LITTLE = 0.1  # of the time of training
TINY = 0.0001  # trainable share of claim 4
LAMBDAS = tuple(f"{SHPEFT}[lam={value}]" for value in ("1.5", "1.2", "0.8", "0.5"))
TA, TD_L1, BOTH_L1, TD_L2 = (
    f"{SHPEFT}[{fields}]" for fields in ("td=none", "td=L1_abs_of_sum,ta=none", "td=L1_abs_of_sum,ta=L1", "ta=none")
)
LINEAR_ONLY = f"{SHPEFT}[candidates=linear]"


@dataclass(frozen=True)
class Claim:
    """One claim of the paper."""

    number: int
    text: str
    decide: Callable[[Evidence], Conclusion]


@dataclass(frozen=True)
class Decided:
    """The ten claims under one setting."""

    network: str
    recipe: str
    datasets: tuple[str, ...]
    synthetic: bool
    conclusions: tuple[tuple[Claim, Conclusion], ...]

    def as_dict(self) -> dict[str, Any]:
        """Return everything as plain values."""
        rows = [{"claim": one.number, "text": one.text, **asdict(found)} for one, found in self.conclusions]
        own = {"network": self.network, "recipe": self.recipe, "datasets": self.datasets, "synthetic": self.synthetic}
        return {**own, "claims": rows}


def decide(results: Iterable[Result], store: Path) -> list[Decided]:
    """Decide the ten claims for each setting of a store."""
    found = [Evidence(block, store) for block in summary.summarize(results)]
    return [
        Decided(
            one.block.setting.network,
            one.block.setting.recipe,
            one.datasets,
            one.synthetic,
            tuple((claim, claim.decide(one)) for claim in CLAIMS),
        )
        for one in found
    ]


# --- 1 and 2: analyses of full fine-tuning ---------------------------------------------------------------------------


def _sparsity(one: Evidence) -> Conclusion:
    rows = [row for row in one.analysis("sparsity_kept") if row["order"] == "moved" and float(row["share"]) == TENTH]
    rows = [row for row in rows if row["dataset"] == one.average_title] or rows
    command = _analysis(one, "sparsity")
    if not rows:
        return Conclusion("undecided", ("No analysis of this setting is in the store.",), command)
    verdict = together(_kept(row) for row in rows)
    numbers = tuple(
        f"{row['dataset']}: 10% of the changes keep {_share(row['kept'])} of full tuning's macro F1 "
        f"[{_share(row['kept_low'])}, {_share(row['kept_high'])}], {row['seeds']} seeds"
        for row in rows
    )
    more = one.command(["full"], seeds=2 * max(int(row["seeds"]) for row in rows))
    return Conclusion(verdict, numbers, f"{more} && {command}" if verdict == "undecided" else "")


def _kept(row: Mapping[str, str]) -> Verdict:
    """Return whether the score is kept; undecided from one seed."""
    word = row["verdict"] if int(row["seeds"]) > 1 else ""
    return "holds" if word == "yes" else "fails" if word == "no" else "undecided"


def _share(text: str) -> str:
    return f"{100 * float(text):.1f}%" if text else "unknown"


def _analysis(one: Evidence, what: str) -> str:
    return shlex.join(["peftbench", "analyze", what, str(one.store)])


def _hybridity(one: Evidence) -> Conclusion:
    table, command = one.analysis("hybridity"), _analysis(one, "hybridity")
    if not table:
        return Conclusion("undecided", ("No analysis of this setting is in the store.",), command)
    parts = [_overlap(share, [row for row in table if float(row["share"]) == share]) for share in HYBRID_SHARES]
    verdict = together(part for part, _ in parts)
    more = one.command(["full"]).replace(f"--datasets {','.join(one.datasets)}", "--datasets all")
    needed = f"{more} && {command}" if verdict == "undecided" else ""
    return Conclusion(verdict, tuple(text for _, text in parts), needed)


def _overlap(share: float, rows: Sequence[Mapping[str, str]]) -> tuple[Verdict, str]:
    """Return whether overlaps of data sets lie above chance, below a half and below those of another seed.

    One value for each pair of data sets, and for each data set of the ceiling: models of one are not independent.
    """
    pairs: dict[frozenset[str], list[float]] = defaultdict(list)
    for row in rows:
        pairs[frozenset({row["dataset"], row["other"]})].append(float(row["overlap"]))
    means = {names: sum(values) / len(values) for names, values in pairs.items()}
    tasks = mean([value for names, value in means.items() if len(names) > 1])
    seeds = [value for names, value in means.items() if len(names) == 1]
    below = difference([value for names, value in means.items() if len(names) > 1], seeds)
    chance = float(rows[0]["chance"]) if rows else math.nan
    text = f"{share:.2%} of the weights: no pair of data sets; chance {chance:.2%}"
    if tasks.count:
        pairs_text = f"{tasks.count} pair{'s' if tasks.count > 1 else ''} of data sets overlap by {_interval(tasks)}"
        ceiling = f"minus the overlap of two seeds on one data set: {_interval(below)}"
        text = f"{share:.2%} of the weights: {pairs_text}, chance {chance:.2%}; {ceiling}"
    if tasks.low >= 0.5 or tasks.high <= chance or below.low >= 0:  # noqa: PLR2004 - a half
        return "fails", text
    holds = tasks.low > chance and tasks.high < 0.5 and below.high < 0  # noqa: PLR2004
    return "holds" if holds else "undecided", text


def _interval(found: Mean) -> str:
    bounds = "" if math.isnan(found.low) else f" [{100 * found.low:.1f}, {100 * found.high:.1f}]"
    return "unknown" if math.isnan(found.value) else f"{100 * found.value:.1f}%{bounds}"


# --- 3 to 7: comparisons ---------------------------------------------------------------------------------------------


def _best(one: Evidence) -> Conclusion:
    rivals = [method for method in published_methods() if method != SHPEFT]
    missing = [method for method in (SHPEFT, *rivals) if one.row(method) is None]
    found, others = one.row(SHPEFT), [row for row in one.rows() if row.target is None and _is_rival(row)]
    pairs = one.found.test([(found, row) for row in others if found])
    matched, absent = _matched(one)
    verdict = together([superior(pairs, len(pairs) + len(missing)), superior(matched, len(matched) + len(absent))])
    numbers = [number(pair) for pair in (*pairs, *matched)]
    numbers += [f"Missing at their own size: {', '.join(missing)}."] if missing else []
    numbers += [f"Missing at a matched size: {', '.join(absent)}."] if absent else []
    match = f"{SHPEFT}@1%" if absent and not missing else ""
    return _conclusion(one, verdict, numbers, [] if missing or absent else [*pairs, *matched], ["paper"], match=match)


def _is_rival(row: MethodRow) -> bool:
    """Return whether a row is of another method: no variant of SH-PEFT, none of its controls, no fitted baseline."""
    name = row.records[0].method.name
    return name not in {SHPEFT, "majority", "knn"} and not name.startswith("control_")


def _matched(one: Evidence) -> tuple[tuple[Pair, ...], list[str]]:
    """Return the comparisons at the budget nearest to 1%, and the paper's methods with a size that lack it."""
    sized = [name for name in published_methods() if name != SHPEFT and catalogue.method_entry(name).knob]
    rows = [row for row in one.rows() if row.target is not None]
    own = [row for row in rows if row.records[0].method.label == SHPEFT]
    if not own:
        return (), [SHPEFT, *sized]
    found = min(own, key=lambda row: abs(_target_share(row) - RATIO))
    rivals = [row for row in rows if row.target == found.target and _is_rival(row)]
    present = {row.records[0].method.name for row in rivals}
    return one.found.test([(found, row) for row in rivals]), [name for name in sized if name not in present]


def _target_share(row: MethodRow) -> float:
    return (row.target or 0) / row.records[0].backbone.parameters


def _conclusion(
    one: Evidence,
    verdict: Verdict,
    numbers: Sequence[str],
    pairs: Sequence[Pair],
    methods: Sequence[str],
    *,
    ratios: str = "",
    match: str = "",
) -> Conclusion:
    """Return the conclusion, with a command that runs methods, with more seeds than `pairs` have if there are any."""
    seeds = (seeds_to_decide(pairs) or 2 * len(one.seeds)) if pairs else 0
    command = one.command(methods, seeds=seeds, ratios=ratios, match=match) if verdict == "undecided" else ""
    return Conclusion(verdict, tuple(numbers) or ("No jobs of this setting are compared.",), command)


def _tiny(one: Evidence) -> Conclusion:
    full = one.row("full")
    own = [row for row in one.rows() if row.records[0].method.label == SHPEFT and row.target is not None]
    found = next((row for row in own if math.isclose(_target_share(row), TINY, rel_tol=0.1)), None)
    if not (full and found):
        missing = [name for name, row in ((f"{SHPEFT} at 0.01%", found), ("full", full)) if row is None]
        return _conclusion(one, "undecided", [f"Missing: {', '.join(missing)}."], [], [SHPEFT, "full"], ratios="0.01%")
    pairs = one.found.test([(found, full)])
    searches = [search_of(row) for row in (found, full)]
    trials = [search["trials"] for search in searches]
    equal = (
        f"Both were tuned with {trials[0]} trials." if trials[0] else "Neither was tuned: the rates are the recipe's."
    )
    unequal = f"Not tuned equally: {trials[0]} trials of shpeft, {trials[1]} of full."
    numbers = [*map(number, pairs), equal if searches[0] == searches[1] else unequal]
    verdict = superior(pairs, 1) if searches[0] == searches[1] else "undecided"
    return _conclusion(one, verdict, numbers, pairs, [SHPEFT, "full"], ratios="0.01%")


def _hybrid(one: Evidence) -> Conclusion:
    matches = [(BOTH_L1, TA), (BOTH_L1, TD_L1), (SHPEFT, TA), (SHPEFT, TD_L2)]
    return _variants(one, matches, [TA, "shpeft[td=L1,ta=none]", "shpeft[td=L1]", TD_L2, SHPEFT])


def _variants(one: Evidence, matches: Sequence[tuple[str, str]], methods: Sequence[str]) -> Conclusion:
    """Return whether the first of every two variants is better; all comparisons are adjusted together."""
    rows = [(one.row(first), one.row(second)) for first, second in matches]
    pairs = one.found.test([(first, second) for first, second in rows if first and second])
    missing = sorted({label for match in matches for label in match if one.row(label) is None})
    numbers = [*map(number, pairs), *([f"Missing: {', '.join(missing)}."] if missing else [])]
    return _conclusion(one, superior(pairs, len(matches)), numbers, [] if missing else pairs, methods)


def _lambda(one: Evidence) -> Conclusion:
    best, pairs = _variants(one, [(SHPEFT, other) for other in LAMBDAS], []), one.pairs(SHPEFT, LAMBDAS)
    inside = [pair for pair in pairs if max(map(abs, pair.found.interval)) < MARGIN]
    outside = [pair for pair in pairs if pair.verdict != UNDECIDED and _least(pair) > MARGIN]
    complete = len(pairs) == len(LAMBDAS)
    robust: Verdict = "fails" if outside else "holds" if complete and len(inside) == len(pairs) else "undecided"
    text = f"Within {100 * MARGIN:.0f} points of lambda 1 at 95%: {len(inside)} of {len(LAMBDAS)} values."
    numbers, verdict = [*best.numbers, text], together([best.verdict, robust])
    return _conclusion(one, verdict, numbers, pairs if complete else [], [SHPEFT, *LAMBDAS])


def _least(pair: Pair) -> float:
    """Return the smallest size of a difference that its interval holds."""
    low, high = pair.found.interval
    return 0.0 if low <= 0 <= high else min(abs(low), abs(high))


def _tensors(one: Evidence) -> Conclusion:
    return _variants(one, [(SHPEFT, LINEAR_ONLY)], [SHPEFT, LINEAR_ONLY])


# --- 8 and 9: costs --------------------------------------------------------------------------------------------------


def _selection(one: Evidence) -> Conclusion:
    """Compare the time of selection and of training; of jobs that share an estimate, the first counts."""
    longest: dict[tuple[str, int], float] = {}
    for record in _records(one):
        if record.costs and record.costs.train_seconds:
            share = record.costs.selection_seconds / record.costs.train_seconds
            place = record.data.name, record.seed
            longest[place] = max(share, longest.get(place, 0.0))
    found = mean(list(longest.values()))
    steps = sorted({int(record.recipe["steps"]) for record in _records(one) if "steps" in record.recipe})
    verdict: Verdict = "holds" if found.high < LITTLE else "fails" if found.low > LITTLE else "undecided"
    lengths = ", ".join(f"{count:,}" for count in steps) or "no"
    text = (
        f"Selection takes {_interval(found)} of the time of training (mean of {found.count} jobs of {lengths} steps; "
        f"up to {LITTLE:.0%} is called little)."
    )
    more = 2 * len(one.seeds) if found.count else 0
    return Conclusion(verdict, (text,), one.command([SHPEFT], seeds=more) if verdict == "undecided" else "")


def _records(one: Evidence) -> Iterator[Record]:
    """Yield the jobs of SH-PEFT whose importance depends on the task."""
    for row in one.block.rows:
        for record in row.records:
            is_own = record.method.name == SHPEFT and record.method.fields.get("td") != "none"
            if is_own and record.data.name in one.datasets and not record.backbone.random:
                yield record


def _inference(one: Evidence) -> Conclusion:
    """Compare the operations of a prediction, which are counted exactly, so no interval is needed."""
    own, full = one.row(SHPEFT), one.row("full")
    pairs = {name: (_operations(own, name), _operations(full, name)) for name in one.datasets}
    known = {name: (a, b) for name, (a, b) in pairs.items() if a is not None and b is not None}
    if len(known) < len(pairs):
        missing = ("The operations of shpeft and full tuning are not both recorded.",)
        return Conclusion("undecided", missing, one.command([SHPEFT, "full"]))
    texts = tuple(
        f"{name}: counted operations of a prediction (10^9 per image): {a / 1e9:.6g}; full model: {b / 1e9:.6g}."
        for name, (a, b) in known.items()
    )
    return Conclusion("holds" if all(a <= b for a, b in known.values()) else "fails", texts)


def _operations(row: MethodRow | None, name: str) -> float | None:
    """Return the operations of a prediction, which depend on the number of classes; None if they are not recorded."""
    found = row.replicates.get(name) if row else None
    return next((r.costs.flops_forward for r in found.records if r.costs), None) if found else None


# --- 10: models made for one task ------------------------------------------------------------------------------------


def _specific(one: Evidence) -> Conclusion:
    tests = [(name, metric, best) for (name, metric), best in _best_published().items() if name in one.block.datasets]
    row = one.row(SHPEFT) or next((r for r in one.block.rows if r.label == SHPEFT and r.records), None)
    found = [
        (name, metric, best, _against(row, name, metric, best[1]))
        for name, metric, best in tests
        if row and name in row.replicates and row.replicates[name].done and row.replicates[name].have_predictions
    ]
    p = holm([comparison.p for *_, comparison in found])
    known = [comparison.seeds > 1 for *_, comparison in found]
    worse = [one_p < ALPHA and test.difference < 0 for (*_, test), one_p in zip(found, p, strict=True)]
    close = [test.interval[0] > -MARGIN for *_, test in found]
    complete = len(found) == len(_best_published())
    verdict: Verdict = "fails" if any(worse) else "holds" if complete and all(close) else "undecided"
    verdict = verdict if all(known) else "undecided"
    numbers = [
        f"{name}, {metric.replace('_', ' ')}: {100 * comparison.difference:+.1f} points "
        f"[{100 * comparison.interval[0]:+.1f}, {100 * comparison.interval[1]:+.1f}] to {label} as published"
        for name, metric, (label, _), comparison in found
    ]
    numbers += [] if complete else ["Needs shpeft on chaoyang and covid_ct."]
    numbers.append("Published scores have no interval here and come from other splits.")
    data = ",".join(one.datasets)
    command = one.command([SHPEFT]).replace(f"--datasets {data}", "--datasets chaoyang,covid_ct")
    return Conclusion(verdict, tuple(numbers), command if verdict == "undecided" else "")


def _best_published() -> dict[tuple[str, str], tuple[str, float]]:
    """Return the best task-specific model on each data set by each metric, and its score in 0..1."""
    found: dict[tuple[str, str], tuple[str, float]] = {}
    for score in published_scores():
        if not score.method and score.value is not None:
            best = found.get((score.dataset, score.metric), ("", 0.0))
            found[score.dataset, score.metric] = max(best, (score.label, score.value / 100), key=lambda pair: pair[1])
    return found


def _against(row: MethodRow, name: str, metric: str, constant: float) -> Comparison:
    """Compare the runs of a method with a constant, over groups and seeds."""
    runs = list(row.replicates[name].jackknives(metric).values())
    fixed = [replace(run, value=constant, deviations=0 * run.deviations) for run in runs]
    return paired.compare(runs, fixed)


CLAIMS = (
    Claim(1, "A tenth of the changes keeps 95% of full tuning's score", _sparsity),
    Claim(2, "Key weights are mostly disjoint between tasks, and partly shared", _hybridity),
    Claim(3, "SH-PEFT is best on average, also at matched size", _best),
    Claim(4, "SH-PEFT at 0.01% beats an equally tuned full model", _tiny),
    Claim(5, "The hybrid estimate beats each of its parts, with L1 and with L2", _hybrid),
    Claim(6, "Lambda 1 is best, and the choice matters little", _lambda),
    Claim(7, "All tensors beat linear layers alone as candidates", _tensors),
    Claim(8, "Selection costs little beside training", _selection),
    Claim(9, "A prediction costs no more than with the plain backbone", _inference),
    Claim(10, "SH-PEFT is comparable to models made for one task", _specific),
)
