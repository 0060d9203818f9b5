"""The head that all methods share."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from peftbench.models.head import Classifier, Head
from tests.networks import batch, network


def test_a_seed_draws_the_same_head_whatever_was_drawn_before() -> None:
    first = Head(32, 3, "plain", 1.0, seed=5)
    torch.rand(7)
    assert torch.equal(first.linear.weight, Head(32, 3, "plain", 1.0, seed=5).linear.weight)
    assert not torch.equal(first.linear.weight, Head(32, 3, "plain", 1.0, seed=6).linear.weight)
    assert first.linear.bias.abs().max() == 0
    assert first.linear.weight.std().item() == pytest.approx(0.02, rel=0.3)


def test_plain_is_a_linear_layer() -> None:
    head, features = Head(4, 2, "plain", 1.0, seed=0), torch.randn(3, 4)
    assert torch.equal(head(features), features @ head.linear.weight.T + head.linear.bias)


def test_l2_brings_features_to_its_length() -> None:
    head, features = Head(4, 2, "l2", 16.0, seed=0), torch.randn(3, 4)
    torch.testing.assert_close(head(1000 * features), head(features))
    unit = features / features.norm(dim=1, keepdim=True)
    torch.testing.assert_close(head(features), 16 * unit @ head.linear.weight.T)


def test_batchnorm_standardises_and_trains_nothing_more() -> None:
    head, features = Head(4, 2, "batchnorm", 1.0, seed=0), 5 + 3 * torch.randn(64, 4)
    standard = (features - features.mean(0)) / (features.var(0, unbiased=False) + 1e-6).sqrt()
    torch.testing.assert_close(head(features), standard @ head.linear.weight.T)
    assert sum(p.numel() for p in head.parameters()) == 4 * 2 + 2


@pytest.mark.parametrize("kind", ["plain", "l2", "batchnorm"])
def test_it_computes_in_float32_under_autocast(kind: str) -> None:
    head, features = Head(4, 2, kind, 1.0, seed=0), torch.randn(8, 4)
    exact = head.eval()(features)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(head(features), exact)
        assert head(features.bfloat16()).dtype == torch.float32


def test_a_classifier_is_the_backbone_and_then_the_head() -> None:
    vit, head = network(), Head(32, 3, "plain", 1.0, seed=0).double()
    x, _ = batch()
    assert torch.equal(Classifier(vit, head)(x), head(vit(x)))
    assert isinstance(vit.head, nn.Identity)
