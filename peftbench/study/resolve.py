"""From a study to its jobs: names, budgets, data and weights are resolved and checked before anything trains."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeAlias

import numpy as np

from peftbench.core import official_recipes
from peftbench.core.contract import DatasetCard, Splits
from peftbench.core.recipe import QUICK_RATES, Recipe, grid
from peftbench.core.record import WHOLE, Record, Variant
from peftbench.core.registry import registry
from peftbench.core.spec import Job, Places, Study
from peftbench.data import audit, image_scan, pixel_cache, subsets
from peftbench.data.augmentation import policy_name
from peftbench.data.availability import open_dataset
from peftbench.data.pixel_cache import Data
from peftbench.data.splits import drop_unknown_group_key
from peftbench.errors import DataError, RequestError, SplitError
from peftbench.models import backbone
from peftbench.models.backbone import Source
from peftbench.results.store import Store
from peftbench.storage import files
from peftbench.study.defaults import complete, make_recipe, overrides
from peftbench.study.method_grid import SizedMethod, resolve_method, sized_methods

Where: TypeAlias = tuple[str, Variant, int]  # data set, variant of it, seed
Watch = Callable[[str, int, int], None]  # current work, images done, images in all


@dataclass(frozen=True)
class Draft:
    """A planned job; if it has trials, they find its learning rate first."""

    job: Job
    targets: tuple[int, ...] = ()  # the budgets that it is for
    trials: tuple[Job, ...] = ()

    def final(self, store: Store) -> Job:
        """Return the job at the rate whose trial scored best on validation; ties to the smaller rate."""
        if not self.trials:
            return self.job
        scores = [_trial_score(store.job(trial.id).record()) for trial in self.trials]
        rates = [trial.recipe.lr for trial in self.trials]
        best = max(range(len(rates)), key=lambda i: (scores[i] if scores[i] is not None else -1.0, -rates[i]))
        found = {"grid": rates, "scores": scores, "trials": [t.id for t in self.trials], "chosen": rates[best]}
        return replace(self.job, recipe=self.job.recipe.at(rates[best]), tuning=found)


def _trial_score(record: Record | None) -> float | None:
    if record is None or record.status == "failed":
        return None
    return record.choices[record.rule].val["macro_f1"]


@dataclass(frozen=True)
class Resolved:
    """The jobs of a study, with notes for the user."""

    study: Study
    drafts: tuple[Draft, ...]
    notes: tuple[str, ...]
    data: tuple[Data, ...]  # open, so that it stays in the cache


# --- resolving -------------------------------------------------------------------------------------------------------


def resolve(study: Study, places: Places, *, skip_broken: bool = False, watch: Watch | None = None) -> Resolved:
    """Return every job of a study. Decodes the images and raises errors about invalid input before anything trains."""
    study, notes = complete(study, places)
    recipe = make_recipe(study, places.device)
    if recipe.precision != "fp32" and study.precision == "auto":
        notes.append(f"Precision {recipe.precision} (auto): this hardware multiplies it natively.")
    source = backbone.locate(study.backbone, study.image_size, places.weights)
    methods = sized_methods(study, source)
    _refuse_bad_weights(source)
    tables = {
        (name, variant, seed): load(
            name, seed, recipe, source, places, skip_broken=skip_broken, variant=variant, watch=watch
        )
        for name in study.datasets
        for variant in study.variants
        for seed in study.seeds
    }
    notes += [*_overruled(study), *_lacking(tables), *_leaks(tables, places)]
    if study.tune and (unheld := [name for (name, *_), data in tables.items() if not data.sizes["val"]]):
        raise RequestError(f"--tune {study.tune} needs a validation part, which {unheld[0]} lacks; use --lr.")
    tuned_on = {where: _tuned_on(where, study.seeds[0], tables) for where in tables}
    drafts = [_draft(row, study, recipe, tables, where, tuned_on[where]) for where in tables for row in methods]
    return Resolved(
        study, tuple({draft.job.id: draft for draft in drafts}.values()), tuple(notes), tuple(tables.values())
    )


def _overruled(study: Study) -> Iterator[str]:
    """Yield a note for each method whose size is given although the budgets set it."""
    for spec in study.methods if study.ratios else ():
        knob = resolve_method(spec, "").method.knob
        if knob in spec.fields:
            yield f"{spec}: --ratios sets {knob}, so the {knob} given here is ignored."


def _lacking(tables: Mapping[Where, Data]) -> Iterator[str]:
    """Yield the notes on images that are left out or missing, once for all seeds and variants of a data set."""
    notes = dict.fromkeys((name, note) for (name, *_), data in tables.items() for note in data.notes)
    for name, note in notes:
        if "left out" in note or "ncomplete" in note:
            yield f"{name}: {note.rstrip('.')}."


def _leaks(tables: Mapping[Where, Data], places: Places) -> list[str]:
    """Return the audit's warning on each data set, for the variant with the most training images."""
    fullest = {name: data for (name, *_), data in sorted(tables.items(), key=lambda item: item[1].sizes["train"])}
    found = {name: audit.warning(audit.load_counts(places.cache, data.fingerprint)) for name, data in fullest.items()}
    return [f"{name}: {text}. `peftbench data check {name}` lists them." for name, text in found.items() if text]


def _refuse_bad_weights(source: Source) -> None:
    """Raise WeightsError before anything trains if the file is not what the network needs."""
    if source.file:
        source.plugin.load(source.blank().to_empty(device="cpu"), source.file)


def load(  # noqa: PLR0913 - what decides the data
    name: str,
    seed: int,
    recipe: Recipe,
    source: Source,
    places: Places,
    *,
    skip_broken: bool,
    variant: Variant = WHOLE,
    watch: Watch | None = None,
) -> Data:
    """Return the images of a data set, audited and decoded for a backbone. Raises DataError."""
    dataset = open_dataset(name)
    with registry("datasets").calling(name):
        splits = dataset.load(places.data, seed)
    card = drop_unknown_group_key(dataset.card, splits)
    _refuse_foreign_bytes([name, *card.classes])
    if recipe.name == "paper" and splits.carved:
        splits = _whole_train(splits)
    most = None if variant.splits == "deduplicated" else audit.MAX_FILES
    seen = image_scan.scan(splits, places.cache, most, partial(watch, f"auditing {name}") if watch else None)
    splits = subsets.apply_variant(splits, variant, card, seen.duplicates if seen else (), seed)
    check_labels(name, splits, card)
    data = pixel_cache.prepare(
        card,
        splits,
        source.preprocessing,
        places.cache,
        skip_broken=skip_broken,
        progress=partial(watch, f"decoding {name}") if watch else None,
        limit=places.cache_limit,
    )
    audit.save_counts(places.cache, data.fingerprint, audit.Audit(card, splits, seen).counts)
    return data


def _refuse_foreign_bytes(names: Sequence[str]) -> None:
    """Raise DataError for a data set or class whose name is not UTF-8; names of image files may have any bytes."""
    for name in names:
        if any("\ud800" <= letter <= "\udfff" for letter in name):
            raise DataError(f"The name {name!r} is not written in UTF-8; rename that folder.")


def _whole_train(splits: Splits) -> Splits:
    return replace(
        splits,
        train=splits.train.joined(splits.val),
        val=splits.val.take([]),
        rule=f"{splits.rule}, all of train",
        carved=False,
    )


def check_labels(name: str, splits: Splits, card: DatasetCard) -> None:
    """Raise SplitError for labels of another shape than the card's task has, or a class that train lacks."""
    classes, several = len(card.classes), card.task == "multi_label"
    shape = (classes,) if several else ()
    if any(part.labels.shape[1:] != shape for part in splits.parts.values()):
        wanted = f"{classes} labels, 0 or 1," if several else "one label"
        raise SplitError(f"{name}: its task is {card.task}, so each image must have {wanted} in every part.")
    labels = splits.train.labels
    seen = np.flatnonzero(labels.any(axis=0)) if several else labels
    if missing := set(range(classes)) - set(seen.tolist()):
        raise SplitError(
            f"{name}: class {min(missing)} of {classes} has no image in train; every class must be trained on."
        )


def _draft(
    row: SizedMethod, study: Study, recipe: Recipe, tables: Mapping[Where, Data], where: Where, tuned_on: Where
) -> Draft:
    (name, variant, seed), data, tuning = where, tables[where], tables[tuned_on]
    fields, defaults = row.method.values(), type(row.method)().values()
    recipe, rates = trained(row, study, recipe, data.sizes)
    job = Job(
        method=row.name,
        version=row.method.version,
        fields=fields,
        defaults=defaults,
        dataset=name,
        fingerprint=data.fingerprint,
        split=data.rule,
        backbone=str(row.source.spec),
        digest=row.source.digest(seed),
        image_size=study.image_size,
        preprocessing=row.source.preprocessing,
        recipe=recipe,
        seed=seed,
        threads=study.threads,
        knob=row.method.knob,
        target=row.targets[0] if row.targets else None,
        edge=row.fit.edge if row.fit else None,
        variant=variant,
        alias=row.alias,
        about=(data.card, data.notes),
        policy=policy_name(data.card) if recipe.augmentation == "medical" else "",
    )
    if len(rates) == 1:
        return Draft(job, row.targets)
    trial = replace(job, role="trial", seed=tuned_on[-1], fingerprint=tuning.fingerprint, split=tuning.rule)
    trial = replace(trial, digest=row.source.digest(trial.seed))
    trials = tuple(replace(trial, recipe=recipe.at(rate)) for rate in rates)
    return Draft(job, row.targets, trials)


def _tuned_on(where: Where, first: int, tables: Mapping[Where, Data]) -> Where:
    """Return where trials tune `where`: on the first seed's parts, unless these hold some of its test images."""
    name, variant, _ = where
    shared = name, variant, first
    seen = {*tables[shared].names["train"], *tables[shared].names["val"]}
    return shared if seen.isdisjoint(tables[where].names["test"]) else where


def trained(row: SizedMethod, study: Study, recipe: Recipe, sizes: Mapping[str, int]) -> tuple[Recipe, Sequence[float]]:
    """Return a method's recipe and the learning rates to try; without a validation part only the grid's middle one."""
    if recipe.name == "quick" and study.lr is None:
        recipe = recipe.at(QUICK_RATES.get(row.name, recipe.lr))
    found: Sequence[float] = (recipe.lr,)
    if recipe.name == "official":
        recipe = official_recipes.recipe(row.name, recipe, sizes["train"], overrides(study))
        found = (recipe.lr,) if study.lr is not None else official_recipes.rates(row.name, recipe)
    if study.tune:
        found = grid(study.tune)
    if sizes["val"] and row.method.trains:
        return recipe, found
    recipe = recipe.at(found[len(found) // 2])
    return recipe, (recipe.lr,)


def note_study(resolved: Resolved, finals: Sequence[Job], store: Store) -> None:
    """Write study.json: the study as requested, the jobs of each budget, and the notes."""
    answers = {
        job.id: {
            "targets": draft.targets,
            "label": job.label,
            "dataset": job.dataset,
            "images": str(job.variant) or "all",
            "seed": job.seed,
        }
        for draft, job in zip(resolved.drafts, finals, strict=True)
    }
    content = {"asked": resolved.study.stored(), "jobs": answers, "says": resolved.notes}
    files.write_json(store.root / "study.json", content, private=True)
