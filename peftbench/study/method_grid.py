"""From a study's methods and budgets to methods of fixed size."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from torch import nn

from peftbench.core import official_recipes
from peftbench.core.constants import ALL_METHODS, BASELINES, PAPER_METHODS, UNTRAINED
from peftbench.core.fields import build
from peftbench.core.guarded import guard
from peftbench.core.published import published_methods
from peftbench.core.registry import registry, variant
from peftbench.core.spec import Study, label
from peftbench.core.syntax import Spec, budget
from peftbench.errors import RequestError
from peftbench.models.backbone import Source
from peftbench.models.method import Match, Method
from peftbench.models.top_k import backbone_size


@dataclass(frozen=True)
class NamedMethod:
    """A method with its hyper-parameters, before a budget sets its size."""

    name: str
    method: Method
    alias: str = ""  # name of the user's own variant


def resolve_method(spec: Spec, recipe: str) -> NamedMethod:
    """Return the method that `lora[r=4]` names; under recipe `official` with the hyper-parameters of its authors."""
    if spec.argument or spec.random:
        raise RequestError(f"Cannot read the method {str(spec)!r}: write NAME or NAME[field=value,...].")
    base, fields = variant(spec.name)
    kind: type[Method] = registry("methods").get(base)
    fields = {**fields, **spec.fields}
    fields = official_recipes.fields(base, fields) if recipe == "official" else fields
    return NamedMethod(base, build(kind, fields, spec.name), str(spec) if base != spec.name else "")


def expand(specs: Sequence[Spec]) -> tuple[Spec, ...]:
    """Replace `paper` by the methods of the paper's table and `all` by every method that trains."""
    return tuple(expanded for spec in specs for expanded in _expand(spec))


def _expand(spec: Spec) -> tuple[Spec, ...]:
    if str(spec) == ALL_METHODS:
        return tuple(Spec(name) for name in registry("methods").names() if name not in UNTRAINED)
    if str(spec) != PAPER_METHODS:
        return (spec,)
    return tuple(map(Spec, sorted(published_methods())))


@dataclass(frozen=True)
class SizedMethod:
    """A method at one size on one backbone, which becomes a job for every data set and seed."""

    name: str
    method: Method
    source: Source
    targets: tuple[int, ...] = ()  # budgets in trainable parameters; several may reach the same size
    fit: Match | None = None  # the size reached; None without a budget
    alias: str = ""  # name of the user's own variant

    @property
    def label(self) -> str:
        """The method's name in tables."""
        turned = self.method.knob if self.fit else None
        return self.alias or label(self.name, self.method.values(), type(self.method)().values(), turned)


def sized_methods(study: Study, source: Source) -> list[SizedMethod]:
    """Return the methods of a study at its budgets, baselines first, without duplicates."""
    recipe = study.recipe.name if study.recipe else ""
    methods = _sized_methods([resolve_method(spec, recipe) for spec in study.methods], study, source)
    if study.compile and (eager := [one.name for one in methods if not one.method.compiles]):
        raise RequestError(f"--compile does not work with {', '.join(dict.fromkeys(eager))}; leave one of them out.")
    return methods


def _sized_methods(named: Sequence[NamedMethod], study: Study, source: Source) -> list[SizedMethod]:
    blank = source.blank()
    total = backbone_size(blank)
    targets = [_parameters(ratio, total) for ratio in map(budget, study.ratios)]
    if study.matched:
        spec, ratio = study.matched
        (reference,) = _sized(resolve_method(spec, ""), [_parameters(ratio, total)], source, blank)
        if reference.fit is None:
            raise RequestError(f"--match {study.match}: {spec} has one fixed size, which no budget changes.")
        targets = [reference.fit.reached]
    merged: dict[tuple[Method, str], SizedMethod] = {}
    baselines = _baselines(source) if study.baselines else []
    for one in [*baselines, *(sized for method in named for sized in _sized(method, targets, source, blank))]:
        first = merged.setdefault((one.method, str(one.source.spec)), one)
        if first is not one:
            both = tuple(dict.fromkeys(first.targets + one.targets))
            merged[one.method, str(one.source.spec)] = replace(first, targets=both)
    return list(merged.values())


def _parameters(ratio: float, total: int) -> int:
    """Return a budget in trainable parameters: a count, or a share of all."""
    return ratio if isinstance(ratio, int) else round(ratio * total)


def with_matched(specs: Sequence[Spec], study: Study) -> tuple[Spec, ...]:
    """Return the methods of a study, with `--match` also the one that is matched and the controls."""
    if not study.matched:
        return tuple(specs)
    controls = [Spec(name) for name in registry("methods").names() if name.startswith("control_")]
    present = {spec.name for spec in specs}
    return (*specs, *(spec for spec in (study.matched[0], *controls) if spec.name not in present))


def fixed_sizes(methods: Sequence[SizedMethod]) -> list[str]:
    """Return the labels of the methods whose size no budget can change, baselines and full fine-tuning included."""
    return list(dict.fromkeys(one.label for one in methods if one.fit is None and one.method.trains))


def _baselines(source: Source) -> list[SizedMethod]:
    """Return the baseline methods, and the linear probe on random weights."""
    random = replace(source, spec=replace(source.spec, random=True), file=None)
    wanted = [*((name, source) for name in BASELINES), ("linear", random)]
    return [SizedMethod(name, registry("methods").get(name)(), where) for name, where in wanted]


def _sized(named: NamedMethod, targets: Sequence[int], source: Source, blank: nn.Module) -> Iterator[SizedMethod]:
    name, method = named.name, named.method
    blame = f"The method {named.alias or name!r} cannot be counted on {source.spec}"
    if not targets or method.knob is None:
        with guard(blame):
            method.count(blank)  # refuses an impossible size before anything trains
        yield SizedMethod(name, method, source, alias=named.alias)
        return
    for target in targets:
        with guard(blame):
            fit = method.within(target, blank)
        yield SizedMethod(name, fit.method, source, (target,), fit, named.alias)
