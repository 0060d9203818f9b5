"""Complete a study: folders and device, the data sets of `all` and other groups, the backbone and the recipe."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from peftbench.core import catalogue
from peftbench.core.constants import PAPER_DATASETS, QUICK_DATASETS, QUICK_METHODS, Precision
from peftbench.core.fields import build
from peftbench.core.recipe import CPU_STANDARD, IN_BRACKETS, RECIPES, Recipe
from peftbench.core.registry import registry
from peftbench.core.spec import Places, Study
from peftbench.core.syntax import Spec, known_device, parse
from peftbench.data import availability
from peftbench.errors import MissingDataError, RequestError, WeightsError
from peftbench.models import backbone
from peftbench.profiling import hardware
from peftbench.storage.cache import LIMIT
from peftbench.storage.folders import cache_folder, data_folder
from peftbench.storage.sizes import parse_size
from peftbench.study.method_grid import expand, with_matched


def places(  # noqa: PLR0913 - one for each option
    store: Path,
    data: Path | None = None,
    cache: Path | None = None,
    weights: Path | None = None,
    device: str = "auto",
    limit: str = "",
    *,
    elsewhere: bool = False,
    wants_gpu: bool = False,
) -> Places:
    """Return the given folders, or this user's default ones, and the device that `auto` means.

    `elsewhere`: jobs run on other machines, so the device need not be one of this machine; `auto` is a GPU if
    `wants_gpu`.
    """
    return Places(
        store=store,
        data=data_folder(data),
        cache=cache_folder(cache),
        weights=weights,
        device="cuda" if elsewhere and _is_gpu(device, wants_gpu=wants_gpu) else find_device(device),
        cache_limit=parse_size(limit, "--cache-limit") if limit else LIMIT,
    )


def _is_gpu(name: str, *, wants_gpu: bool) -> bool:
    """Return whether a device of other machines is a GPU."""
    return known_device(name) == "cuda" or (name == "auto" and wants_gpu)


def find_device(name: str) -> str:
    """Return `cpu` or `cuda`. Raises RequestError for a device that this machine does not have."""
    if known_device(name) == "cuda" and hardware.auto_device() != "cuda":
        raise RequestError("--device cuda: torch finds no CUDA GPU on this machine; use --device cpu.")
    return hardware.auto_device() if name == "auto" else name


STANDARD = Spec("standard")
BRITISH = {"optimiser": "optimizer"}
TRIALS = 8  # of each method under recipe standard, unless --tune or a learning rate is given
SEEDS: Mapping[str, tuple[int, ...]] = {"standard": (0, 1, 2), "paper": (0, 1, 2)}  # others: one


def complete(study: Study, places: Places) -> tuple[Study, list[str]]:
    """Return the study with every open choice made, and the notes to print about them."""
    notes: list[str] = []
    if not study.methods and not study.datasets and (study.recipe is None or study.recipe.name == "quick"):
        study = replace(study, datasets=QUICK_DATASETS, recipe=study.recipe or Spec("quick"))
        notes.append("The quick study on synthetic phantoms checks the installation. For real images, give --datasets.")
    methods = with_matched(expand(study.methods or tuple(map(parse, QUICK_METHODS))), study)
    datasets, missing = _datasets(study.datasets or ("all",), places.data)
    backbone_name, why = (study.backbone, []) if study.backbone else _default_backbone(places)
    recipe = study.recipe or STANDARD
    study = replace(
        study,
        methods=methods,
        datasets=tuple(datasets),
        seeds=tuple(dict.fromkeys(study.seeds)) or SEEDS.get(recipe.name, (0,)),
        recipe=recipe,
        backbone=backbone_name,
    )
    return replace(study, tune=_trials(study)), [*notes, *missing, *why]


def _trials(study: Study) -> int:
    given = "lr" in overrides(study)
    if study.tune and given:
        raise RequestError("--tune and a learning rate exclude each other: --tune searches for it; leave one out.")
    if study.tune is not None:
        return study.tune
    return TRIALS if study.recipe and study.recipe.name == "standard" and not given else 0


def _default_backbone(places: Places) -> tuple[str, list[str]]:
    if places.device != "cuda":
        return "mini", ["Backbone mini, 64 px: not the paper's backbone (--backbone clip_vit_b16 is)."]
    try:
        backbone.locate("clip_vit_b16", None, places.weights)
    except WeightsError as error:
        return "mini", [f"Backbone mini, 64 px: not the paper's backbone. {error}"]
    return "clip_vit_b16", []


def _datasets(words: Sequence[str], root: Path) -> tuple[list[str], list[str]]:
    """Return data set names, groups such as `all` expanded, and notes about those that are missing."""
    names, notes = list[str](), list[str]()
    for word in words:
        found, about = GROUPS[word](root) if word in GROUPS else ([word], [])
        names += [name for name in found if name not in names]
        notes += about
    return names, notes


def _phantoms(root: Path) -> tuple[list[str], list[str]]:  # noqa: ARG001 - they are generated, not read
    return [name for name in registry("datasets").names() if name.startswith("phantom_")], []


def _paper(root: Path) -> tuple[list[str], list[str]]:  # noqa: ARG001 - all six, present or not
    return list(PAPER_DATASETS), []


def _all(root: Path) -> tuple[list[str], list[str]]:
    """Return the complete ones of the paper's six data sets; the phantoms if none is complete."""
    complete = [name for name in PAPER_DATASETS if availability.is_complete(name, root)]
    others = {name: availability.presence(name, root) for name in PAPER_DATASETS if name not in complete}
    parts = [f"{name} ({found.found:,} of {found.whole:,})" for name, found in others.items() if found and found.found]
    missing = [name for name, found in others.items() if not (found and found.found)]
    partly = f"incomplete, and run only when named: {', '.join(parts)}" if parts else ""
    if not complete:
        note = f"None of the paper's six data sets is complete in {root}: running the synthetic phantoms instead."
        return _phantoms(root)[0], [note, *([f"Of the six, {partly}."] if parts else [])]
    if not others:
        return complete, []
    absent = f"not in {root}: {', '.join(missing)}" if missing else ""
    found = f"all = {len(complete)} of the paper's 6 data sets"
    pieces = "; ".join(piece for piece in (found, absent, partly) if piece)
    return complete, [f"{pieces}. `peftbench list datasets` shows how to get them."]


def _medmnist(root: Path) -> tuple[list[str], list[str]]:
    """Return the data sets of MedMNIST+ whose files are present, each at its largest size."""
    if not (found := availability.collection_specs(root)):
        how = catalogue.dataset_entry(availability.COLLECTION).how_to_get
        raise MissingDataError(f"No data set of MedMNIST+ is in {root / availability.COLLECTION}. {how}")
    return list(found), [f"medmnist = the {len(found)} of its 12 data sets that are present."]


def _every(root: Path) -> tuple[list[str], list[str]]:
    """Return every real data set that is complete; the phantoms if none is."""
    found = availability.complete_datasets(root)
    return (list(found), [f"every = the {len(found)} complete data sets."]) if found else _all(root)


GROUPS: Mapping[str, Callable[[Path], tuple[list[str], list[str]]]] = {
    "all": _all,
    "paper": _paper,
    "phantoms": _phantoms,
    "medmnist": _medmnist,
    "every": _every,
}


def make_recipe(study: Study, device: str) -> Recipe:
    """Return the study's recipe with every choice made. Raises RequestError."""
    spec = study.recipe or STANDARD
    if spec.name not in RECIPES or spec.argument or spec.random:
        raise RequestError(f"No recipe is called {str(spec)!r}. There are: {', '.join(RECIPES)}.")
    recipe = RECIPES[spec.name]
    if recipe.name == "standard" and device == "cpu":
        recipe = replace(recipe, **CPU_STANDARD)
    refuse_graph(study, device)
    stated = overrides(study)
    return replace(
        recipe.by(stated.get("optimizer", recipe.optimizer), stated),
        precision=_precision(study, recipe, device),
        compile=study.compile,
        graph=study.graph,
        deterministic=study.deterministic and device == "cuda",  # on a CPU, bits are the same anyway
        **stated,
    )


def _precision(study: Study, recipe: Recipe, device: str) -> Precision:
    """Return the precision; `auto` is fp32 under recipe paper, else what the hardware multiplies natively."""
    if study.precision != "auto":
        return study.precision
    if recipe.name == "paper":
        return "fp32"
    if device == "cuda" and not hardware.gpus():
        raise RequestError("--precision auto asks the GPU, and this machine has none; pass --precision bf16 or fp32.")
    return hardware.auto_precision(device)


def refuse_graph(study: Study, device: str) -> None:
    """Raise RequestError for a CUDA graph without CUDA."""
    if study.graph and device != "cuda":
        raise RequestError("--graph needs a GPU (--device cuda), and the device is the CPU; leave it out.")


def overrides(study: Study) -> dict[str, Any]:
    """Return the recipe's fields that the user set, by flags or as in `paper[momentum=0,head_scale=16]`."""
    values = {k: v for k in ("steps", "batch", "evaluations", "lr") if (v := getattr(study, k)) is not None}
    spec = study.recipe or STANDARD
    fields = {BRITISH.get(name, name): value for name, value in spec.fields.items()}
    if unknown := [name for name in fields if name not in IN_BRACKETS]:
        raise RequestError(
            f"recipe {spec.name}: {unknown[0]!r} cannot be set in brackets; there are {', '.join(IN_BRACKETS)}."
        )
    typed = build(Recipe, {**fields, "name": spec.name}, f"recipe {spec.name}")
    values |= {name: getattr(typed, name) for name in fields}
    return values | ({"augmentation": study.augmentation} if study.augmentation else {})
