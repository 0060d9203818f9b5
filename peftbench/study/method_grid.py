"""The methods that a study asks for, at its budgets: names, variants and sizes become rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from torch import nn

from peftbench.core import catalogue, official_recipes
from peftbench.core.fields import build
from peftbench.core.registry import registry, variant
from peftbench.core.spec import Study
from peftbench.core.syntax import Spec, budget, parse
from peftbench.errors import RequestError, blaming
from peftbench.models.backbone import Source
from peftbench.models.method import Fit, Method

BASELINES = (("majority", False), ("linear", False), ("linear", True))  # method, on random weights


@dataclass(frozen=True)
class Named:
    """A method as asked for; `alias` where it is a variant of the user's own."""

    name: str
    method: Method
    alias: str = ""


def named(text: str, recipe: str) -> Named:
    """The method that a text such as `lora[r=4]` asks for, with the authors' fields under recipe `official`."""
    spec = parse(text)
    if spec.argument or spec.random:
        raise RequestError(f"Cannot read the method {text!r}: write NAME or NAME[field=value,...].")
    base, fields = variant(spec.name)
    kind: type[Method] = registry("methods").get(base)
    fields = {**fields, **spec.fields}
    fields = official_recipes.fields(base, fields) if recipe and parse(recipe).name == "official" else fields
    return Named(base, build(kind, fields, spec.name), str(spec) if base != spec.name else "")


def written_out(words: Sequence[str]) -> tuple[str, ...]:
    """Methods with `paper`, those in the paper's table, and `all`, every one but the baseline `majority`, named."""
    return tuple(name for word in words for name in _meant(word))


def _meant(word: str) -> tuple[str, ...]:
    if word == "all":
        return tuple(name for name in registry("methods").names() if name != "majority")
    if word != "paper":
        return (word,)
    known = ((name, catalogue.method_entry(name).published) for name in catalogue.method_names())
    return tuple(name for name, published in known if published)


@dataclass(frozen=True)
class Row:
    """A method at one size on one backbone: what becomes a job for every data set and seed."""

    name: str
    method: Method
    source: Source
    targets: tuple[int, ...] = ()  # several may reach the same size
    fit: Fit | None = None
    alias: str = ""  # how a user's variant is called

    @property
    def label(self) -> str:
        """How a table calls it: by its name and the fields that are not at their default, a turned knob's aside."""
        defaults, turned = type(self.method)().values(), self.method.knob if self.fit else None
        inside = {k: v for k, v in self.method.values().items() if k != turned and v != defaults[k]}
        return self.alias or str(Spec(self.name, None, inside))


def rows_of(study: Study, source: Source) -> list[Row]:
    """The methods that a study asks for at its budgets, and its baselines."""
    rows = _rows([named(text, study.recipe) for text in study.methods], study, source)
    if study.compile and (eager := [row.name for row in rows if not row.method.compiles]):
        raise RequestError(f"--compile: torch.compile does not take {', '.join(dict.fromkeys(eager))}; leave one out.")
    return rows


def _rows(asked: Sequence[Named], study: Study, source: Source) -> list[Row]:
    blank = source.blank()
    total = sum(p.numel() for p in blank.parameters())
    targets = [round(b * total) if isinstance(b, float) else b for b in map(budget, study.ratios)]
    rows = [row for one in asked for row in _sized(one, targets, source, blank)]
    bases = [Row(n, registry("methods").get(n)(), _random(source) if r else source) for n, r in BASELINES]
    merged: dict[tuple[Method, str], Row] = {}
    for row in [*(bases if study.baselines else []), *rows]:
        first = merged.setdefault((row.method, str(row.source.spec)), row)
        if first is not row:
            both = tuple(dict.fromkeys(first.targets + row.targets))
            merged[row.method, str(row.source.spec)] = replace(first, targets=both)
    return list(merged.values())


def _sized(one: Named, targets: Sequence[int], source: Source, blank: nn.Module) -> Iterator[Row]:
    name, method = one.name, one.method
    blame = f"The method {one.alias or name!r} cannot be counted on {source.spec}"
    if not targets or method.knob is None:
        with blaming(blame):
            method.count(blank)  # refuses an impossible size before anything trains
        yield Row(name, method, source, alias=one.alias)
        return
    for target in targets:
        with blaming(blame):
            fit = method.within(target, blank)
        yield Row(name, fit.method, source, (target,), fit, one.alias)


def _random(source: Source) -> Source:
    return replace(source, spec=replace(source.spec, random=True), file=None)
