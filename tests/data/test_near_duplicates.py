"""Near duplicates: exactly those that a full comparison finds, for any number of images."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from peftbench.data import near_duplicates
from peftbench.data.near_duplicates import ALIKE, SIDE, alike, thumbnail


def picture(seed: int, shape: tuple[int, int] = (90, 70)) -> NDArray[np.uint8]:
    """Smooth noise."""
    rough = np.random.default_rng(seed).integers(0, 256, (9, 7), dtype=np.uint8)
    return np.asarray(Image.fromarray(rough).resize((shape[1], shape[0]), Image.Resampling.BICUBIC))


def thumbnails(*images: NDArray[np.uint8]) -> NDArray[np.float32]:
    return np.stack([thumbnail(Image.fromarray(image)) for image in images])


def test_a_brighter_and_a_smaller_copy_are_the_same_picture_and_another_is_not() -> None:
    original, other = picture(0), picture(1)
    darker = (original * 0.7 + 20).astype(np.uint8)
    smaller = np.asarray(Image.fromarray(original).resize((60, 45)))
    found = alike(thumbnails(original, other, darker, smaller), ALIKE)
    assert [(i, j) for i, j, _ in found] == [(0, 2), (0, 3), (2, 3)]


def test_images_of_one_grey_resemble_nothing() -> None:
    assert alike(thumbnails(*(np.full((40, 40), grey, np.uint8) for grey in (0, 7, 7)))) == []


@settings(max_examples=30)
@given(st.integers(0, 2**32 - 1), st.floats(0.0, 0.2), st.sampled_from([0.9, 0.98, ALIKE]))
def test_none_is_missed_and_none_made_up(seed: int, noise: float, least: float) -> None:
    rng = np.random.default_rng(seed)
    grounds = rng.normal(size=(4, SIDE * SIDE))
    rows = grounds[rng.integers(4, size=40)] + noise * rng.normal(size=(40, SIDE * SIDE))
    rows = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    exact = np.triu(rows.astype(np.float64) @ rows.astype(np.float64).T, k=1)
    sure = {(int(i), int(j)) for i, j in np.argwhere(exact > least + 1e-9)}
    found = {(i, j): correlation for i, j, correlation in alike(rows, least)}
    assert found.keys() == sure
    assert all(found[pair] == pytest.approx(exact[pair]) for pair in sure)


def test_pairs_are_found_across_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(near_duplicates, "BLOCK", 3)
    rows = thumbnails(*(picture(seed % 7) for seed in range(10)))
    assert [(i, j) for i, j, _ in alike(rows)] == [(0, 7), (1, 8), (2, 9)]
