"""Training single weights against the plain way: dense gradients, and all other entries put back after each step."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from peftbench.core.recipe import Recipe
from peftbench.models.plan import Plan
from peftbench.models.sparse import Packed, SparseLinear, SparsePatches, decays, pack, unpack
from peftbench.training.optimizer import make_optimizer
from tests.networks import STYLES, batch, classifier, network, values

SGD = Recipe("sgd", optimizer="sgd", lr=1e-2, momentum=0.9, weight_decay=0.1)
ADAMW = Recipe("adamw", optimizer="adamw", lr=1e-3, weight_decay=0.1)
STEPS = 50


def spread(size: int, share: float, seed: int = 0) -> Tensor:
    """Places drawn at random, ascending."""
    draw = torch.Generator().manual_seed(seed)
    return torch.randperm(size, generator=draw)[: max(1, round(share * size))].sort().values


CORNER = torch.tensor([3 * 32 + 1, 3 * 32 + 9, 40 * 32 + 9])  # 2 rows x 2 columns of a (96, 32) matrix
ENTRIES = {
    "blocks.0.attn.qkv.weight": CORNER,
    "blocks.1.attn.qkv.weight": spread(96 * 32, 0.3),
    "blocks.0.mlp.fc2.weight": spread(32 * 128, 0.01),
    "blocks.0.attn.proj.bias": spread(32, 0.2),
    "blocks.1.mlp.fc1.bias": spread(128, 0.2),
    "blocks.0.mlp.fc2.bias": spread(32, 0.2),  # beside chosen entries of the weight
    "blocks.1.norm1.weight": spread(32, 0.5),
    "norm.bias": spread(32, 0.1),
    "cls_token": spread(32, 0.3),
    "pos_embed": spread(17 * 32, 0.05),
    "patch_embed.proj.weight": spread(32 * 192, 0.02),
}
K = sum(len(index) for index in ENTRIES.values())


def places(model: nn.Module) -> dict[str, Tensor]:
    """The chosen entries that this style of network has, by the names of the whole model."""
    names = {name for name, _ in model.named_parameters()}
    return {f"vit.{name}": index for name, index in ENTRIES.items() if f"vit.{name}" in names}


def losses(model: nn.Module, optimizer: torch.optim.Optimizer, after: Any = None) -> list[float]:
    dtype, found = next(model.parameters()).dtype, []
    for step in range(STEPS):
        x, y = batch(dtype=dtype, seed=step % 4)
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        found.append(loss.item())
        if after:
            after()
    return found


def train_sparsely(model: nn.Module, recipe: Recipe) -> tuple[dict[str, Tensor], list[float], torch.optim.Optimizer]:
    tuned = Plan(entries={n.removeprefix("vit."): i for n, i in places(model).items()}).carry_out(
        model.get_submodule("vit")
    )
    optimizer = make_optimizer(model, recipe)
    found = losses(model, optimizer)
    tuned.merge()
    return values(model), found, optimizer


def train_densely(model: nn.Module, recipe: Recipe) -> tuple[dict[str, Tensor], list[float]]:
    """Every tensor that holds a chosen entry trains whole; after each step the other entries are put back."""
    index, named = places(model), dict(model.named_parameters())
    for name, parameter in named.items():
        parameter.requires_grad_(name in index or name.startswith("head."))
    before = {name: parameter.detach().clone() for name, parameter in named.items()}
    masks = {
        n: torch.zeros(named[n].numel(), dtype=torch.bool).index_fill(0, i, 1).view_as(named[n])
        for n, i in index.items()
    }

    def put_back() -> None:
        with torch.no_grad():
            for name, mask in masks.items():
                named[name].copy_(torch.where(mask, named[name], before[name]))

    found = losses(model, make_optimizer(model, recipe), put_back)
    return values(model), found


EXACT, SINGLE = (torch.float64, 1e-12), (torch.float32, 1e-6)


@pytest.mark.parametrize("recipe", [SGD, ADAMW], ids=lambda recipe: recipe.name)
@pytest.mark.parametrize(("style", "precision"), [*((style, EXACT) for style in STYLES), ("plain", SINGLE)])
def test_it_equals_masked_dense_training(style: str, recipe: Recipe, precision: tuple[torch.dtype, float]) -> None:
    dtype, near = precision
    before = values(classifier(style, dtype))
    sparsely, our_losses, _ = train_sparsely(classifier(style, dtype), recipe)
    densely, their_losses = train_densely(classifier(style, dtype), recipe)
    assert sparsely.keys() == densely.keys()
    for name, tensor in densely.items():
        torch.testing.assert_close(sparsely[name], tensor, rtol=near, atol=near, msg=partial("{}: {}".format, name))
    assert our_losses == pytest.approx(their_losses, rel=10 * near)
    assert min((sparsely[n] - t).abs().max() for n, t in before.items() if n in places(classifier(style))) > 1e-3


def test_weight_decay_touches_no_entry_that_was_not_chosen() -> None:
    model = classifier()
    before, index = values(model), places(model)
    after, _, _ = train_sparsely(model, replace(SGD, weight_decay=0.5))
    for name in before.keys() - {"head.linear.weight", "head.linear.bias"}:
        same = before[name].flatten() == after[name].flatten()
        chosen = (
            torch.zeros_like(same).index_fill(0, index[name], value=True) if name in index else torch.zeros_like(same)
        )
        assert bool(same[~chosen].all()), name


def test_the_optimizer_holds_state_for_the_chosen_entries_only() -> None:
    _, _, optimizer = train_sparsely(classifier(), ADAMW)
    held = [state["exp_avg"].numel() for state in optimizer.state.values()]
    assert sum(held) == K + 3 * 33  # and the head


def test_gradients_are_as_large_as_what_learns() -> None:
    model = classifier()
    Plan(entries=ENTRIES).carry_out(model.vit)
    x, y = batch()
    F.cross_entropy(model(x), y).backward()
    assert sum(p.grad.numel() for p in model.vit.parameters() if p.grad is not None) == K


def test_matrices_decay_and_vectors_do_not() -> None:
    vit = network()
    of = {name: decays(name.rpartition(".")[2], p) for name, p in vit.named_parameters()}
    assert of["patch_embed.proj.weight"]
    assert of["blocks.0.mlp.fc1.weight"]
    assert not any(of[n] for n in ("cls_token", "pos_embed", "norm.weight", "norm.bias", "blocks.0.attn.qkv.bias"))


def test_packing_does_not_change_which_values_decay() -> None:
    model = classifier()
    Plan(entries=ENTRIES).carry_out(model.vit)
    decaying, free = (group["params"] for group in make_optimizer(model, ADAMW).param_groups)
    matrices = [n for n in ENTRIES if n.endswith("weight") and "norm" not in n]
    assert sum(p.numel() for p in decaying) == sum(len(ENTRIES[n]) for n in matrices) + 3 * 32
    assert sum(p.numel() for p in free) == K + 3 * 33 - sum(p.numel() for p in decaying)


# --- layers ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0.002, 0.3], ids=["block", "dense"])
def test_bf16_autocast_is_close_to_dense_bf16(share: float) -> None:
    torch.manual_seed(0)
    dense = nn.Linear(64, 48)
    index = spread(64 * 48, share)
    sparse = SparseLinear(dense, index)
    x = torch.randn(5, 7, 64)
    grads: list[Tensor] = []
    for layer, learns in ((dense, dense.weight), (sparse, sparse.values)):
        learns.grad = None
        with torch.autocast("cpu", torch.bfloat16):
            out = layer(x)
        assert out.dtype == torch.bfloat16
        out.float().square().sum().backward()
        assert learns.grad is not None
        grads.append(learns.grad.flatten())
    assert grads[1].dtype == torch.float32
    assert bool(grads[1].isfinite().all())
    torch.testing.assert_close(grads[1], grads[0][index], rtol=2e-2, atol=2e-2 * grads[0].abs().max().item())


@pytest.mark.parametrize("style", STYLES)
def test_a_whole_network_trains_under_bf16_autocast(style: str) -> None:
    model = classifier(style, torch.float32)
    Plan(entries={n.removeprefix("vit."): i for n, i in places(model).items()}).carry_out(model.vit)
    optimizer = make_optimizer(model, SGD)
    x, y = batch(dtype=torch.float32)
    found = []
    for _ in range(5):
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(x)
        loss = F.cross_entropy(logits, y)
        loss.backward()
        optimizer.step()
        found.append(loss.item())
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in model.parameters() if p.requires_grad)
    assert found[-1] < found[0]


# --- packing ---------------------------------------------------------------------------------------------------------


def test_packing_alone_changes_no_output() -> None:
    vit, x = network(), batch()[0]
    before = vit(x)
    Plan(entries=ENTRIES).carry_out(vit)
    assert torch.equal(vit(x), before)


def test_values_count_at_the_next_forward() -> None:
    layer = SparseLinear(nn.Linear(4, 3), torch.tensor([5]))
    with torch.no_grad():
        layer.values.fill_(7.0)
    layer(torch.zeros(1, 4))
    assert layer.weight[1, 1] == 7


@pytest.mark.parametrize("style", STYLES)
def test_unpacking_gives_the_plain_network_of_timm(style: str) -> None:
    vit, fresh, x = network(style), network(style), batch()[0]
    entries = {n: i for n, i in ENTRIES.items() if n in dict(vit.named_parameters())}
    tuned = Plan(entries=entries).carry_out(vit)
    with torch.no_grad():
        for tensor in tuned.tensors.values():
            tensor.add_(1.0)
    packed = vit(x)
    unpack(vit)
    assert [(n, type(m)) for n, m in vit.named_modules()] == [(n, type(m)) for n, m in fresh.named_modules()]
    fresh.load_state_dict(vit.state_dict(), strict=True)
    torch.testing.assert_close(fresh(x), packed, rtol=0, atol=0)
    assert_moved(network(style).state_dict(), fresh.state_dict(), entries)


def assert_moved(before: Mapping[str, Tensor], after: Mapping[str, Tensor], entries: Mapping[str, Tensor]) -> None:
    """Exactly the entries, by one."""
    for name, tensor in before.items():
        moved = (after[name] - tensor).flatten().nonzero().flatten()
        assert moved.tolist() == entries.get(name, torch.tensor([])).tolist(), name


def test_a_linear_weight_and_its_bias_pack_together() -> None:
    root = nn.Sequential(nn.Linear(4, 3))
    pack(root, {"0.weight": torch.tensor([0, 11]), "0.bias": torch.tensor([2])})
    root(torch.ones(2, 4)).sum().backward()
    grads = {name: p.grad.tolist() for name, p in root.named_parameters() if p.grad is not None}
    assert grads == {"packed_decaying.values": [2.0, 2.0], "packed_free.values": [2.0]}


def test_all_values_of_a_network_are_one_parameter_where_decay_does_not_part_them() -> None:
    vit = network()
    Plan(entries=ENTRIES, decay_entries=False).carry_out(vit)
    assert [p.numel() for p in vit.parameters() if p.requires_grad] == [K]


def test_values_set_between_passes_count_at_once_and_in_the_next_pass() -> None:
    vit, x = network(), batch()[0]
    tuned = Plan(entries=ENTRIES).carry_out(vit)
    vit(x)
    with torch.no_grad():
        tuned.tensors["values/norm.bias"].fill_(7.0)
        tuned.tensors["values/blocks.0.attn.qkv.weight"].fill_(8.0)
    bias: Tensor = vit.get_submodule("norm").bias  # type: ignore[assignment]  # a tensor
    assert bool((bias[ENTRIES["norm.bias"]] == 7).all())
    vit(x)
    assert bool((vit.get_parameter("blocks.0.attn.qkv.weight").flatten()[CORNER] == 8).all())


def test_a_copy_of_a_network_has_values_of_its_own() -> None:
    vit, x = network(), batch()[0]
    Plan(entries=ENTRIES).carry_out(vit)
    copy, before = deepcopy(vit), vit(x)
    with torch.no_grad():
        for name, parameter in copy.named_parameters():
            if "packed" in name:
                parameter.add_(1.0)
    assert torch.equal(vit(x), before)
    assert not torch.equal(copy(x), before)


def test_packed_keeps_the_shape() -> None:
    tensor = torch.arange(6.0).view(1, 2, 3)
    packed = Packed(tensor, torch.tensor([4]), decays=False)
    assert torch.equal(packed(tensor), tensor)


def test_a_kernel_of_patches_gets_its_own_layer_and_others_do_not() -> None:
    root = nn.Sequential(
        nn.Conv2d(3, 4, 2, stride=2), nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 2, stride=2, groups=2)
    )
    pack(root, {f"{number}.weight": torch.tensor([0, 5]) for number in range(3)})
    assert [isinstance(module, SparsePatches) for module in root[:3]] == [True, False, False]
    root(torch.ones(1, 3, 8, 8)).sum().backward()
    grad = root.get_parameter("packed_decaying.values").grad
    assert grad is not None
    assert grad.count_nonzero() == 6


def test_frozen_weights_take_half_the_bytes_and_compute_the_same() -> None:
    torch.manual_seed(0)
    layer, x = SparseLinear(nn.Linear(64, 48), spread(64 * 48, 0.1)), torch.randn(5, 64)
    with torch.autocast("cpu", torch.bfloat16):
        before = layer(x)
        layer.cast_frozen(torch.bfloat16)
        assert torch.equal(layer(x), before)
    assert layer.weight.dtype == torch.bfloat16
    assert layer.values.dtype == torch.float32
