"""Memory by kind and floating-point operations, against what they must be by formula."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from peftbench.core.recipe import Recipe
from peftbench.core.record import Memory
from peftbench.core.registry import registry
from peftbench.models.head import Classifier, Head
from peftbench.models.method import NoProbe
from peftbench.models.plan import Plan
from peftbench.models.sparse import SparseLinear
from peftbench.models.sparse_product import WAYS, Way
from peftbench.profiling import counting
from peftbench.profiling.counting import Alone
from peftbench.training.optimizer import make_optimizer, optimizer_tensors
from tests.networks import CLASSES, batch, classifier, values

IMAGES = (8, 3, 32, 32)  # of the tiny network: 17 tokens of width 32, 2 blocks of 2 heads
TOKENS, WIDTH, PATCH, BLOCKS = 17, 32, 3 * 8 * 8, 2
SGD = Recipe(optimizer="sgd", batch=8)


def tuned(method: str, **fields: object) -> Classifier:
    model = classifier(dtype=torch.float32)
    registry("methods").get(method)(**fields).plan(model.vit, NoProbe()).carry_out(model.vit)
    return model


def everything(model: Classifier) -> Classifier:
    Plan(tune=frozenset(name for name, _ in model.vit.named_parameters())).carry_out(model.vit)
    return model


# --- bytes -----------------------------------------------------------------------------------------------------------


def test_weights_are_four_bytes_each() -> None:
    block = (
        4 * WIDTH + (WIDTH + 1) * 3 * WIDTH + (WIDTH + 1) * WIDTH + (WIDTH + 1) * 4 * WIDTH + (4 * WIDTH + 1) * WIDTH
    )
    backbone = BLOCKS * block + (PATCH + 1) * WIDTH + WIDTH + TOKENS * WIDTH + 2 * WIDTH
    found = counting.count(tuned("linear"), IMAGES, SGD).memory
    assert found.weights == 4 * (backbone + (WIDTH + 1) * CLASSES)


@pytest.mark.parametrize("shared", [True, False])
def test_a_tensor_that_has_two_names_is_counted_once(shared: bool) -> None:  # noqa: FBT001
    one = torch.zeros(10)
    assert counting.storage_bytes([one, one[:5] if shared else one.clone()]) == (40 if shared else 80)


def test_gradients_and_moments_are_those_of_what_trains() -> None:
    r = 4
    trained = 4 * (BLOCKS * r * (WIDTH + 3 * WIDTH) + (WIDTH + 1) * CLASSES)  # bytes of LoRA on qkv, and of the head
    for recipe, moments in (
        (Recipe(), 2 * trained + 4 * (2 * BLOCKS + 2)),
        (SGD, trained),
        (replace(SGD, momentum=0.0), 0),
    ):
        found = counting.count(tuned("lora", r=r), IMAGES, recipe).memory
        assert (found.gradients, found.optimizer) == (trained, moments)


@pytest.mark.parametrize("recipe", [Recipe(), SGD, replace(SGD, momentum=0.0)])
@pytest.mark.parametrize("method", ["lora", "bitfit", "full"])
def test_the_optimizer_holds_what_was_counted(method: str, recipe: Recipe) -> None:
    model = tuned(method)
    optimizer = make_optimizer(model, recipe)
    F.cross_entropy(model(batch(dtype=torch.float32)[0]), batch()[1]).backward()
    optimizer.step()
    held = sum(tensor.nbytes for tensor in optimizer_tensors(optimizer).values())
    assert counting.count(model, IMAGES, recipe).memory.optimizer == held


def test_a_linear_layer_keeps_its_input_if_its_weight_trains() -> None:
    first, second = nn.Linear(5, 7), nn.Linear(7, 3)
    model = nn.Sequential(first, nn.Identity(), second)
    assert counting.passes(model, (4, 5)).activations == 4 * 4 * 7  # the input of all is no activation
    nn.Module.requires_grad_(second, requires_grad=False)
    second.bias.requires_grad_()
    assert counting.passes(model, (4, 5)).activations == 0


def test_what_two_layers_keep_of_one_tensor_counts_once() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.left, self.right = nn.Linear(5, 7), nn.Linear(7, 3), nn.Linear(7, 3)

        def forward(self, x: Tensor) -> Tensor:
            hidden = self.first(x)
            out: Tensor = self.left(hidden) + self.right(hidden)
            return out

    assert counting.passes(Twice(), (4, 5)).activations == 4 * 4 * 7


def test_activations_are_those_of_a_real_pass() -> None:
    model = everything(classifier(dtype=torch.float32))
    found = counting.passes(model, IMAGES)
    assert found == counting._pass_on_copies(model.train(), IMAGES, "cpu", None)
    assert found == counting._on_random_images(model, IMAGES, "cpu", None)


@pytest.mark.parametrize("way", WAYS)
def test_single_weights_cost_what_their_product_does(way: Way) -> None:
    layer = nn.Linear(64, 64)
    single = SparseLinear(layer, torch.tensor([3, 4, 70, 71, 72, 900]))  # in three rows and five columns
    single.pattern.settle(way)
    nn.Module.requires_grad_(layer, requires_grad=False)
    found = counting.passes(single, (8, 64))
    products = {"dense": 64 * 64, "rows": 3 * 64, "columns": 64 * 5, "block": 3 * 5, "sampled": 6}[way]
    assert found.both - found.forward == 2 * products
    assert found.activations == 4 * 8 * (5 if way in {"columns", "block", "sampled"} else 0)  # the input is not counted
    assert found == counting._pass_on_copies(single, (8, 64), "cpu", None)


def test_a_network_without_values_is_counted_like_one_with() -> None:
    model = tuned("lora")
    assert counting.count(model.to("meta"), IMAGES, SGD) == counting.count(tuned("lora"), IMAGES, SGD)


def test_half_precision_keeps_less() -> None:
    model = everything(classifier(dtype=torch.float32))
    full, half = (counting.passes(model, (64, *IMAGES[1:]), "cpu", dtype) for dtype in (None, torch.bfloat16))
    assert half.activations < 0.75 * full.activations
    assert half.both == full.both


def test_a_head_alone_pays_for_its_features_only() -> None:
    model = classifier(dtype=torch.float32)
    Plan().carry_out(model.vit)
    found = counting.count(model, IMAGES, SGD, alone=Alone(model.head, (8, WIDTH)), pixels=9)
    through = counting.count(model, IMAGES, SGD)
    assert found.training == 2 * 2 * WIDTH * CLASSES  # forward, and the weight's gradient
    assert (found.forward, found.memory.weights, found.memory.pixels) == (through.forward, through.memory.weights, 9)
    assert through.memory.activations == 4 * 8 * TOKENS * WIDTH  # whose class tokens are the head's input
    assert found.memory.activations == 0


def test_a_batch_is_its_floats_and_the_bytes_it_was_made_from() -> None:
    assert counting.batch_bytes((2, 3, 4, 4)) == 2 * 3 * 4 * 4 * 5
    assert counting.batch_bytes((2, 6)) == 2 * 6 * 4


def test_of_a_mapped_file_what_was_read_lies_in_memory(tmp_path: Path) -> None:
    np.save(tmp_path / "pixels.npy", np.ones((64, 2**16), np.uint8))
    pixels = np.load(tmp_path / "pixels.npy", mmap_mode="r")
    assert int(pixels.sum()) == 64 * 2**16
    again = np.load(tmp_path / "pixels.npy", mmap_mode="r")  # shares the pages of the first
    assert int(again.sum()) == int(pixels.sum())
    assert 64 * 2**16 <= counting.mapped_bytes(tmp_path / "pixels.npy") <= 65 * 2**16


# --- floating-point operations ---------------------------------------------------------------------------------------


def test_a_linear_layer_costs_two_operations_a_multiply_add() -> None:
    model = nn.Sequential(nn.Linear(5, 7), nn.Linear(7, 3))
    found = counting.passes(model, (4, 5))
    assert found.forward == 2 * (5 * 7 + 7 * 3)
    assert (
        found.both == found.forward + 2 * (5 * 7 + 7 * 3) + 2 * 7 * 3
    )  # weight gradients, and the input's of the last


def linear_products(tokens: int) -> int:
    """Multiply-adds of the tiny network's Linear layers, patches and head."""
    return BLOCKS * tokens * 12 * WIDTH**2 + 16 * PATCH * WIDTH + WIDTH * CLASSES


def attention(tokens: int) -> int:
    return BLOCKS * 2 * tokens**2 * WIDTH


@pytest.mark.parametrize("autocast", [None, torch.bfloat16])
def test_fused_attention_is_counted(autocast: torch.dtype | None) -> None:
    found = counting.passes(tuned("linear"), IMAGES, "cpu", autocast)
    assert found.forward == 2 * (linear_products(TOKENS) + attention(TOKENS))


def test_the_backward_pass_of_full_tuning_costs_two_forward_ones_and_attention_again() -> None:
    found = counting.passes(everything(classifier(dtype=torch.float32)), IMAGES)
    first = 2 * 16 * PATCH * WIDTH  # no gradient of the pixels
    again = 2 * attention(TOKENS) // 2  # the fused backward computes the weights of attention a second time
    assert found.both == 3 * found.forward - first + again


def test_prompts_raise_the_cost_by_their_tokens() -> None:
    tokens = 5
    found = counting.passes(tuned("vpt_deep", tokens=tokens), IMAGES)
    assert found.forward == 2 * (linear_products(TOKENS + tokens) + attention(TOKENS + tokens))


def test_backward_stops_below_what_trains() -> None:
    model = classifier(dtype=torch.float32)
    Plan(tune=frozenset({"norm.weight"})).carry_out(model.vit)
    found = counting.passes(model, IMAGES)
    assert found.both - found.forward == 2 * 2 * WIDTH * CLASSES


# --- nothing is changed ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["fake tensors", "real images"])
def test_counting_changes_neither_network_nor_random_state(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if way == "real images":
        monkeypatch.setattr(counting, "_on_fake_tensors", None)
    model = everything(classifier(dtype=torch.float32, kind="batchnorm")).eval()
    vars(model.vit.get_submodule("blocks.0.mlp.drop1"))["p"] = 0.5
    before, random = values(model), torch.random.get_rng_state()
    assert counting.passes(model, IMAGES).forward > 0
    assert not model.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in values(model).items())
    assert torch.equal(torch.random.get_rng_state(), random)
    assert all(p.grad is None for p in model.parameters())


def test_a_network_that_depends_on_values_is_counted_on_real_images() -> None:
    class Looks(nn.Linear):
        def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - nn.Linear's own name
            return super().forward(input) if input.sum().item() < 1e9 else input

    assert counting.passes(Looks(5, 7), (4, 5)).forward == 2 * 5 * 7
    with pytest.raises(RuntimeError):
        counting.passes(Looks(5, 7).to("meta"), (4, 5))


def test_the_parts_add_up() -> None:
    assert Memory(weights=1, gradients=20, optimizer=300, activations=4000, pixels=50_000).total == 54_321


def test_the_head_is_counted_in_its_own_network() -> None:
    assert counting.passes(Head(4, 3, "l2", 1.0, 0), (2, 4)).forward == 2 * 4 * 3
