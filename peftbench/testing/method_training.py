"""Rules about training: what changes, what must not change, and that the same seed gives the same bits."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from peftbench.data.batches import FeatureBatches
from peftbench.testing.findings import Skipped, listed, require
from peftbench.testing.fixture import Carried, MethodFixture, Trained, differing, relative
from peftbench.training.loop import forward

HALF = 0.5  # share of a tensor's values that may lack a gradient, as the diagonal of a skew-symmetric matrix does
FLOAT32 = 1e-4  # relative tolerance, for sums in another order
BFLOAT16 = 0.1  # relative tolerance: of 8 bits, a network of two blocks loses two or three


def it_starts_as_the_pretrained_network(fixture: MethodFixture) -> str:
    """Before the first step, the features are those of the pretrained network."""
    if not fixture.method.identity:
        raise Skipped("The method declares identity = False.")
    gap = relative(fixture.carried().model.vit(fixture.images), fixture.pretrained)
    require(
        gap < FLOAT32, f"Before the first step, features must be the pretrained ones; relative difference {gap:.1e}."
    )
    return f"Relative difference {gap:.0e}."


def frozen_tensors_stay(fixture: MethodFixture) -> str:
    """No bit of a frozen tensor changes under SGD and AdamW with momentum and weight decay."""
    for optimizer in ("sgd", "adamw"):
        run = fixture.trained(optimizer)
        moved = [name for name, tensor in run.carried.frozen().items() if _moved(fixture, run, name, tensor)]
        require(not moved, f"Under {optimizer}, {listed(moved)} must not change, as it is frozen.")
    return f"{len(fixture.trained('sgd').before)} tensors, bit for bit."


def _moved(fixture: MethodFixture, run: Trained, name: str, tensor: Tensor) -> bool:
    """Return whether a tensor changed at any entry that the plan does not train."""
    if name not in run.before:
        return False  # created by a forward pass
    now, was = tensor.detach().flatten().clone(), run.before[name].flatten()
    if name in fixture.plan.entries:
        chosen = fixture.plan.entries[name]
        now[chosen] = was[chosen]
    return not torch.equal(now, was)


def every_value_learns(fixture: MethodFixture) -> str:
    """Each trained tensor gets a gradient, except key biases, which softmax ignores, and `idle` tensors."""
    still: dict[str, Tensor] = {}  # which values got none
    for times in (1, -1):  # a ReLU that the noise turns off is on under its opposite
        carried = fixture.perturbed(times)
        carried.loss(fixture.images, fixture.labels).backward()
        for name, parameter in carried.trainable().items():
            if not _exempt(fixture, carried, parameter):
                still[name] = still.get(name, torch.tensor(True)) & _without_gradient(parameter)  # noqa: FBT003 - a value
    dead = {name: float(values.double().mean()) for name, values in still.items()}
    silent = [name for name, share in dead.items() if share > HALF]
    require(
        not silent, f"{listed(silent)} must get a gradient; {max(dead.values(), default=0):.0%} of its values get none."
    )
    return f"{len(dead)} tensors; at most {max(dead.values(), default=0):.0%} of a tensor's values lack a gradient."


def _without_gradient(parameter: Tensor) -> Tensor:
    return torch.ones_like(parameter, dtype=torch.bool) if parameter.grad is None else parameter.grad == 0


def _exempt(fixture: MethodFixture, carried: Carried, parameter: Tensor) -> bool:
    names = [name for name, tensor in carried.tuned.tensors.items() if tensor is parameter]
    return any(name.endswith(("qkv.bias", *fixture.method.idle)) for name in names)


def the_same_seed_gives_the_same_bits(fixture: MethodFixture) -> str:
    """Planning, carrying out and training twice gives equal tensors."""
    again = fixture.train(fixture.carried(fixture.planned(fixture.model(), disturbance=5)), "sgd")
    changed = differing(fixture.trained("sgd").state, again.state)
    require(not changed, f"Two runs with the same seed must end with the same {listed(changed)}.")
    return f"{len(again.state)} tensors, bit for bit."


def a_resumed_run_ends_with_the_same_bits(fixture: MethodFixture) -> str:
    """Resuming from the checkpoint after half of the steps gives the same tensors."""
    whole = fixture.trained("adamw")
    torch.manual_seed(99)
    resumed = fixture.train(fixture.carried(), "adamw", whole.halfway.read())
    changed = differing(whole.state, resumed.state)
    require(not changed, f"Resumed from a checkpoint, it must end with the same {listed(changed)}.")
    return f"{len(whole.state)} tensors, bit for bit."


def evaluation_is_deterministic(fixture: MethodFixture) -> str:
    """In evaluation mode the same images give the same bits, with and without gradients."""
    vit = fixture.perturbed().model.vit
    torch.manual_seed(1)
    one = vit(fixture.images).detach()
    torch.manual_seed(2)
    require(torch.equal(one, vit(fixture.images)), "In evaluation mode, the same images must give the same features.")
    require(
        torch.equal(one, forward(vit, FeatureBatches(fixture.images))),
        "Features must be the same with and without gradients.",
    )
    return "Two passes are equal, bit for bit."


def images_are_independent(fixture: MethodFixture) -> str:
    """An image's features do not depend on the other images of its batch."""
    vit = fixture.perturbed().model.vit
    with torch.no_grad():
        gap = relative(vit(fixture.images[:1]), vit(fixture.images)[:1])
    require(gap < FLOAT32, f"An image's features must not depend on its batch; relative difference {gap:.1e}.")
    return f"Relative difference {gap:.0e}, alone and in a batch."


def it_works_under_bf16(fixture: MethodFixture) -> str:
    """Under bfloat16 autocast gradients are finite and the features close to those in float32."""
    carried = fixture.perturbed()
    expected = carried.model.vit(fixture.images).detach()
    with torch.autocast("cpu", torch.bfloat16):
        gap = relative(carried.model.vit(fixture.images).detach(), expected)
        loss = carried.loss(fixture.images, fixture.labels)
    loss.backward()
    require(gap < BFLOAT16, f"Under bfloat16, features must be close to float32's; relative difference {gap:.2f}.")
    grads = {name: p.grad for name, p in carried.trainable().items() if p.grad is not None}
    strange = [name for name, grad in grads.items() if not grad.isfinite().all()]
    require(not strange, f"Under bfloat16, the gradient of {listed(strange)} must be finite.")
    return f"Relative difference {gap:.3f}."


def it_compiles(fixture: MethodFixture) -> str:
    """With torch.compile (backend aot_eager), features and gradients are those of the eager network."""
    if not fixture.method.compiles:
        raise Skipped("The method declares compiles = False.")
    carried = fixture.perturbed()
    step = partial(_step, carried, fixture)
    features, grads = step(carried.model.vit)
    torch.compiler.reset()
    compiled, theirs = step(torch.compile(carried.model.vit, backend="aot_eager"))
    gap = max([relative(compiled, features), *(relative(theirs[n], g) for n, g in grads.items() if g.norm() > FLOAT32)])
    require(
        gap < 10 * FLOAT32, f"Compiled, features and gradients must be the eager ones; relative difference {gap:.1e}."
    )
    return f"Relative difference {gap:.0e}."


def _step(carried: Carried, fixture: MethodFixture, vit: object) -> tuple[Tensor, dict[str, Tensor]]:
    features: Tensor = vit(fixture.images)  # type: ignore[operator]
    carried.model.zero_grad()
    carried.model.head(features).square().sum().backward()  # through the head, as a linear probe trains nothing else
    grads = {name: p.grad.clone() for name, p in carried.trainable().items() if p.grad is not None}
    return features.detach(), grads
