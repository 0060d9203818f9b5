"""Resolve every job of a study, and reject what cannot run, before training starts."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

from peftbench.core import official_recipes, presets
from peftbench.core.contract import is_about_missing_images
from peftbench.core.recipe import QUICK_RATES, TUNED, Recipe
from peftbench.core.record import Variant
from peftbench.core.spec import Job, Places, Study
from peftbench.data import audit
from peftbench.data.augmentation import policy_name
from peftbench.data.pixel_cache import Data
from peftbench.errors import RequestError
from peftbench.models import backbone
from peftbench.models.backbone import Source
from peftbench.results.store import Store
from peftbench.storage import cache, files
from peftbench.study.defaults import complete, make_recipe, overrides
from peftbench.study.images import Joined, OnLoading, load
from peftbench.study.method_grid import SizedMethod, fixed_sizes, resolve_method, sized_methods
from peftbench.study.tuning import Draft, Search

Where: TypeAlias = tuple[str, Variant, int]  # data set, which of its images, seed


@dataclass(frozen=True)
class StudyImages:
    """The images of a study: those that final jobs train on, and those of the trials, which keep a validation part."""

    final: Mapping[Where, Data]
    held_out: Mapping[Where, Data]  # equal to `final` where nothing is joined

    def tuned_on(self, where: Where, first_seed: int) -> Where:
        """Return where the trials run: on the first seed's parts, unless they hold test images of this seed's."""
        name, variant, _ = where
        shared = name, variant, first_seed
        seen = {*self.held_out[shared].names["train"], *self.held_out[shared].names["val"]}
        return shared if seen.isdisjoint(self.final[where].names["test"]) else where


@dataclass(frozen=True)
class Resolved:
    """A study in jobs, with notes for the user."""

    study: Study
    drafts: tuple[Draft, ...]
    notes: tuple[str, ...]
    data: tuple[Data, ...]  # held here so that the cache does not evict them


# --- resolving -------------------------------------------------------------------------------------------------------


def resolve(study: Study, places: Places, *, skip_broken: bool = False, watch: OnLoading | None = None) -> Resolved:
    """Return every job of a study with its id. Decodes the images and refuses bad input before anything trains."""
    study, notes = complete(study, places)
    recipe = make_recipe(study, places.device)
    if recipe.precision != "fp32" and study.precision == "auto":
        notes.append(f"Precision {recipe.precision} (auto): this hardware multiplies it natively.")
    source = backbone.locate(study.backbone, study.image_size, places.weights)
    methods = sized_methods(study, source)
    notes += _try_weights(source)

    def loaded(joined: Joined) -> dict[Where, Data]:
        return {
            (name, variant, seed): load(
                name,
                seed,
                source.preprocessing,
                places,
                joined=joined,
                skip_broken=skip_broken,
                variant=variant,
                watch=watch,
                columns=study.columns,
            )
            for name in study.datasets
            for variant in study.variants
            for seed in study.seeds
        }

    joined: Joined = "all" if study.refit else "carved" if recipe.name == "paper" else ""
    final = loaded(joined)
    images = StudyImages(final, loaded("") if joined and (study.tune or study.refit) else final)
    cache.shrink(places.cache, places.cache_limit)
    _refuse_no_validation(study, images)
    if study.match and (fixed := fixed_sizes(methods)):
        notes.append(f"Sizes match {study.match}, except for methods of one fixed size: {', '.join(fixed)}.")
    notes += [*_overruled(study), *_lacking(final), *_leaks(final, places), *_overlaps(study)]
    drafts = [_draft(method, study, recipe, images, where) for where in final for method in methods]
    data = {id(one): one for table in (images.final, images.held_out) for one in table.values()}
    return Resolved(
        study, tuple({draft.job.id: draft for draft in drafts}.values()), tuple(notes), tuple(data.values())
    )


def _refuse_no_validation(study: Study, images: StudyImages) -> None:
    """Raise RequestError if something is to be chosen on a validation part that a data set does not have."""
    flag = f"--tune {study.tune}" if study.tune else "--refit" if study.refit else ""
    without = [name for (name, *_), data in images.held_out.items() if not data.sizes["val"]]
    if flag and without:
        raise RequestError(f"{flag} needs a validation part, and {without[0]} has none; pass --lr and drop {flag}.")


def _overruled(study: Study) -> Iterator[str]:
    """Yield notes on sizes that were given with a method although the budgets decide them."""
    flag = "--ratios" if study.ratios else "--match"
    for spec in study.methods if study.ratios or study.match else ():
        knob = resolve_method(spec, "").method.knob
        if knob in spec.fields:
            yield f"{spec}: {flag} sets {knob}, so the {knob} given here is ignored."


def _lacking(tables: Mapping[Where, Data]) -> Iterator[str]:
    """Yield notes on images that are left out or missing, once for all seeds and variants."""
    notes = dict.fromkeys((name, note) for (name, *_), data in tables.items() for note in data.notes)
    for name, note in notes:
        if is_about_missing_images(note):
            yield f"{name}: {note.rstrip('.')}."


def _overlaps(study: Study) -> Iterator[str]:
    """Yield notes on data sets whose test images the backbone may have seen in its pretraining."""
    for name in study.datasets:
        if reason := presets.overlap(study.backbone, name):
            yield f"{name}: the pretraining of {study.backbone} may have seen its test images: {reason}."


def _leaks(tables: Mapping[Where, Data], places: Places) -> list[str]:
    """Return what the audit found on each data set, for the variant with the most training images."""
    fullest = {name: data for (name, *_), data in sorted(tables.items(), key=lambda item: item[1].sizes["train"])}
    found = {name: audit.warning(audit.load_counts(places.cache, data.fingerprint)) for name, data in fullest.items()}
    return [
        f"{name}: {text}. `peftbench data check {shlex.quote(name)}` lists them."
        for name, text in found.items()
        if text
    ]


def _try_weights(source: Source) -> Sequence[str]:
    """Load the weights before anything trains; return what was taken of the file. Raises WeightsError."""
    if not source.file:
        return ()
    return source.plugin.load(source.blank().to_empty(device="cpu"), source.file) or ()


# --- jobs ------------------------------------------------------------------------------------------------------------


def _draft(method: SizedMethod, study: Study, recipe: Recipe, images: StudyImages, where: Where) -> Draft:
    tuned_on = images.tuned_on(where, study.seeds[0])
    held_out = images.held_out[tuned_on]
    recipe = method_recipe(method, study, recipe, held_out.sizes["train"])
    budget, given = trials(method, study, recipe, held_out.sizes)
    job = _job(method, study, recipe, images.final[where], where)
    if not budget:
        alone = replace(recipe.at(given[0]), selection="last" if study.refit else recipe.selection)
        return Draft(replace(job, recipe=alone), method.targets)
    trial = replace(
        job,
        role="trial",
        seed=tuned_on[-1],
        fingerprint=held_out.fingerprint,
        split=held_out.rule,
        digest=method.source.digest(tuned_on[-1]),
        about=(held_out.card, held_out.notes),
    )
    optimizers = (recipe.optimizer,) if given else optimizers_of(study, recipe)
    recipes = {optimizer: recipe.by(optimizer, overrides(study)) for optimizer in optimizers}
    alternatives = () if given else method.method.alternatives()
    return Draft(job, method.targets, Search(trial, recipes, budget, given, alternatives, refit=study.refit))


def _job(method: SizedMethod, study: Study, recipe: Recipe, data: Data, where: Where) -> Job:
    name, variant, seed = where
    return Job(
        method=method.name,
        version=method.method.version,
        fields=method.method.values(),
        defaults=type(method.method)().values(),
        dataset=name,
        fingerprint=data.fingerprint,
        split=data.rule,
        backbone=str(method.source.spec),
        digest=method.source.digest(seed),
        network=method.source.network_digest,
        image_size=study.image_size,
        preprocessing=method.source.preprocessing,
        recipe=recipe,
        seed=seed,
        threads=study.threads,
        knob=method.method.knob,
        target=method.targets[0] if method.targets else None,
        edge=method.fit.edge if method.fit else None,
        variant=variant,
        alias=method.alias,
        about=(data.card, data.notes),
        role="fold" if variant.folds else "final",
        policy=policy_name(data.card) if recipe.augmentation == "medical" else "",
    )


def method_recipe(method: SizedMethod, study: Study, recipe: Recipe, images: int) -> Recipe:
    """Return how a method is trained on so many images, at the rate that stands if none is tuned."""
    stated = overrides(study)
    if recipe.name == "official":
        return official_recipes.recipe(method.name, recipe, images, stated)
    if recipe.name == "quick" and "lr" not in stated:
        return recipe.at(QUICK_RATES.get(method.name, recipe.lr))
    return recipe


def trials(
    method: SizedMethod, study: Study, recipe: Recipe, sizes: Mapping[str, int]
) -> tuple[int, tuple[float, ...]]:
    """Return how many trials a method gets, and the learning rates to try if the rule of `tuning` is not to choose.

    Without trials there is one rate; of several that the authors state, the middle one.
    """
    given: tuple[float, ...] = (recipe.lr,)
    if recipe.name == "official" and "lr" not in overrides(study):
        given = tuple(official_recipes.rates(method.name, recipe))
    if not (sizes["val"] and method.method.has_learning_rate):
        return 0, (given[len(given) // 2],)
    if study.tune:
        return study.tune, ()
    chosen = len(given) > 1 or (study.refit and recipe.selection != "last")
    return (len(given), given) if chosen else (0, given)


def optimizers_of(study: Study, recipe: Recipe) -> Sequence[str]:
    """Return the optimizers that are tuned: the recipe's, or the one that the user set."""
    return (recipe.optimizer,) if "optimizer" in overrides(study) else TUNED.get(recipe.name, (recipe.optimizer,))


def write_study(resolved: Resolved, finals: Sequence[Job], store: Store) -> None:
    """Write study.json: the study, and which of its budgets, data sets and seeds each job answers."""
    write_answers(resolved.study.stored(), resolved.notes, resolved.drafts, finals, store)


def write_answers(
    asked: Mapping[str, Any], notes: Sequence[str], drafts: Sequence[Draft], finals: Sequence[Job], store: Store
) -> None:
    """Write study.json from the fields of the study as stored, and one final job for each draft."""
    answers = {
        job.id: {
            "targets": draft.targets,
            "label": job.label,
            "dataset": job.dataset,
            "images": str(job.variant) or "all",
            "seed": job.seed,
        }
        for draft, job in zip(drafts, finals, strict=True)
    }
    content = {"asked": asked, "jobs": answers, "says": notes}
    files.write_json(store.root / "study.json", content, private=True)
