"""Rules about training: what moves, what may not, and that the same seed gives the same bits."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from peftbench.data.batches import Features
from peftbench.testing.findings import Skipped, demand
from peftbench.testing.fixture import Carried, Scene, Trained, differing, listed, relative
from peftbench.training.loop import forward

HALF = 0.5  # share of a tensor's values that may go without a gradient, as a skew-symmetric matrix's diagonal does
CLOSE = 1e-4  # float32, different order of sums
NEAR = 0.1  # bfloat16 has 8 bits; a network of two blocks loses two or three of them


def it_starts_as_the_pretrained_network(scene: Scene) -> str:
    """Step 0 computes what the pretrained network computes."""
    if not scene.method.identity:
        raise Skipped("It does not promise that (identity = False).")
    gap = relative(scene.carried().model.vit(scene.images), scene.pretrained)
    demand(gap < CLOSE, f"Before the first step the features are off by {gap:.1e} of their length.")
    return f"Off by {gap:.0e}."


def frozen_tensors_stay(scene: Scene) -> str:
    """No bit of a tensor that is not trained changes, with SGD, AdamW, momentum and weight decay."""
    for optimizer in ("sgd", "adamw"):
        run = scene.trained(optimizer)
        moved = [name for name, tensor in run.carried.frozen().items() if _moved(scene, run, name, tensor)]
        demand(not moved, f"Under {optimizer}, {listed(moved or [''])} changed though it is frozen.")
    return f"{len(scene.trained('sgd').before)} tensors, bit for bit."


def _moved(scene: Scene, run: Trained, name: str, tensor: Tensor) -> bool:
    """Whether a tensor changed at any place that was not chosen."""
    if name not in run.before:
        return False  # made by a forward pass
    now, was = tensor.detach().flatten().clone(), run.before[name].flatten()
    if name in scene.plan.entries:
        chosen = scene.plan.entries[name]
        now[chosen] = was[chosen]
    return not torch.equal(now, was)


def every_value_learns(scene: Scene) -> str:
    """Each trained tensor gets a gradient; key biases, which softmax ignores, and `idle` tensors are let off."""
    still: dict[str, Tensor] = {}  # which values got none
    for times in (1, -1):  # a ReLU that the noise puts to sleep is awake under its opposite
        carried = scene.stirred(times)
        carried.loss(scene.images, scene.labels).backward()
        for name, parameter in carried.trainable().items():
            if not _let_off(scene, carried, parameter):
                still[name] = still.get(name, torch.tensor(True)) & _without_gradient(parameter)  # noqa: FBT003 - a value
    dead = {name: float(values.double().mean()) for name, values in still.items()}
    silent = [name for name, share in dead.items() if share > HALF]
    demand(
        not silent, f"{listed(silent or [''])} gets no gradient in {max(dead.values(), default=0):.0%} of its values."
    )
    return f"{len(dead)} tensors; at most {max(dead.values(), default=0):.0%} of a tensor's values go without."


def _without_gradient(parameter: Tensor) -> Tensor:
    return torch.ones_like(parameter, dtype=torch.bool) if parameter.grad is None else parameter.grad == 0


def _let_off(scene: Scene, carried: Carried, parameter: Tensor) -> bool:
    names = [name for name, tensor in carried.tuned.tensors.items() if tensor is parameter]
    return any(name.endswith(("qkv.bias", *scene.method.idle)) for name in names)


def the_same_seed_gives_the_same_bits(scene: Scene) -> str:
    """Planned, carried out and trained again: nothing differs."""
    again = scene.train(scene.carried(scene.planned(scene.model(), disturbance=5)), "sgd")
    changed = differing(scene.trained("sgd").state, again.state)
    demand(not changed, f"A second run with the same seed ends with another {listed(changed or [''])}.")
    return f"{len(again.state)} tensors, bit for bit."


def a_resumed_run_ends_with_the_same_bits(scene: Scene) -> str:
    """Stopped half-way and gone on from the file, as after a power cut."""
    whole = scene.trained("adamw")
    torch.manual_seed(99)
    resumed = scene.train(scene.carried(), "adamw", whole.halfway.read())
    changed = differing(whole.state, resumed.state)
    demand(not changed, f"Gone on from a checkpoint, it ends with another {listed(changed or [''])}.")
    return f"{len(whole.state)} tensors, bit for bit."


def evaluation_draws_nothing(scene: Scene) -> str:
    """In evaluation mode the same images give the same bits, with and without gradients; dropout is for training."""
    vit = scene.stirred().model.vit
    torch.manual_seed(1)
    one = vit(scene.images).detach()
    torch.manual_seed(2)
    demand(torch.equal(one, vit(scene.images)), "In evaluation mode, the same images give other features each time.")
    demand(torch.equal(one, forward(vit, Features(scene.images))), "Without gradients, the features are others.")
    return "Two passes agree bit for bit."


def images_stay_apart(scene: Scene) -> str:
    """An image's features do not depend on the other images of its batch."""
    vit = scene.stirred().model.vit
    with torch.no_grad():
        gap = relative(vit(scene.images[:1]), vit(scene.images)[:1])
    demand(gap < CLOSE, f"Alone, an image's features are off by {gap:.1e} of their length from those within a batch.")
    return f"Alone or in a batch, off by {gap:.0e}."


def it_works_under_bf16(scene: Scene) -> str:
    """Under bfloat16 autocast a step is finite and the features are near those of float32."""
    carried = scene.stirred()
    wanted = carried.model.vit(scene.images).detach()
    with torch.autocast("cpu", torch.bfloat16):
        gap = relative(carried.model.vit(scene.images).detach(), wanted)
        loss = carried.loss(scene.images, scene.labels)
    loss.backward()
    demand(gap < NEAR, f"Under bfloat16 the features are off by {gap:.2f} of their length.")
    grads = {name: p.grad for name, p in carried.trainable().items() if p.grad is not None}
    strange = [name for name, grad in grads.items() if not grad.isfinite().all()]
    demand(not strange, f"Under bfloat16 the gradient of {listed(strange or [''])} is not finite.")
    return f"Off by {gap:.3f}."


def it_compiles(scene: Scene) -> str:
    """torch.compile (backend aot_eager) gives the features and gradients of the eager network."""
    if not scene.method.compiles:
        raise Skipped("It says that it does not (compiles = False).")
    carried = scene.stirred()
    step = partial(_step, carried, scene)
    features, grads = step(carried.model.vit)
    torch.compiler.reset()
    compiled, theirs = step(torch.compile(carried.model.vit, backend="aot_eager"))
    gap = max([relative(compiled, features), *(relative(theirs[n], g) for n, g in grads.items() if g.norm() > CLOSE)])
    demand(gap < 10 * CLOSE, f"Compiled, features or gradients are off by {gap:.1e} of their length.")
    return f"Off by {gap:.0e}."


def _step(carried: Carried, scene: Scene, vit: object) -> tuple[Tensor, dict[str, Tensor]]:
    features: Tensor = vit(scene.images)  # type: ignore[operator]
    carried.model.zero_grad()
    carried.model.head(features).square().sum().backward()  # through the head: a linear probe trains nothing below it
    grads = {name: p.grad.clone() for name, p in carried.trainable().items() if p.grad is not None}
    return features.detach(), grads
