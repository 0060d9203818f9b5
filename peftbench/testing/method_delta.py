"""Rules about what is left of a training: the saved delta, the merged network, the bare one."""

from __future__ import annotations

import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import nn

from peftbench.models import delta, sparse
from peftbench.testing.findings import Skipped, demand
from peftbench.testing.fixture import Scene, listed, relative
from peftbench.testing.method_plan import structure, tensor_hooks

BASE = "0" * 64  # the digest of the base weights
TIGHT = 1e-6  # float64; some tuners compute inner constants in float32


def a_delta_brings_it_back(scene: Scene) -> str:
    """Saved after training and restored on a fresh network, it computes the same bits."""
    run = scene.trained("adamw")
    wanted = run.carried.model.eval()(scene.images)
    about = {"base": BASE, "method": {"name": "linear", "version": 1, "fields": {}}}  # any name that is installed
    fresh = scene.model()
    with TemporaryDirectory() as folder:
        size = delta.write(Path(folder), scene.plan, run.state, about)
        torch.manual_seed(77)
        _, head = delta.restore(fresh.vit, Path(folder), BASE)
    fresh.head.load_state_dict(head)
    gap = relative(fresh.eval()(scene.images), wanted)
    demand(torch.equal(fresh(scene.images), wanted), f"Restored from its delta, the logits are off by {gap:.1e}.")
    plan = scene.plan
    sizes = [dict(sizes) for _, sizes in (*plan.grafts.values(), *plan.shared.values())]
    demand(json.loads(json.dumps(sizes)) == sizes, "The sizes of its grafts change when they are written as JSON.")
    return f"{size:,} bytes, bit for bit."


def merged_computes_the_same(scene: Scene) -> str:
    """In float64, the network with the change folded in computes what it computed with the grafts."""
    carried, images = scene.stirred(), scene.images.double()
    vit = carried.model.double().vit
    with torch.no_grad():
        wanted = vit(images)
        plain = carried.tuned.merge()
        gap = relative(vit(images), wanted)
    if not scene.method.merges:
        demand(not plain or scene.plan.empty, "It says merges = False, yet everything folds.")
        raise Skipped("It says that it cannot (merges = False).")
    demand(plain, "It promises to merge, but a graft has no plain form.")
    demand(gap < TIGHT, f"Merged, the features are off by {gap:.1e} of their length.")
    return f"Off by {gap:.0e}."


def nothing_is_left_behind(scene: Scene) -> str:
    """Once merged, or its grafts taken off, the network is made of the modules it was made of, without a hook."""
    wanted = _left(scene.model().vit)
    ways = {"its grafts taken off": _taken_off} | ({"all merged": _merged} if scene.method.merges else {})
    for words, way in ways.items():
        found = _left(way(scene))
        places = sorted(name for name in wanted | found if wanted.get(name) != found.get(name))
        demand(not places, f"With {words}, the network differs at {listed(places or [''])} from what it was.")
    return "Types, hooks, attributes and shapes are the pretrained network's."


def _merged(scene: Scene) -> nn.Module:
    carried = scene.carried()
    carried.loss(scene.images, scene.labels).backward()
    carried.tuned.merge()
    return carried.model.vit


def _taken_off(scene: Scene) -> nn.Module:
    """The modules that stood at the sites back in their places, outer ones first."""
    model, plan = scene.model(), scene.plan
    originals = {site: model.vit.get_submodule(site) for site in sorted(plan.grafts, key=lambda name: name.count("."))}
    carried = scene.carry_out(model)
    carried.loss(scene.images, scene.labels).backward()
    sparse.unpack(model.vit)
    for site, module in originals.items():
        model.vit.set_submodule(site, module)
    return model.vit


def _left(vit: nn.Module) -> dict[str, tuple[Any, ...]]:
    marks = {name or "the network": structure(module) for name, module in vit.named_modules()}
    return marks | {name: (tuple(p.shape), tensor_hooks(p)) for name, p in vit.named_parameters()}
