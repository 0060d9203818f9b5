"""Rules about the result of training: the saved delta, the merged network, the restored one."""

from __future__ import annotations

import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import nn

from peftbench.models import delta, sparse
from peftbench.testing.findings import Skipped, listed, require
from peftbench.testing.fixture import MethodFixture, relative
from peftbench.testing.method_plan import structure, tensor_hooks

BASE = "0" * 64  # the digest of the base weights
FLOAT64 = 1e-6  # relative tolerance; some tuners compute inner constants in float32


def a_delta_restores_it(fixture: MethodFixture) -> str:
    """Its delta, saved after training and restored on a new network, gives the same logits, bit for bit."""
    run = fixture.trained("adamw")
    expected = run.carried.model.eval()(fixture.images)
    about = {"base": BASE, "method": {"name": "linear", "version": 1, "fields": {}}}  # any name that is installed
    fresh = fixture.model()
    with TemporaryDirectory() as folder:
        size = delta.write(Path(folder), fixture.plan, run.state, about)
        torch.manual_seed(77)
        _, head = delta.restore(fresh.vit, Path(folder), BASE)
    fresh.head.load_state_dict(head)
    gap = relative(fresh.eval()(fixture.images), expected)
    require(
        torch.equal(fresh(fixture.images), expected),
        f"Restored from its delta, logits must be equal; relative difference {gap:.1e}.",
    )
    plan = fixture.plan
    sizes = [dict(sizes) for _, sizes in (*plan.grafts.values(), *plan.shared.values())]
    require(
        json.loads(json.dumps(sizes)) == sizes,
        "The sizes of its adapters must be equal after a round trip through JSON.",
    )
    return f"{size:,} bytes, bit for bit."


def merged_computes_the_same(fixture: MethodFixture) -> str:
    """In float64, the merged network computes the same features as the one with adapters."""
    carried, images = fixture.perturbed(), fixture.images.double()
    vit = carried.model.double().vit
    with torch.no_grad():
        expected = vit(images)
        plain = carried.tuned.merge()
        gap = relative(vit(images), expected)
    if not fixture.method.merges:
        require(not plain or fixture.plan.empty, "The method declares merges = False, but all of it can be merged.")
        raise Skipped("The method declares merges = False.")
    if not plain and _without_bias(fixture):
        raise Skipped("Layers of this network have no bias, which folding a shift into them needs.")
    require(plain, "The method declares merges = True, but merged() of an adapter returns None.")
    require(gap < FLOAT64, f"Merged, features must be the same; relative difference {gap:.1e}.")
    return f"Relative difference {gap:.0e}."


def the_network_is_restored(fixture: MethodFixture) -> str:
    """Once merged, or its adapters removed, the network has the pretrained modules, without added hooks."""
    expected = _outline(fixture.model().vit)
    merges = fixture.method.merges and not _without_bias(fixture)
    ways = {"adapters removed": _without_adapters} | ({"adapters merged": _merged} if merges else {})
    for words, way in ways.items():
        found = _outline(way(fixture))
        places = sorted(name for name in expected | found if expected.get(name) != found.get(name))
        require(not places, f"With {words}, the network must be as before; {listed(places)} differs.")
    return "Types, hooks, attributes and shapes are the pretrained network's."


def _without_bias(fixture: MethodFixture) -> bool:
    """Return whether an adapter wraps a linear layer without bias."""
    wrapped = [fixture.model().vit.get_submodule(site) for site in fixture.plan.grafts]
    return any(isinstance(layer, nn.Linear) and layer.bias is None for layer in wrapped)


def _merged(fixture: MethodFixture) -> nn.Module:
    carried = fixture.carried()
    carried.loss(fixture.images, fixture.labels).backward()
    carried.tuned.merge()
    return carried.model.vit


def _without_adapters(fixture: MethodFixture) -> nn.Module:
    """Put the original modules back in place of the adapters, outer ones first."""
    model, plan = fixture.model(), fixture.plan
    originals = {site: model.vit.get_submodule(site) for site in sorted(plan.grafts, key=lambda name: name.count("."))}
    carried = fixture.carry_out(model)
    carried.loss(fixture.images, fixture.labels).backward()
    sparse.unpack(model.vit)
    for site, module in originals.items():
        model.vit.set_submodule(site, module)
    return model.vit


def _outline(vit: nn.Module) -> dict[str, tuple[Any, ...]]:
    marks = {name or "the network": structure(module) for name, module in vit.named_modules()}
    return marks | {name: (tuple(p.shape), tensor_hooks(p)) for name, p in vit.named_parameters()}
