"""Gradients at the pretrained weights, against a plain loop."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from peftbench.errors import JobError, PluginError
from peftbench.models.gradient_probe import ESTIMATES, Batch, GradientProbe
from tests.networks import STYLES, batches, classifier, values


def plain_gradients(style: str = "plain", *, singly: bool = False) -> list[dict[str, Tensor]]:
    """Gradients of the mean loss of every batch (or of every image), by backward()."""
    model, found = classifier(style).eval(), []
    for x, y in batches():
        for images, labels in zip(x.split(1), y.split(1), strict=True) if singly else [(x, y)]:
            model.zero_grad()
            F.cross_entropy(model(images), labels).backward()
            found.append({n: p.grad.clone() for n, p in model.vit.named_parameters() if p.grad is not None})
    return found


def assert_near(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("style", STYLES)
def test_gradients_are_those_of_a_plain_loop(style: str) -> None:
    found = list(GradientProbe(classifier(style), batches, F.cross_entropy).gradients())
    expected = plain_gradients(style)
    assert len(found) == len(expected) == 4
    for own, theirs in zip(found, expected, strict=True):
        assert_near(own, theirs)


SUMS = {
    "squares": lambda g: g * g,
    "sums": lambda g: g,
    "absolutes": lambda g: g.abs(),
    "sample_squares": lambda g: g * g,
}


@pytest.mark.parametrize("kind", SUMS)
def test_estimates_sum_even_and_odd_batches_apart(kind: str) -> None:
    assert SUMS.keys() == ESTIMATES.keys()
    gradients = plain_gradients(singly=kind == "sample_squares")
    halves = GradientProbe(classifier(), batches, F.cross_entropy).estimate(kind)
    for half, chosen in zip(halves, (gradients[0::2], gradients[1::2]), strict=True):
        assert_near(half, {n: torch.stack([SUMS[kind](g[n]) for g in chosen]).sum(0) for n in gradients[0]})


def test_an_estimate_may_see_the_first_batches_only() -> None:
    gradients = plain_gradients()
    even, odd = GradientProbe(classifier(), batches, F.cross_entropy).estimate("sums", 2)
    assert_near(even, gradients[0])
    assert_near(odd, gradients[1])


def test_no_batch_is_read_before_a_gradient_is_needed() -> None:
    read = []

    def counted() -> Iterator[Batch]:
        for number, batch in enumerate(batches()):
            read.append(number)
            yield batch

    found = GradientProbe(classifier(), counted, F.cross_entropy).gradients()
    assert read == []
    next(found)
    assert read == [0]


@pytest.mark.parametrize("kind", ["plain", "batchnorm"])
def test_the_model_is_as_it_was(kind: str) -> None:
    model = classifier(kind=kind)
    model.vit.get_submodule("patch_embed").requires_grad_(requires_grad=False)
    model.train()
    model.vit.get_submodule("norm").eval()
    before = values(model), [m.training for m in model.modules()], [p.requires_grad for p in model.parameters()]
    generator = torch.get_rng_state()
    GradientProbe(model, batches, F.cross_entropy).estimate("squares")
    assert [m.training for m in model.modules()] == before[1]
    assert [p.requires_grad for p in model.parameters()] == before[2]
    assert all(torch.equal(before[0][name], tensor) for name, tensor in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    assert torch.equal(torch.get_rng_state(), generator)


def test_the_model_is_as_it_was_after_a_look_at_one_batch() -> None:
    model = classifier()
    model.requires_grad_(requires_grad=False)
    gradients = GradientProbe(model, batches, F.cross_entropy).gradients()
    next(gradients)
    gradients.close()  # type: ignore[attr-defined]
    assert not any(p.requires_grad for p in model.parameters())
    assert all(m.training for m in model.modules())


# --- kept on disk ----------------------------------------------------------------------------------------------------


class Counted:
    """Batches that count how often they were requested."""

    def __init__(self) -> None:
        self.passes = 0

    def __call__(self) -> Iterator[Batch]:
        self.passes += 1
        return batches()


def test_a_kept_estimate_is_read_back_without_the_model(tmp_path: Path) -> None:
    seen = Counted()
    made = GradientProbe(classifier(), seen, F.cross_entropy, keep=tmp_path / "p").estimate("squares")
    assert seen.passes == 1
    read = GradientProbe(classifier(), seen, F.cross_entropy, keep=tmp_path / "p").estimate("squares")
    assert seen.passes == 1
    for first, second in zip(made, read, strict=True):
        assert first.keys() == second.keys()
        assert all(torch.equal(first[name], second[name]) for name in first)


def test_estimates_are_kept_apart(tmp_path: Path) -> None:
    seen = Counted()
    probe = GradientProbe(classifier(), seen, F.cross_entropy, keep=tmp_path)
    asked: list[tuple[str, Any]] = [("squares", None), ("sums", None), ("sums", 2)]
    first = [probe.estimate(*ask)[0]["norm.bias"] for ask in asked]
    assert seen.passes == 3
    assert not torch.equal(first[0], first[1])
    assert not torch.equal(first[1], first[2])
    assert [f.name for f in tmp_path.iterdir() if not f.name.endswith(".safetensors")] == []


@pytest.mark.parametrize("damage", [b"", b"\x00" * 7, None])
def test_a_damaged_file_is_made_again(tmp_path: Path, damage: bytes | None) -> None:
    seen = Counted()
    probe = GradientProbe(classifier(), seen, F.cross_entropy, keep=tmp_path)
    good, _ = probe.estimate("sums")
    (file,) = tmp_path.iterdir()
    file.write_bytes(damage if damage is not None else file.read_bytes()[:-50])
    again, _ = probe.estimate("sums")
    assert seen.passes == 2
    assert all(torch.equal(good[name], again[name]) for name in good)
    probe.estimate("sums")
    assert seen.passes == 2


def test_an_unknown_estimate_answers_with_the_list() -> None:
    with pytest.raises(PluginError, match="unknown estimate 'cubes'; the probe has squares, sums"):
        GradientProbe(classifier(), batches, F.cross_entropy).estimate("cubes")


def test_a_tensor_that_the_loss_does_not_use_has_no_importance() -> None:
    model = classifier()
    model.vit.register_parameter("spare", nn.Parameter(torch.ones(2, dtype=torch.float64)))
    even, odd = GradientProbe(model, batches, F.cross_entropy).estimate("squares")
    assert not even["spare"].any()
    assert not odd["spare"].any()


def test_gradients_that_are_all_zero_say_nothing() -> None:
    model = classifier()
    nn.init.zeros_(model.head.linear.weight)
    with pytest.raises(JobError, match="All gradients are zero"):
        GradientProbe(model, batches, F.cross_entropy).estimate("squares", 2)


def test_bf16_autocast_gives_float32_sums() -> None:
    def loss(logits: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(logits, labels)

    exact, _ = GradientProbe(classifier(dtype=torch.float32), lambda: batches(torch.float32), loss).estimate("sums")
    rough, _ = GradientProbe(
        classifier(dtype=torch.float32), lambda: batches(torch.float32), loss, torch.bfloat16
    ).estimate("sums")
    weight = "blocks.0.attn.proj.weight"
    assert rough[weight].dtype == torch.float32
    assert (rough[weight] - exact[weight]).norm() < 0.05 * exact[weight].norm()
