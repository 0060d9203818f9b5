"""Float batches from cached pixels or stored features, and the order in which images come."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from peftbench.data.batches import FeatureBatches, ImageBatches, batch_order, fits_on_device
from peftbench.data.pixel_cache import prepare
from tests.images import CARD, SMALL, splits


def test_a_batch_is_normalized() -> None:
    raw = np.random.default_rng(0).integers(256, size=(5, 3, 8, 8), dtype=np.uint8)
    raw[0] = np.arange(192).reshape(3, 8, 8)
    mean, std = (np.asarray(v)[:, None, None] for v in (SMALL.mean, SMALL.std))
    found = ImageBatches(raw, SMALL, torch.device("cpu")).batch([3, 0, 3])
    assert found.dtype == torch.float32
    assert np.abs(found.numpy() - ((raw[[3, 0, 3]] / 255 - mean) / std)).max() < 1e-6


def test_batches_are_read_from_the_memory_map(tmp_path: Path) -> None:
    data = prepare(CARD, splits(tmp_path / "d"), SMALL, tmp_path / "c")
    images = ImageBatches(data.pixels("train"), SMALL, torch.device("cpu"))
    assert len(images) == 4
    assert images.batch(np.array([2])).shape == (1, 3, 8, 8)


def test_resident_images_give_the_same_batches(tmp_path: Path) -> None:
    data = prepare(CARD, splits(tmp_path / "d"), SMALL, tmp_path / "c")
    streamed, resident = (
        ImageBatches(data.pixels("train"), SMALL, torch.device("cpu"), resident=resident) for resident in (False, True)
    )
    for index in (np.array([2, 0, 2]), [3]):
        assert torch.equal(resident.batch(index), streamed.batch(index))
        assert torch.equal(resident.batch(torch.from_numpy(np.asarray(index))), streamed.batch(index))


def test_images_stay_on_a_gpu_if_a_quarter_of_its_free_memory_holds_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (100, 200))
    assert fits_on_device(25, torch.device("cuda"))
    assert not fits_on_device(26, torch.device("cuda"))
    assert not fits_on_device(1, torch.device("cpu"))


def test_features_are_selected_by_position() -> None:
    features = FeatureBatches(torch.arange(8.0).view(4, 2))
    assert len(features) == 4
    assert features.batch(np.array([3, 0])).tolist() == [[6, 7], [0, 1]]


# --- order -----------------------------------------------------------------------------------------------------------


@settings(max_examples=50)
@given(st.integers(1, 30), st.integers(1, 40), st.integers(0, 3), st.integers(1, 4))
def test_every_epoch_covers_every_image_once(images: int, batch: int, seed: int, epochs: int) -> None:
    steps = -(-epochs * images // batch)
    batches = list(batch_order(images, batch, seed, 0, steps))
    assert {len(index) for index in batches} == {batch}
    seen = np.concatenate(batches)[: epochs * images].reshape(epochs, images)
    assert (np.sort(seen, axis=1) == np.arange(images)).all()


@settings(max_examples=50)
@given(st.integers(1, 30), st.integers(1, 40), st.integers(0, 12))
def test_the_order_is_the_same_after_a_resume(images: int, batch: int, cut: int) -> None:
    whole = list(batch_order(images, batch, 1, 0, 12))
    resumed = [*batch_order(images, batch, 1, 0, cut), *batch_order(images, batch, 1, cut, 12)]
    assert all(np.array_equal(a, b) for a, b in zip(whole, resumed, strict=True))


def test_seeds_and_epochs_have_different_orders() -> None:
    first, second = batch_order(50, 50, 0, 0, 2)
    (other,) = batch_order(50, 50, 1, 0, 1)
    assert not np.array_equal(first, second)
    assert not np.array_equal(first, other)
