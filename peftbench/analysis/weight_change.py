"""How few of full fine-tuning's changes are needed (sparsity), and how many are shared by tasks (hybridity).

Both are the analyses of figure 2 of Liu et al., MICCAI 2024. A weight's change is |tuned - pretrained|.

sparsity: the tuned values of k weights are put into the pretrained backbone, the tuned head is kept, and the test part
is predicted. The k weights are (column `order`) the `moved` most, those of the largest `importance` (SH-PEFT's, before
training), those of the largest `magnitude`, or drawn at `random`, DRAWS times.

`sparsity.csv`, a row for each evaluation:
    backbone, image_size, recipe, method, dataset, seed
    order        moved, importance, magnitude, random; `none` at share 0 and `all` at share 1
    draw         number of the random draw, 0 for the other orders
    share        share of the backbone's weights that have their tuned value, 0..1
    weights      their number
    macro_f1, accuracy       of the test part, 0..1

`sparsity_kept.csv`, a row for each data set (and average of several), order and share, over all seeds and draws:
    backbone, image_size, recipe, method, dataset, order, share, weights
    macro_f1, low, high      the mean score with its 95% interval
    kept, kept_low, kept_high    score / score at share 1, with its 95% interval; both over resampled groups of the test
                                 part, numerator and denominator together; the mean of the seeds' ratios where each
                                 seed has its own test part
    verdict      whether KEPT of the score is kept: yes, no, undecided or unknown
    seeds, groups

hybridity: the overlap |A and B| / k of the k most-moved weights of two models.

`hybridity.csv`, a row for each pair of models and share:
    backbone, image_size, recipe, method, share, weights, dataset, seed, other, other_seed
    overlap      |A and B| / k
    chance       k / N, the overlap expected of two random masks

`hybridity_matrix.csv`, a row for each pair of data sets and share; `other` = `dataset` is the ceiling (another seed):
    backbone, image_size, recipe, method, share, weights, dataset, other
    overlap, least, most, pairs      mean, range and number of the pairs of seeds
    chance
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import nn

from peftbench.analysis.full_jobs import (
    SHARES,
    Entries,
    FullJob,
    FullSeries,
    Levels,
    Mixed,
    at_level,
    counts,
    levels,
)
from peftbench.analysis.steps import Unit
from peftbench.core.constants import HYBRID_SHARES, KEPT, TENTH
from peftbench.models.method import NoProbe
from peftbench.models.plan import Probe
from peftbench.models.top_k import shortest_share
from peftbench.statistics import bootstrap
from peftbench.statistics.bootstrap import Estimate, Predictions
from peftbench.statistics.scores import score
from peftbench.training.job import make_method

if TYPE_CHECKING:
    import pandas  # noqa: ICN001 - by its full name the run-time type checks of the tests find it

ORDERS = ("moved", "importance", "magnitude", "random")
ENDS = ("none", "all")
DRAWS = 3  # random masks of each share


class SeedOnly(NoProbe):
    """A probe for methods that draw their mask from the seed and ask for no gradient."""

    def __init__(self, seed: int) -> None:
        self.seed = seed


# --- sparsity: the work ----------------------------------------------------------------------------------------------


def sparsity_units(series: FullSeries) -> Iterator[Unit]:
    """Yield the pieces of work of a series: each order of each job."""
    for job in series.jobs:
        yield Unit(f"{job.name}: all or none", partial(_evaluate_ends, job))
        for order in ORDERS:
            for draw in range(DRAWS if order == "random" else 1):
                name = f"random draw {draw + 1} of {DRAWS}" if order == "random" else order
                yield Unit(f"{job.name}: {name}", partial(_evaluate_order, job, order, draw))


def _evaluate_ends(job: FullJob) -> str:
    """Evaluate without any and with all tuned weights."""
    missing = [order for order in ENDS if job.steps.read("sparsity", _facts(job, order)) is None]
    if missing:
        with job.mixed() as mixed:
            for order in missing:
                _store(job, order, mixed, mixed.everything() if order == "all" else ())
    none, all_ = (score("macro_f1", *_run(job, order)[:2]) for order in ENDS)
    return f"macro F1 {none:.3f} with the pretrained weights, {all_:.3f} with all tuned ones"


def _evaluate_order(job: FullJob, order: str, draw: int) -> str:
    """Evaluate with the weights of every share that an order selects."""
    missing = [n for n in range(len(SHARES)) if job.steps.read("sparsity", _facts(job, order, draw, n)) is None]
    if missing:
        entries = _entries(job, order, draw)
        with job.mixed() as mixed:
            for number in missing:
                _store(job, order, mixed, entries(mixed.classifier.vit, number), draw, number)
    tenth = score("macro_f1", *_run(job, order, draw, SHARES.index(TENTH))[:2])
    return f"macro F1 {tenth:.3f} with {TENTH:.0%} of the weights"


def _facts(job: FullJob, order: str, draw: int = 0, number: int = 0) -> dict[str, Any]:
    share = {} if order in ENDS else {"share": SHARES[number]}
    return {**job.facts, "order": order, "draw": draw, **share}


def _store(job: FullJob, order: str, mixed: Mixed, entries: Entries, draw: int = 0, number: int = 0) -> None:
    logits = mixed.logits(entries)
    job.steps.write("sparsity", _facts(job, order, draw, number), logits.tolist())


def _run(job: FullJob, order: str, draw: int = 0, number: int = 0) -> Predictions:
    """Return the stored predictions of a step with labels and groups."""
    stored: Any = job.steps.read("sparsity", _facts(job, order, draw, number))
    _, labels, groups = job.test
    return np.asarray(stored, np.float32), labels, groups


def _entries(job: FullJob, order: str, draw: int) -> Callable[[nn.Module, int], Entries]:
    """Return the function from a network and a position in SHARES to the selected entries."""
    if order == "random":
        return lambda vit, number: _planned(job, vit, number, "control_random", {}, SeedOnly(draw))
    found = job.moved_levels() if order == "moved" else _method_levels(job, order)
    return lambda _, number: at_level(found, number)


def _method_levels(job: FullJob, order: str) -> Levels:
    """Return SH-PEFT's own selections of every share: of its importance, or of the magnitude alone."""
    fields = {} if order == "importance" else {"td": "none", "ta": "L2"}
    network = {key: job.about[key] for key in ("base", "backbone", "image_size")}
    decides = dict(job.facts) if order == "importance" else network  # magnitudes are those of every job

    def make() -> dict[str, Any]:
        vit = job.pretrained()
        probe = job.probe(vit) if order == "importance" else NoProbe()
        return levels(vit, lambda number: _planned(job, vit, number, "shpeft", fields, probe))

    return job.steps.tensors(order, {**decides, "shares": SHARES}, make)


def _planned(
    job: FullJob, vit: nn.Module, number: int, method: str, fields: Mapping[str, Any], probe: Probe
) -> Entries:
    """Return the entries that a method with a ratio selects at a position in SHARES."""
    ratio = shortest_share(counts(job.size)[number], job.size)
    return make_method(method, {**fields, "ratio": ratio}).plan(vit, probe).entries.items()


# --- sparsity: the tables --------------------------------------------------------------------------------------------

Where = tuple[str, float]  # order, share
PLACES: tuple[Where, ...] = (
    ("none", 0.0),
    *((order, share) for order in ORDERS for share in SHARES),
    ("all", 1.0),
)


@dataclass(frozen=True)
class Kept:
    """What is left of full fine-tuning's score, on one data set or averaged over several."""

    dataset: str
    order: str
    share: float
    weights: int
    score: Estimate
    kept: Estimate
    seeds: int
    by_seed: tuple[float, ...] = ()  # `kept` of each seed alone; empty for an average

    @property
    def verdict(self) -> str:
        """Whether KEPT of the score is kept: yes, no, undecided or unknown."""
        interval = self.kept.interval
        if np.isnan(interval.low):
            return "unknown"
        return "yes" if interval.low >= KEPT else "no" if interval.high < KEPT else "undecided"


def evaluations(series: FullSeries) -> pandas.DataFrame:
    """Return `sparsity.csv`."""
    import pandas as pd  # noqa: PLC0415 - `peftbench list` answers without it

    rows = [
        {
            **series.columns,
            "dataset": job.dataset,
            "seed": job.record.seed,
            "order": order,
            "draw": draw,
            "share": share,
            "weights": weights_at(job.size, share),
            "macro_f1": score("macro_f1", *run[:2]),
            "accuracy": score("accuracy", *run[:2]),
        }
        for job in series.jobs
        for order, share in PLACES
        for draw, run in enumerate(_runs(job, order, share))
    ]
    return pd.DataFrame(rows)


def kept(series: FullSeries) -> list[Kept]:
    """Return every order and share of each data set, then of the averages over data sets that belong together."""
    alone = {name: _kept_on(name, jobs) for name, jobs in series.datasets.items()}
    averages = {
        title: [alone[name] for name in names]
        for title, names in series.block.averages().items()
        if all(name in alone for name in names)
    }
    together = [
        [
            Kept(
                title,
                *(same[0].order, same[0].share, same[0].weights),
                bootstrap.average([one.score for one in same]),
                bootstrap.average([one.kept for one in same]),
                min(one.seeds for one in same),
            )
            for same in zip(*lists, strict=True)
        ]
        for title, lists in averages.items()
    ]
    return [one for found in (*alone.values(), *together) for one in found]


def kept_frame(series: FullSeries, found: Sequence[Kept]) -> pandas.DataFrame:
    """Return `sparsity_kept.csv`."""
    import pandas as pd  # noqa: PLC0415 - slow to import, and `peftbench list` does not need it

    return pd.DataFrame([{**series.columns, **_kept_row(one)} for one in found])


def _kept_row(one: Kept) -> dict[str, Any]:
    return {
        "dataset": one.dataset,
        "order": one.order,
        "share": one.share,
        "weights": one.weights,
        "macro_f1": one.score.value,
        "low": one.score.interval.low,
        "high": one.score.interval.high,
        "kept": one.kept.value,
        "kept_low": one.kept.interval.low,
        "kept_high": one.kept.interval.high,
        "verdict": one.verdict,
        "seeds": one.seeds,
        "groups": one.kept.clusters,
    }


def weights_at(size: int, share: float) -> int:
    """Return how many of `size` weights a share is."""
    return counts(size)[SHARES.index(share)] if share in SHARES else round(share * size)


def _runs(job: FullJob, order: str, share: float) -> list[Predictions]:
    """Return the predictions of every draw."""
    draws = DRAWS if order == "random" else 1
    number = SHARES.index(share) if share in SHARES else 0
    return [_run(job, order, draw, number) for draw in range(draws)]


def _kept_on(name: str, jobs: Sequence[FullJob]) -> list[Kept]:
    full = [_runs(job, "all", 1.0) for job in jobs]
    return [_kept_at(name, jobs, full, where) for where in PLACES]


def _kept_at(name: str, jobs: Sequence[FullJob], full: Sequence[list[Predictions]], where: Where) -> Kept:
    found = [_runs(job, *where) for job in jobs]
    tests = {job.record.data.test or job.record.data.fingerprint for job in jobs}
    if len(tests) == 1:
        ratio = bootstrap.ratio(_flat(found), _flat(full))
    else:  # every seed has its own test part
        ratio = bootstrap.overlapping([bootstrap.ratio(one, whole) for one, whole in zip(found, full, strict=True)])
    weights = weights_at(jobs[0].size, where[1])
    by_seed = tuple(_mean(one) / _mean(whole) for one, whole in zip(found, full, strict=True))
    return Kept(name, *where, weights, bootstrap.estimate(_flat(found)), ratio, len(jobs), by_seed)


def _mean(runs: Sequence[Predictions]) -> float:
    return float(np.mean([score("macro_f1", *run[:2]) for run in runs])) or math.nan  # nothing is a share of 0


def _flat(runs: Sequence[list[Predictions]]) -> list[Predictions]:
    return [run for one in runs for run in one]


# --- hybridity -------------------------------------------------------------------------------------------------------


def hybridity_units(series: FullSeries) -> Iterator[Unit]:
    """Yield the pieces of work of a series: the most-moved weights of each job, then each pair of data sets."""
    for job in series.jobs:
        yield Unit(f"{job.name}: most-moved weights", partial(_find_moved, job))
    names = list(series.datasets)
    for one, other in itertools.combinations_with_replacement(names, 2):
        if pairs := job_pairs(series, one, other):
            yield Unit(f"overlap of {one} and {other}", partial(_overlap_all, pairs))


def job_pairs(series: FullSeries, one: str, other: str) -> list[tuple[FullJob, FullJob]]:
    """Return the pairs of models of two data sets, or of two seeds of one."""
    if one == other:
        return list(itertools.combinations(series.datasets[one], 2))
    return list(itertools.product(series.datasets[one], series.datasets[other]))


def _find_moved(job: FullJob) -> str:
    job.moved_levels()
    return f"of {job.size:,}"


def _overlap_all(pairs: Sequence[tuple[FullJob, FullJob]]) -> str:
    found = [overlaps(*pair)[HYBRID_SHARES.index(0.01)] for pair in pairs]
    return f"{np.mean(found):.1%} at 1%"


def overlaps(one: FullJob, other: FullJob) -> list[float]:
    """Return |A and B| / k of the most-moved weights of two models at each of HYBRID_SHARES."""
    facts = {"jobs": sorted([dict(one.facts), dict(other.facts)], key=str), "shares": HYBRID_SHARES}
    found: list[float] = one.steps.value("overlaps", facts, partial(_overlaps, one, other))
    return found


def _overlaps(one: FullJob, other: FullJob) -> list[float]:
    first, second = one.moved_levels(), other.moved_levels()
    numbers = [SHARES.index(share) for share in HYBRID_SHARES]
    both = [sum(int(((first[n] <= at) & (second[n] <= at)).sum()) for n in first) for at in numbers]
    return [count / counts(one.size)[at] for count, at in zip(both, numbers, strict=True)]


def overlap_frame(series: FullSeries) -> pandas.DataFrame:
    """Return `hybridity.csv`."""
    import pandas as pd  # noqa: PLC0415 - slow to import, and `peftbench list` does not need it

    rows = [
        {
            **series.columns,
            "share": share,
            "weights": weights_at(one.size, share),
            "dataset": one.dataset,
            "seed": one.record.seed,
            "other": other.dataset,
            "other_seed": other.record.seed,
            "overlap": overlap,
            "chance": weights_at(one.size, share) / one.size,
        }
        for names in itertools.combinations_with_replacement(series.datasets, 2)
        for one, other in job_pairs(series, *names)
        for share, overlap in zip(HYBRID_SHARES, overlaps(one, other), strict=True)
    ]
    return pd.DataFrame(rows)


def overlap_matrix(table: pandas.DataFrame) -> pandas.DataFrame:
    """Return `hybridity_matrix.csv` from the table of all pairs."""
    keys = ["backbone", "image_size", "recipe", "method", "share", "weights", "dataset", "other"]
    found = table.groupby(keys, sort=False).agg(
        overlap=("overlap", "mean"),
        least=("overlap", "min"),
        most=("overlap", "max"),
        pairs=("overlap", "size"),
        chance=("chance", "first"),
    )
    return found.reset_index()
