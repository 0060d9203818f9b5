"""`peftbench plan`: the jobs of a study before anything is loaded, with their memory and, where known, their time."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import torch
from torch import nn

from peftbench.core import official_recipes
from peftbench.core.catalogue import dataset_entry
from peftbench.core.catalogue_files import dataset_names
from peftbench.core.recipe import Recipe
from peftbench.core.record import WHOLE, Memory
from peftbench.core.spec import Places, Study
from peftbench.data.availability import open_dataset
from peftbench.models import backbone
from peftbench.models.backbone import Source
from peftbench.models.head import Classifier, Head
from peftbench.models.method import NoProbe
from peftbench.models.plan import Plan
from peftbench.profiling import counting, hardware, history
from peftbench.profiling.counting import Alone
from peftbench.study.defaults import complete, make_recipe
from peftbench.study.method_grid import SizedMethod, sized_methods
from peftbench.study.resolve import trained

PLACE = 40  # bytes an entry at most: where a single weight lies, in every form that its product may want
HELD_OUT = 0.1  # of train, for validation


@dataclass(frozen=True)
class Expected:
    """What a training step will hold."""

    memory: Memory
    exact: bool  # False: the method must look at data to choose, and this is the most that any choice takes


def outline(study: Study, places: Places) -> list[dict[str, Any]]:
    """The jobs of a study by name, with exact counts and without weights or images.

    `trials` is how many learning rates are tried out before it, which the seeds of a study share where the data set
    states its test part. `memory` is in bytes, `seconds` of training as measured on this machine; both are None where
    nothing trains, the latter where nothing was measured. `steps`, too, where they follow from images that nobody has
    counted.
    """
    study, _ = complete(study, places)
    recipe = make_recipe(study, places.device)
    source = backbone.locate(study.backbone, study.image_size, blank=True)
    blank = source.blank()
    total, width = sum(p.numel() for p in blank.parameters()), blank.num_features
    rows, memory = sized_methods(study, source), dict[tuple[int, Recipe], Expected | None]()
    jobs: list[dict[str, Any]] = []
    for name in study.datasets:
        head = (width + 1) * len(open_dataset(name).card.classes)
        images = _train_images(name)
        for number, row in enumerate(rows):
            how, rates = trained(row, study, recipe, {"train": images or 1, "val": 1})
            step = number, replace(how, steps=1, lr=1.0, min_lr=0.0, warmup_lr=0.0)  # what decides its memory
            if step not in memory:
                memory[step] = expect(row, how, places.device) if row.method.trains else None
            told = bool(images) or not official_recipes.by_epochs(row.name, how)
            costs = _costs(memory[step], seconds(row, how, study.threads, places) if told else None)
            count = row.fit.reached if row.fit else row.method.count(blank)
            shown: dict[str, Any] = {
                "method": row.label,
                "data set": name,
                "backbone": str(row.source.spec),
                "targets": row.targets,
            }
            shown |= {
                "trainable": count,
                "share": f"{count / total:.4%}",
                "with head": count + (head if row.method.trains else 0),
            }
            run = {"recipe": how.name, "steps": how.steps if told else None, **costs}
            run["trials"] = len(rates) if len(rates) > 1 else 0
            cuts = [{"images": str(cut) or "all"} if study.variants != (WHOLE,) else {} for cut in study.variants]
            jobs += [{**shown, **cut, "seed": seed, **run} for cut in cuts for seed in study.seeds]
    return jobs


def _train_images(name: str) -> int | None:
    """As the catalogue states them, without what is held out where no validation part is published."""
    sizes = dataset_entry(name).sizes if name in dataset_names() else {}
    train = sizes.get("train")
    return train if train is None or "val" in sizes else round((1 - HELD_OUT) * train)


def _costs(expected: Expected | None, seconds: float | None) -> dict[str, Any]:
    return {
        "memory": expected.memory.total if expected else None,
        "memory is": ("exact" if expected.exact else "at most") if expected else "",
        "seconds": seconds,
    }


# --- time ------------------------------------------------------------------------------------------------------------


@lru_cache
def _hardware(device: str) -> str:
    return hardware.environment(device)["hardware"]


def key(row: SizedMethod, device: str, threads: int, recipe: Recipe) -> dict[str, Any]:
    """Whatever decides how long an image takes: under it, costs are kept."""
    return {
        "hardware": _hardware(device),
        "device": device,
        "threads": threads,
        "precision": recipe.precision,
        **{name: True for name in ("compile", "graph") if getattr(recipe, name)},
        "backbone": str(replace(row.source.spec, random=False)),
        "size": row.source.preprocessing.size,
        "method": [row.name, row.method.version, row.method.values()],
    }


def seconds(row: SizedMethod, recipe: Recipe, threads: int, places: Places) -> float | None:
    """Of training, from what `peftbench measure` found here; None where it was not asked."""
    if not row.method.trains:
        return 0.0
    found = history.recall(places.cache, key(row, places.device, threads, recipe))
    return recipe.steps * recipe.batch / found.images_per_second if found else None


# --- memory ----------------------------------------------------------------------------------------------------------


def expect(row: SizedMethod, recipe: Recipe, device: str, classes: int = 2) -> Expected | None:
    """The memory of a training step without the decoded images, counted on a network without values.

    None where a graft computes what cannot be told without values.
    """
    source, blank = row.source, row.source.blank()
    count = row.fit.reached if row.fit else row.method.count(blank)
    try:
        plan = row.method.plan(blank, NoProbe())
    except Exception:  # noqa: BLE001 - a method may ask for gradients, or for weights that are not there, in any way
        return Expected(_at_most(source, recipe, device, count, classes), exact=False)
    with suppress(Exception):
        return _exactly(source, plan, recipe, device, classes)
    return None


def _exactly(source: Source, plan: Plan, recipe: Recipe, device: str, classes: int) -> Expected:
    model = _carried_out(source, plan, classes, recipe)
    return Expected(
        _counted(source, model, recipe, device, alone=plan.empty and recipe.augmentation == "none"), exact=True
    )


def _carried_out(source: Source, plan: Plan, classes: int, recipe: Recipe) -> Classifier:
    vit = source.blank()
    plan.carry_out(vit).cast_frozen(hardware.PRECISIONS[recipe.precision])
    return Classifier(vit, Head(vit.num_features, classes, "plain", 1.0, 0).to("meta"))


def _counted(source: Source, model: Classifier, recipe: Recipe, device: str, *, alone: bool) -> Memory:
    side = source.preprocessing.size
    images = (recipe.batch, 3, side, side)
    features = Alone(model.head, (recipe.batch, model.head.linear.in_features)) if alone else None
    pixels = counting.batch_bytes(features.batch if features else images)
    return counting.count(model, images, recipe, device, hardware.PRECISIONS[recipe.precision], pixels, features).memory


def _at_most(source: Source, recipe: Recipe, device: str, count: int, classes: int) -> Memory:
    """Gradients and moments are exact; activations are those of training everything, and what is written anew.

    That is every tensor but the matrices: with single weights that learn, each forward writes them into a copy.
    """
    model = _carried_out(source, Plan(tune=frozenset(n for n, _ in source.blank().named_parameters())), classes, recipe)
    whole = _counted(source, model, recipe, device, alone=False)
    chosen = [nn.Parameter(torch.empty(count, device="meta")), *model.head.parameters()]
    matrices = {id(m.weight) for m in model.vit.modules() if isinstance(m, nn.Linear)}
    copies = sum(p.nbytes for p in model.vit.parameters() if id(p) not in matrices)
    return whole.model_copy(
        update={
            "weights": whole.weights + chosen[0].nbytes + PLACE * count,
            "activations": whole.activations + copies,
            "gradients": sum(p.nbytes for p in chosen),
            "optimizer": counting.optimizer_bytes(chosen, recipe),
        }
    )
