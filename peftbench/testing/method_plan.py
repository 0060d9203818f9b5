"""Rules about a method's plan, its parameter count, its fields and its budget."""

from __future__ import annotations

import json
import math
from dataclasses import fields, replace
from typing import Any

from torch import Tensor, nn

from peftbench.core.fields import build
from peftbench.errors import PluginError
from peftbench.models.method import Match, Method
from peftbench.models.plan import Plan
from peftbench.testing.findings import Broken, Skipped, listed, require
from peftbench.testing.fixture import MethodFixture, differing

UNREACHABLE = 10**12  # a budget above any network's size


def it_runs(fixture: MethodFixture) -> str:
    """The plan can be carried out on this network, and one step gives finite features."""
    plan = fixture.plan
    require(isinstance(plan, Plan), f"plan() must return a Plan, got {type(plan).__name__}.")
    strange = [name for name, fact in plan.facts.items() if not math.isfinite(fact)]
    require(not strange, f"The plan's fact {listed(strange)} must be a finite number.")
    carried = fixture.carried()
    features = carried.model.vit(fixture.images)
    shape = fixture.pretrained.shape
    require(features.shape == shape, f"Features must have the shape {tuple(shape)}, got {tuple(features.shape)}.")
    require(features.isfinite().all(), "Features must be finite.")
    carried.loss(fixture.images, fixture.labels).backward()
    return f"{len(plan.tune)} whole tensors, entries of {len(plan.entries)}, {len(plan.grafts)} adapters."


def planning_changes_nothing(fixture: MethodFixture) -> str:
    """plan() leaves weights, flags, modes, modules and hooks as they were; it may draw from torch's generator."""
    model = fixture.model().train()
    was, state = outline(model), {name: t.clone() for name, t in model.state_dict().items()}
    fixture.planned(model)
    changed = differing(state, dict(model.state_dict()))
    require(not changed, f"plan() must not change {listed(changed)}.")
    now = outline(model)
    places = [name for name in was | now if was.get(name) != now.get(name)]
    require(not places, f"plan() must not change types, flags, modes or hooks of {listed(places)}.")
    return "Weights, flags, modes, modules and hooks are unchanged."


def planning_twice_agrees(fixture: MethodFixture) -> str:
    """Plans do not depend on the global generators; a plan that draws must use `probe.seed`."""
    one, other = (fixture.planned(fixture.model(), disturbance=seed) for seed in (1, 2))
    require(
        plan_summary(one) == plan_summary(other),
        "Two plans of the same network must have the same names, sizes and facts.",
    )
    changed = differing(dict(one.entries), dict(other.entries))
    require(not changed, f"Two plans of the same network must choose the same entries of {listed(changed)}.")
    return "The same plan under two states of the generators."


def counting_needs_no_data(fixture: MethodFixture) -> str:
    """`count` works on the meta device without a probe and returns the plan's count."""
    try:
        counted = fixture.method.count(fixture.blank)
    except PluginError as error:
        raise Broken(str(error)) from None
    planned = fixture.plan.count(fixture.blank)
    if not fixture.method.exact:
        return f"{counted:,} on the meta device, {planned:,} with these data (exact = False)."
    require(counted == planned, f"count() must equal the plan's count, got {counted:,} and {planned:,}.")
    return f"{counted:,} on the meta device."


def the_count_is_what_trains(fixture: MethodFixture) -> str:
    """The plan's count is the number of parameters that require a gradient afterwards, and all of them are saved."""
    planned, carried = fixture.plan.count(fixture.blank), fixture.carried()
    free = carried.trainable()
    found = sum(parameter.numel() for parameter in free.values())
    require(planned == found, f"The plan's count must be what requires a gradient, got {planned:,} and {found:,}.")
    loose = [name for name, parameter in free.items() if not carried.holds(parameter)]
    require(not loose, f"{listed(loose)} trains but is in no tensor of the plan, so it would not be saved.")
    return f"{found:,}."


def the_budget_is_met(fixture: MethodFixture) -> str:
    """`within` finds the nearest size, names the floor and the ceiling, and the plan trains that many."""
    method, vit = fixture.method, fixture.blank
    if method.knob is None:
        raise Skipped("The method has no knob.")
    least, most = method.within(1, vit), method.within(UNREACHABLE, vit)
    require(most.edge == "ceiling", f"within({UNREACHABLE:,}) must have edge 'ceiling', got {most.edge}.")
    require(
        least.edge == "floor" or least.reached <= 1,
        f"within(1) must have edge 'floor' or reach 1, got {least.edge} and {least.reached:,}.",
    )
    require(least.reached < most.reached, f"The count must grow with the budget, it is always {most.reached:,}.")
    target = round(math.sqrt(max(1, least.reached) * most.reached))
    fit = method.within(target, vit)
    for one in (least, fit, most):
        counted = one.method.count(vit)
        require(counted == one.reached, f"Match.reached must equal count(), got {one.reached:,} and {counted:,}.")
    nearer = _nearer(fit, target, vit)
    require(
        nearer is None, f"within({target:,}) must return the nearest size, got {fit.reached:,}, and {nearer} is nearer."
    )
    return f"{least.reached:,} to {most.reached:,}; a budget of {target:,} gives {fit.reached:,}."


def _nearer(fit: Match, target: int, vit: nn.Module) -> int | None:
    """Return a count nearer to the target among neighboring sizes, or among those of nearby budgets; else None."""
    method = fit.method
    if type(method).sizes is Method.sizes:
        reached = [method.within(max(1, round(target * share)), vit).reached for share in (0.8, 0.95, 1.05, 1.25)]
    else:
        sizes = list(method.sizes(vit))
        place = sizes.index(getattr(method, str(method.knob)))
        reached = [method.at_size(size).count(vit) for size in sizes[max(0, place - 1) : place + 2]]
    return next((count for count in reached if abs(count - target) < abs(fit.reached - target)), None)


def its_fields_come_back(fixture: MethodFixture) -> str:
    """The method builds from its defaults, and its fields are the same after a round trip through JSON."""
    method, kind = fixture.method, type(fixture.method)
    decorated = "__dataclass_fields__" in vars(kind) or not vars(kind).get("__annotations__")
    require(decorated, "A method with fields must be a dataclass: write @dataclass(frozen=True) above it.")
    hash(method)
    kind()
    written = json.loads(json.dumps(method.values()))
    require(build(kind, written, kind.__name__) == method, "Its fields must be equal after a round trip through JSON.")
    require(replace(method) == method, "A copy must be equal to it.")
    require(method.knob in (None, *(f.name for f in fields(kind))), f"knob must name a field, got {method.knob!r}.")
    return f"{len(written)} fields."


def plan_summary(plan: Plan) -> tuple[Any, ...]:
    """Return all of a plan except its tensors, for comparison."""
    named = (plan.grafts, plan.shared, plan.lr_multipliers, plan.facts)
    return plan.tune, *map(dict, named), plan.callback, sorted(plan.entries)


def outline(root: nn.Module) -> dict[str, tuple[Any, ...]]:
    """Return types, flags, modes, hooks and replaced methods of each module and parameter."""
    marks: dict[str, tuple[Any, ...]] = {
        name or "the network": (*structure(module), module.training) for name, module in root.named_modules()
    }
    return marks | {name: (p.requires_grad, tensor_hooks(p)) for name, p in root.named_parameters()}


def structure(module: nn.Module) -> tuple[Any, ...]:
    """Return a module's type, its number of hooks of each kind, its plain attributes and its replaced methods."""
    own = {key: value for key, value in vars(module).items() if key != "training"}
    hooks = {key: len(value) for key, value in own.items() if key.endswith(("_hooks", "_pre_hooks"))}
    plain = {key: value for key, value in own.items() if isinstance(value, int | float | str | tuple | None)}
    patches = sorted(key for key, value in own.items() if callable(value) and hasattr(type(module), key))
    return type(module), hooks, plain, patches


def tensor_hooks(tensor: Tensor) -> int:
    """Return the number of hooks on a tensor's gradient."""
    return len(tensor._backward_hooks or ()) + len(getattr(tensor, "_post_accumulate_grad_hooks", None) or ())  # noqa: SLF001
