"""Tuning: every method gets the same number of trials, spent by one rule that ends inside its range.

A trial trains with one optimizer at one learning rate; its score is the macro F1 on the validation part. `--tune N`
gives every method, the linear probe included, N trials on each data set:

1. First round. A quarter of the trials, N // 4, is reserved for the next step. The others are shared equally between
   the optimizers of the recipe (`standard`: AdamW and SGD), at most six each, at rates one decade apart and nearest to
   the optimizer's middle: 1e-4, 1e-3, 1e-2, then 1e-5, 1e-1 and 1e-6 for AdamW; 1e-3, 1e-2, 1e-1, then 1, 1e-4 and 10
   for SGD.
2. One trial a round, until all are used, with the optimizer that has the best score so far: if its best rate is the
   lowest or the highest that was tried, one decade beyond it; otherwise, if the method names values of its fields to
   try (`Method.tuned`: full fine-tuning has layer-wise decay and stochastic depth), the next of them with the rate and
   fields of the best trial; otherwise in the middle, on the logarithmic scale, of the wider of the two gaps beside the
   best rate, and of the one with the better neighbor if they are equally wide.

The chosen trial is the one with the best score. Ties go to the optimizer named first, to the lower rate and to the
trial with more fields at their default, and a trial that failed or diverged is worse than any other. If the chosen rate
is still the lowest or the highest that was tried with its optimizer, the record (`edge`) and the tables show it. Rates
are rounded to three digits.

What to try next follows from the scores in the store alone, so an interrupted study repeats no trial and chooses the
same. The rounds of all methods run side by side.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass, replace
from itertools import pairwise
from typing import Any, Literal, TypeAlias

from peftbench.core.recipe import MIDDLE, Recipe
from peftbench.core.record import Record
from peftbench.core.spec import Job
from peftbench.results.store import Store

WIDEST = 6  # rates of an optimizer in the first round


FieldValues: TypeAlias = tuple[tuple[str, Any], ...]  # fields of a method and their values


@dataclass(frozen=True)
class Trial:
    """One point of the search."""

    optimizer: str
    lr: float
    setting: FieldValues = ()  # fields that differ from those of the method as requested


TrialScores: TypeAlias = Mapping[Trial, float | None]  # in the order of the trials; None: failed


# --- the rule --------------------------------------------------------------------------------------------------------


def first_round(optimizers: Sequence[str], budget: int) -> list[Trial]:
    """Return the trials of the first round; an optimizer that would get fewer than two is left out."""
    used = optimizers[: max(1, budget // 2)]
    points = min(WIDEST, max(2, (budget - budget // 4) // len(used)))
    return [Trial(optimizer, rate) for optimizer in used for rate in _decades(MIDDLE[optimizer], points)]


def _decades(middle: float, points: int) -> list[float]:
    """Return the powers of ten nearest to 10 ** middle, ascending."""
    exponents = sorted(range(-12, 7), key=lambda exponent: abs(exponent - middle))[:points]
    return [float(f"1e{exponent}") for exponent in sorted(exponents)]


def next_trial(scores: TrialScores, alternatives: FieldValues = ()) -> Trial:
    """Return the trial that follows from the scores of all earlier ones; `alternatives` are fields to be tried."""
    optimizer, lr, setting = astuple(best(scores))
    rates = _rates(scores, optimizer)
    at = rates.index(lr)
    if at in {0, len(rates) - 1}:
        return Trial(optimizer, _rounded(lr / 10 if at == 0 else lr * 10), setting)
    tried = {pair for trial in scores for pair in trial.setting}
    if untried := [pair for pair in alternatives if pair not in tried]:
        name, value = untried[0]
        return Trial(optimizer, lr, (*(pair for pair in setting if pair[0] != name), (name, value)))
    return Trial(optimizer, _between(scores, optimizer, lr), setting)


def _between(scores: TrialScores, optimizer: str, lr: float) -> float:
    """Return a rate between two that were tried with an optimizer, beside `lr` as long as there is room."""
    rates = _rates(scores, optimizer)
    at = rates.index(lr)

    def preference(gap: tuple[float, float]) -> tuple[float, float]:
        neighbor = gap[0] if gap[1] == lr else gap[1]
        at_neighbor = [score for trial, score in scores.items() if (trial.optimizer, trial.lr) == (optimizer, neighbor)]
        return round(math.log10(gap[1] / gap[0]), 2), max(map(_value, at_neighbor))

    beside = sorted([(rates[at - 1], lr), (lr, rates[at + 1])], key=preference, reverse=True)
    others = sorted(pairwise(rates), key=lambda gap: gap[0] / gap[1])  # if those are used up
    middles = (_rounded(math.sqrt(low * high)) for low, high in [*beside, *others])
    return next(rate for rate in middles if rate not in rates)


def best(scores: TrialScores) -> Trial:
    """Return the trial with the best score."""
    order = list(dict.fromkeys(trial.optimizer for trial in scores))

    def rank(trial: Trial) -> tuple[float, ...]:
        return _value(scores[trial]), -order.index(trial.optimizer), -trial.lr, -len(trial.setting)

    return max(scores, key=rank)


def edge(scores: TrialScores) -> Literal["", "lowest", "highest"]:
    """Return whether the best rate is the lowest or the highest that was tried with its optimizer."""
    chosen = best(scores)
    rates = _rates(scores, chosen.optimizer)
    return "lowest" if chosen.lr == rates[0] else "highest" if chosen.lr == rates[-1] else ""


def _rates(scores: TrialScores, optimizer: str) -> list[float]:
    return sorted({trial.lr for trial in scores if trial.optimizer == optimizer})


def _value(score: float | None) -> float:
    return -math.inf if score is None else score


def _rounded(rate: float) -> float:
    return float(f"{rate:.3g}")


# --- jobs ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Search:
    """The search for the optimizer, learning rate and tuned fields of one method on one data set."""

    job: Job  # every trial is this job with another recipe
    recipes: Mapping[str, Recipe]  # optimizer -> recipe, whose learning rate the trials replace
    budget: int  # trials
    given: tuple[float, ...] = ()  # rates to try as they are, instead of the rule; the authors' under `official`
    alternatives: FieldValues = ()  # fields of the method that are tuned, too
    refit: bool = False  # train the final job without a validation part, to the step that the best trial chose

    def trial_job(self, trial: Trial) -> Job:
        """Return the job of a trial."""
        return self.at(self.job, trial)

    def at(self, job: Job, trial: Trial) -> Job:
        """Return a job with the optimizer, learning rate and fields of a trial, under the name it has without them."""
        recipe = self.recipes[trial.optimizer].at(trial.lr)
        if not trial.setting:
            return replace(job, recipe=recipe)
        return replace(job, recipe=recipe, fields={**job.fields, **dict(trial.setting)}, alias=job.label)

    def first(self) -> list[Trial]:
        """Return the trials that depend on no score."""
        optimizers = list(self.recipes)
        return [Trial(optimizers[0], rate) for rate in self.given] or first_round(optimizers, self.budget)

    def replay(self, store: Store) -> tuple[dict[Trial, float | None], list[Trial]]:
        """Return the scores of the rounds that have ended, and the trials of the round that has not."""
        scores, wanted = dict[Trial, float | None](), self.first()
        while wanted:
            records = {trial: store.job(self.trial_job(trial).id).record() for trial in wanted}
            if waiting := [trial for trial, record in records.items() if record is None]:
                return scores, waiting
            scores |= {trial: _score(record) for trial, record in records.items() if record is not None}
            wanted = [next_trial(scores, self.alternatives)] if len(scores) < self.budget else []
        return scores, []


def _score(record: Record) -> float | None:
    return None if record.status == "failed" else record.choices[record.rule].val["macro_f1"]


@dataclass(frozen=True)
class Draft:
    """A job whose optimizer, learning rate and tuned fields may still have to be found."""

    job: Job
    targets: tuple[int, ...] = ()  # the budgets that it answers
    search: Search | None = None

    def is_tuned(self, store: Store) -> bool:
        """Return whether all trials have ended, so that `final` knows what they chose."""
        return self.search is None or not self.search.replay(store)[1]

    def final(self, store: Store) -> Job:
        """Return the job at the optimizer, rate and fields that the finished search chose."""
        if self.search is None:
            return self.job
        scores, _ = self.search.replay(store)
        chosen = best(scores)
        job = self.search.at(self.job, chosen)
        recipe = job.recipe
        if self.search.refit and recipe.selection != "last":
            record = store.job(self.search.trial_job(chosen).id).record()
            step = record.choices[record.rule].step if record and record.choices else 0
            recipe = replace(recipe, selection="last", stop=step if step < recipe.steps else 0)
        tuning = {
            "optimizers": [trial.optimizer for trial in scores],
            "grid": [trial.lr for trial in scores],
            "scores": list(scores.values()),
            "trials": [self.search.trial_job(trial).id for trial in scores],
            "chosen": chosen.lr,
            "edge": "" if self.search.given else edge(scores),
        }
        if self.search.alternatives:
            tuning["settings"] = [dict(trial.setting) for trial in scores]
        return replace(job, recipe=recipe, tuning=tuning | ({"refit": True} if self.search.refit else {}))


def rounds(drafts: Sequence[Draft], store: Store) -> Iterator[list[Job]]:
    """Yield the trials of one round of every search, until all searches have ended; the caller runs them.

    A trial that failed in an earlier study is run again, once.
    """
    searches = list({draft.search.job.id: draft.search for draft in drafts if draft.search}.values())
    yielded = set[str]()
    while True:
        jobs = {job.id: job for search in searches for job in _open(search, store) if job.id not in yielded}
        if not jobs:
            return
        yielded |= jobs.keys()
        yield list(jobs.values())


def _open(search: Search, store: Store) -> list[Job]:
    """Return the trials that have not ended, and those so far that failed."""
    scores, waiting = search.replay(store)
    failed = [trial for trial, score in scores.items() if score is None]
    return [search.trial_job(trial) for trial in (*failed, *waiting)]
