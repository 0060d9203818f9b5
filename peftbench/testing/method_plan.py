"""Rules about what a method decides: its plan, its count, its fields, its budget."""

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
from peftbench.testing.findings import Broken, Skipped, demand
from peftbench.testing.fixture import Scene, differing, listed

BEYOND = 10**12  # a budget that nothing reaches


def it_runs(scene: Scene) -> str:
    """A plan of this network that can be carried out, and one step that is finite."""
    plan = scene.plan
    demand(isinstance(plan, Plan), f"plan() gave a {type(plan).__name__}, not a Plan.")
    strange = [name for name, fact in plan.facts.items() if not math.isfinite(fact)]
    demand(not strange, f"The plan's fact {listed(strange or [''])} is not a finite number.")
    carried = scene.carried()
    features = carried.model.vit(scene.images)
    wanted = scene.pretrained.shape
    demand(features.shape == wanted, f"The features have the shape {tuple(features.shape)}, not {tuple(wanted)}.")
    demand(features.isfinite().all(), "Some features are not finite.")
    carried.loss(scene.images, scene.labels).backward()
    return f"{len(plan.tune)} whole tensors, entries of {len(plan.entries)}, {len(plan.grafts)} grafts."


def planning_changes_nothing(scene: Scene) -> str:
    """Weights, flags, modes, modules and hooks are what they were; torch's generator may have been used."""
    model = scene.model().train()
    was, state = outline(model), {name: t.clone() for name, t in model.state_dict().items()}
    scene.planned(model)
    changed = differing(state, dict(model.state_dict()))
    demand(not changed, f"plan() changed {listed(changed or [''])}.")
    now = outline(model)
    places = [name for name in was | now if was.get(name) != now.get(name)]
    demand(not places, f"plan() left its mark on {listed(places or [''])}: types, flags, modes or hooks differ.")
    return "Weights, flags, modes, modules and hooks are as before."


def planning_twice_agrees(scene: Scene) -> str:
    """The job's seed is set behind `plan`, so a plan that draws must draw from a seed of its own."""
    one, other = (scene.planned(scene.model(), disturbance=seed) for seed in (1, 2))
    demand(told(one) == told(other), "Two plans of the same network differ in names, sizes or facts.")
    changed = differing(dict(one.entries), dict(other.entries))
    demand(not changed, f"Two plans of the same network choose other entries of {listed(changed or [''])}.")
    return "The same plan under other states of the generators."


def counting_needs_no_data(scene: Scene) -> str:
    """`count` works on the meta device without a probe, and says what the plan says."""
    try:
        counted = scene.method.count(scene.blank)
    except PluginError as error:
        raise Broken(str(error)) from None
    if not scene.method.exact:
        return f"{counted:,} aimed at on the meta device."
    planned = scene.plan.count(scene.blank)
    if not scene.method.exact:
        return f"It aims at {counted:,} on the meta device; with these data {planned:,} train (exact = False)."
    demand(counted == planned, f"The method counts {counted:,} trainable parameters, its plan {planned:,}.")
    return f"{counted:,} on the meta device."


def the_count_is_what_trains(scene: Scene) -> str:
    """The plan's count is what requires a gradient once it was carried out, and all of that is saved."""
    planned, carried = scene.plan.count(scene.blank), scene.carried()
    free = carried.trainable()
    found = sum(parameter.numel() for parameter in free.values())
    demand(planned == found, f"The plan counts {planned:,} trainable parameters, {found:,} require a gradient.")
    held = {id(tensor) for tensor in carried.tuned.tensors.values()}
    loose = [name for name, parameter in free.items() if id(parameter) not in held]
    demand(not loose, f"{listed(loose or [''])} trains but belongs to no graft, so it would not be saved.")
    return f"{found:,}."


def the_budget_is_met(scene: Scene) -> str:
    """`within` finds the nearest size, says where its range ends, and the plan trains that many."""
    method, vit = scene.method, scene.blank
    if method.knob is None:
        raise Skipped("It has no size to choose.")
    least, most = method.within(1, vit), method.within(BEYOND, vit)
    demand(most.edge == "ceiling", f"A budget of {BEYOND:,} is met with {most.reached:,} and not named a ceiling.")
    demand(
        least.edge == "floor" or least.reached <= 1, f"A budget of 1 is met with {least.reached:,}, not named floor."
    )
    demand(least.reached < most.reached, f"Whatever the budget, {most.reached:,} parameters train.")
    target = round(math.sqrt(max(1, least.reached) * most.reached))
    fit = method.within(target, vit)
    for one in (least, fit, most):
        counted = one.method.count(vit)
        demand(counted == one.reached, f"`within` says {one.reached:,} where the method counts {counted:,}.")
    nearer = _nearer(fit, target, vit)
    demand(nearer is None, f"The budget {target:,} is met with {fit.reached:,}, though {nearer} can be had.")
    return f"{least.reached:,} to {most.reached:,}; {target:,} is met with {fit.reached:,}."


def _nearer(fit: Match, target: int, vit: nn.Module) -> int | None:
    """A count nearer to the target, among the neighbours of the size found or what nearby budgets reach."""
    method = fit.method
    if type(method).sizes is Method.sizes:
        reached = [method.within(max(1, round(target * share)), vit).reached for share in (0.8, 0.95, 1.05, 1.25)]
    else:
        sizes = list(method.sizes(vit))
        place = sizes.index(getattr(method, str(method.knob)))
        reached = [method.at_size(size).count(vit) for size in sizes[max(0, place - 1) : place + 2]]
    return next((count for count in reached if abs(count - target) < abs(fit.reached - target)), None)


def its_fields_come_back(scene: Scene) -> str:
    """The defaults build it, and its fields survive the job's JSON, the same type and value."""
    method, kind = scene.method, type(scene.method)
    decorated = "__dataclass_fields__" in vars(kind) or not vars(kind).get("__annotations__")
    demand(decorated, "It has annotations but is no dataclass: write @dataclass(frozen=True) above it.")
    hash(method)
    kind()
    written = json.loads(json.dumps(method.values()))
    demand(build(kind, written, kind.__name__) == method, "Its fields differ once they were written and read again.")
    demand(replace(method) == method, "A copy of it differs.")
    demand(method.knob in (None, *(f.name for f in fields(kind))), f"Its knob {method.knob!r} is none of its fields.")
    return f"{len(written)} fields."


def told(plan: Plan) -> tuple[Any, ...]:
    """A plan without its tensors, comparable."""
    return plan.tune, dict(plan.grafts), dict(plan.shared), plan.callback, dict(plan.facts), sorted(plan.entries)


def outline(root: nn.Module) -> dict[str, tuple[Any, ...]]:
    """What could be left behind on each module and parameter: types, flags, modes, hooks, methods put over others."""
    marks: dict[str, tuple[Any, ...]] = {
        name or "the network": (*structure(module), module.training) for name, module in root.named_modules()
    }
    return marks | {name: (p.requires_grad, tensor_hooks(p)) for name, p in root.named_parameters()}


def structure(module: nn.Module) -> tuple[Any, ...]:
    """The type of a module, its number of hooks of each kind, and its plain attributes."""
    own = {key: value for key, value in vars(module).items() if key != "training"}
    hooks = {key: len(value) for key, value in own.items() if key.endswith(("_hooks", "_pre_hooks"))}
    plain = {key: value for key, value in own.items() if isinstance(value, int | float | str | tuple | None)}
    patches = sorted(key for key, value in own.items() if callable(value) and hasattr(type(module), key))
    return type(module), hooks, plain, patches


def tensor_hooks(tensor: Tensor) -> int:
    """How many hooks wait on a tensor's gradient."""
    return len(tensor._backward_hooks or ()) + len(getattr(tensor, "_post_accumulate_grad_hooks", None) or ())  # noqa: SLF001
