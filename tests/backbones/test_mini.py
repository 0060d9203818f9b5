"""mini runs with nothing downloaded, so its weights must be here, whole and small."""

from __future__ import annotations

import torch

from peftbench.models.backbone import Network, locate


def random() -> Network:
    return locate("mini@random").build(0)


def test_mini_has_six_blocks_and_no_head() -> None:
    vit = random()
    assert (len(vit.blocks), vit.num_classes) == (6, 0)
    assert sum(p.numel() for p in vit.parameters()) == 2_719_296


def test_mini_gives_one_vector_an_image() -> None:
    assert random()(torch.zeros(2, 3, 64, 64)).shape == (2, 192)


def test_minis_shipped_weights_fit_it_and_are_small() -> None:
    source = locate("mini")
    assert all(torch.isfinite(p).all() and p.dtype == torch.float32 for p in source.build(0).parameters())
    assert source.file is not None
    assert source.file.stat().st_size < 6_000_000


def test_minis_shipped_weights_are_no_random_ones() -> None:
    assert random().get_parameter("norm.weight").std() == 0  # all ones, until it is trained
    assert locate("mini").build(0).get_parameter("norm.weight").std() > 0.01


def test_mini_is_described_as_for_research_and_demonstration() -> None:
    card = locate("mini", blank=True).plugin.card
    assert "research" in card.licence
    assert "DINOv2" in card.source
    assert "demonstration" in " ".join(card.notes)
