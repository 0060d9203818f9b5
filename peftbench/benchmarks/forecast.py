"""`peftbench plan`: the jobs of a study before anything is loaded, with their memory and, once measured, their time."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, replace
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
from peftbench.models.head import Classifier
from peftbench.models.method import NoProbe
from peftbench.models.plan import Plan
from peftbench.models.top_k import backbone_size
from peftbench.profiling import counting, history
from peftbench.profiling.hardware import PRECISIONS
from peftbench.study.defaults import complete, make_recipe
from peftbench.study.method_grid import SizedMethod, sized_methods
from peftbench.study.resolve import method_recipe, trials
from peftbench.training.trainee import apply_plan, count_step, make_classifier

INDEX_BYTES = 40  # an entry, at most: the position of a single weight in every form that its product may need
HELD_OUT = 0.1  # of train, for validation, where no validation part is published


@dataclass(frozen=True)
class Expected:
    """The memory that a training step will hold."""

    memory: Memory
    exact: bool  # False: the method chooses by the data, and this is an upper bound over all choices


def outline(study: Study, places: Places) -> list[dict[str, Any]]:
    """Return a row for every job of a study, with exact parameter counts, without weights or images.

    `trials` is the number of learning rates tried before the job; the seeds of a study share them where the data set
    has a fixed test part. `memory` is in bytes, `seconds` of training as measured on this machine; both are None where
    nothing trains, and `seconds` where nothing was measured. `steps` is None where it depends on the number of images
    and that is not known.
    """
    study, _ = complete(study, places)
    recipe = make_recipe(study, places.device)
    source = backbone.locate(study.backbone, study.image_size, blank=True)
    blank = source.blank()
    total, width = backbone_size(blank), blank.num_features
    rows, memory = sized_methods(study, source), dict[tuple[int, Recipe], Expected | None]()
    jobs: list[dict[str, Any]] = []
    for name in study.datasets:
        head = (width + 1) * len(open_dataset(name, study.columns).card.classes)
        images = _train_images(name)
        for number, row in enumerate(rows):
            how = method_recipe(row, study, recipe, images or 1)
            step = number, replace(how, steps=1, lr=1.0, min_lr=0.0, warmup_lr=0.0)  # what decides its memory
            if step not in memory:
                memory[step] = expect(row, how, places.device) if row.method.trains else None
            known = bool(images) or not official_recipes.by_epochs(row.name, how)
            costs = _costs(memory[step], seconds(row, how, study.threads, places) if known else None)
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
            run = {"recipe": how.name, "steps": how.steps if known else None, **costs}
            run["trials"], _ = trials(row, study, how, {"val": 1})
            cuts = [{"images": str(cut) or "all"} if study.variants != (WHOLE,) else {} for cut in study.variants]
            jobs += [{**shown, **cut, "seed": seed, **run} for cut in cuts for seed in study.seeds]
    return jobs


def _train_images(name: str) -> int | None:
    """Return the number of training images in the catalogue, less those held out for validation."""
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


def key(row: SizedMethod, device: str, threads: int, recipe: Recipe) -> dict[str, Any]:
    """Return everything that decides how long an image takes: the key of stored costs."""
    backbone_name, method = str(replace(row.source.spec, random=False)), row.method
    used = (row.name, method.version, method.values())
    return history.cost_key(backbone_name, row.source.preprocessing.size, used, device, threads, recipe)


def seconds(row: SizedMethod, recipe: Recipe, threads: int, places: Places) -> float | None:
    """Return the seconds of training, from what `peftbench measure` found here; None if it was not run."""
    if not row.method.trains:
        return 0.0
    found = history.recall(places.cache, key(row, places.device, threads, recipe))
    return recipe.steps * recipe.batch / found.images_per_second if found else None


# --- memory ----------------------------------------------------------------------------------------------------------


def expect(row: SizedMethod, recipe: Recipe, device: str, classes: int = 2) -> Expected | None:
    """Return the memory of a training step without the decoded images, counted on the meta device.

    None where an adapter's computation depends on values.
    """
    source, blank = row.source, row.source.blank()
    count = row.fit.reached if row.fit else row.method.count(blank)
    try:
        plan = row.method.plan(blank, NoProbe())
    except Exception:  # noqa: BLE001 - a method that needs gradients or weights may raise anything
        return Expected(_at_most(source, recipe, device, count, classes), exact=False)
    with suppress(Exception):
        return _exactly(source, plan, recipe, device, classes)
    return None


def _exactly(source: Source, plan: Plan, recipe: Recipe, device: str, classes: int) -> Expected:
    model = _carried_out(source, plan, classes, recipe)
    head_only = plan.empty and recipe.augmentation == "none"
    counted = count_step(model, recipe, source.preprocessing.size, device, head_only=head_only)
    return Expected(counted.memory, exact=True)


def _carried_out(source: Source, plan: Plan, classes: int, recipe: Recipe) -> Classifier:
    model = make_classifier(source.blank(), classes, recipe, seed=0)
    apply_plan(model, plan, PRECISIONS[recipe.precision])
    return model.to("meta")


def _at_most(source: Source, recipe: Recipe, device: str, count: int, classes: int) -> Memory:
    """Return exact gradients and moments, and activations as if everything trained plus a copy of every other tensor.

    A tensor that is not a matrix and in which single entries train is copied in each forward pass.
    """
    model = _carried_out(source, Plan(tune=frozenset(n for n, _ in source.blank().named_parameters())), classes, recipe)
    whole = count_step(model, recipe, source.preprocessing.size, device).memory
    chosen = [nn.Parameter(torch.empty(count, device="meta")), *model.head.parameters()]
    matrices = {id(m.weight) for m in model.vit.modules() if isinstance(m, nn.Linear)}
    copies = sum(p.nbytes for p in model.vit.parameters() if id(p) not in matrices)
    return whole.model_copy(
        update={
            "weights": whole.weights + chosen[0].nbytes + INDEX_BYTES * count,
            "activations": whole.activations + copies,
            "gradients": sum(p.nbytes for p in chosen),
            "optimizer": counting.optimizer_bytes(chosen, recipe),
        }
    )
