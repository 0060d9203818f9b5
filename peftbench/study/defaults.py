"""What was asked for, completed: the places, the data sets behind a word like `all`, the backbone and the recipe."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from platformdirs import user_cache_path

from peftbench.core import catalogue
from peftbench.core.fields import build
from peftbench.core.recipe import CPU_STANDARD, IN_BRACKETS, RECIPES, Recipe
from peftbench.core.registry import registry
from peftbench.core.spec import PAPER_SIX, QUICK, Places, Study
from peftbench.core.syntax import parse
from peftbench.data import availability
from peftbench.errors import MissingDataError, RequestError, WeightsError
from peftbench.models import backbone
from peftbench.profiling import hardware
from peftbench.storage.cache import LIMIT
from peftbench.storage.sizes import parse_size
from peftbench.study.method_grid import written_out


def places(
    store: Path,
    data: Path | None = None,
    cache: Path | None = None,
    weights: Path | None = None,
    device: str = "auto",
    limit: str = "",
) -> Places:
    """Folders as given, or the platform's own for this user; the device that `auto` means."""
    return Places(
        store=store,
        data=availability.data_folder(data),
        cache=cache or user_cache_path("peftbench"),
        weights=weights,
        device=find_device(device),
        cache_limit=parse_size(limit, "--cache-limit") if limit else LIMIT,
    )


def find_device(asked: str) -> str:
    """`cpu` or `cuda`. Raises RequestError where that is not here."""
    if asked not in {"auto", "cpu", "cuda"}:
        raise RequestError(f"--device {asked}: it is auto, cpu or cuda.")
    if asked == "cuda" and hardware.auto_device() != "cuda":
        raise RequestError("--device cuda: torch sees no CUDA card on this machine; use --device cpu.")
    return hardware.auto_device() if asked == "auto" else asked


def complete(study: Study, places: Places) -> tuple[Study, list[str]]:
    """Fill in what was left open, and say what was chosen."""
    says: list[str] = []
    quick = not study.methods and not study.datasets and parse(study.recipe or "quick").name == "quick"
    if quick:
        recipe = study.recipe or "quick"
        study = replace(study, methods=QUICK["methods"], datasets=QUICK["datasets"], recipe=recipe)
        says.append(
            "The quick study: synthetic phantoms, to see that everything works. For real images see --datasets."
        )
    methods = written_out(study.methods or QUICK["methods"])
    names, about = _datasets(study.datasets or ("all",), places.data)
    seeds = tuple(dict.fromkeys(study.seeds))
    recipe = study.recipe or "standard"
    chosen, why = (study.backbone, "") if study.backbone else _default_backbone(places)
    tuned = parse(recipe).name == "standard" and study.lr is None
    tune = study.tune if study.tune is not None else 4 if tuned else 0
    study = replace(
        study, methods=methods, datasets=tuple(names), seeds=seeds, recipe=recipe, backbone=chosen, tune=tune
    )
    return study, [*says, *about, *([why] if why else [])]


def _default_backbone(places: Places) -> tuple[str, str]:
    if places.device == "cuda":
        try:
            backbone.find("clip_vit_b16", None, places.weights)
        except WeightsError as error:
            return "mini", f"Backbone mini, 64 px: not the paper's backbone. {error}"
        return "clip_vit_b16", ""
    return "mini", "Backbone mini, 64 px: not the paper's backbone (--backbone clip_vit_b16 is)."


def _datasets(asked: Sequence[str], root: Path) -> tuple[list[str], list[str]]:
    """Names with groups (`all`, `paper`, `phantoms`) written out, and what to say about those that are missing."""
    names: list[str] = []
    says: list[str] = []
    for word in asked:
        found, about = _group(word, root)
        names += [name for name in found if name not in names]
        says += about
    return names, says


def _group(word: str, root: Path) -> tuple[list[str], list[str]]:
    groups = {"all": _all, "paper": _paper, "phantoms": _phantoms, "medmnist": _medmnist, "every": _every}
    return groups[word](root) if word in groups else ([word], [])


def _phantoms(root: Path) -> tuple[list[str], list[str]]:  # noqa: ARG001 - they are drawn, not read
    return [name for name in registry("datasets").names() if name.startswith("phantom_")], []


def _paper(root: Path) -> tuple[list[str], list[str]]:  # noqa: ARG001 - all six, wherever they are
    return list(PAPER_SIX), []


def _all(root: Path) -> tuple[list[str], list[str]]:
    """The paper's six as far as they are complete; the phantoms if none is."""
    here = [name for name in PAPER_SIX if _present(name, root)]
    others = {name: availability.presence(name, root) for name in PAPER_SIX if name not in here}
    parts = [f"{name} ({found.found:,} of {found.whole:,})" for name, found in others.items() if found and found.found]
    missing = [name for name, found in others.items() if not (found and found.found)]
    partly = f"incomplete, and run only when named: {', '.join(parts)}" if parts else ""
    if not here:
        says = f"None of the paper's six data sets lies under {root}: the built-in synthetic phantoms run instead."
        return _phantoms(root)[0], [says, *([f"Of the six are {partly}."] if parts else [])]
    says = f"all = {len(here)} of the paper's 6 data sets"
    absent = f"not under {root}: {', '.join(missing)}" if missing else ""
    how = "`peftbench list datasets` says how to get one."
    return here, [f"{'; '.join(piece for piece in (says, absent, partly) if piece)}. {how}"] if others else []


def _medmnist(root: Path) -> tuple[list[str], list[str]]:
    """Those of the twelve whose files are here, each at its largest size."""
    if not (here := availability.collection_specs(root)):
        how = catalogue.dataset_entry(availability.COLLECTION).how_to_get
        raise MissingDataError(f"No set of MedMNIST+ lies under {root / availability.COLLECTION}. {how}")
    return list(here), [f"medmnist = {len(here)} of the 12 sets, those that are here."]


def _every(root: Path) -> tuple[list[str], list[str]]:
    """Every real set that is complete here; the phantoms if there is none."""
    here = availability.complete_datasets(root)
    return (list(here), [f"every = {len(here)} data sets, those that are here."]) if here else _all(root)


def _present(name: str, root: Path) -> bool:
    return availability.is_complete(name, root)


def make_recipe(study: Study, device: str) -> Recipe:
    """The study's recipe with every choice made. Raises RequestError."""
    spec = parse(study.recipe)
    if spec.name not in RECIPES or spec.argument or spec.random:
        raise RequestError(f"No recipe is called {study.recipe!r}. There are: {', '.join(RECIPES)}.")
    recipe = RECIPES[spec.name]
    if recipe.name == "standard" and device == "cpu":
        recipe = replace(recipe, **CPU_STANDARD)
    precision = hardware.auto_precision(device) if study.precision == "auto" else study.precision
    refuse_graph(study, device)
    recipe = replace(recipe, compile=study.compile, graph=study.graph)
    recipe = replace(recipe, deterministic=study.deterministic and device == "cuda")  # a CPU is so anyway
    return replace(recipe, **written(study), precision=precision)


def refuse_graph(study: Study, device: str) -> None:
    """Raises RequestError for a CUDA graph without CUDA."""
    if study.graph and device != "cuda":
        raise RequestError("--graph needs a GPU (--device cuda), and this runs on the CPU; leave it out.")


def written(study: Study) -> dict[str, Any]:
    """The values of a recipe that the user has set, by flags or behind its name: `paper[momentum=0,head_scale=16]`."""
    values = {k: v for k in ("steps", "batch", "evaluations", "lr") if (v := getattr(study, k)) is not None}
    spec = parse(study.recipe)
    if strange := [name for name in spec.fields if name not in IN_BRACKETS]:
        raise RequestError(
            f"Recipe {spec.name}: {strange[0]!r} cannot be set in brackets; there are {', '.join(IN_BRACKETS)}."
        )
    typed = build(Recipe, {**spec.fields, "name": spec.name}, f"Recipe {spec.name}")
    values |= {name: getattr(typed, name) for name in spec.fields}
    return values | ({"augmentation": study.augmentation} if study.augmentation else {})
