"""The model card: what the training images looked like."""

from __future__ import annotations

import numpy as np
import pytest

from peftbench.training.model_card import appearance


def test_the_appearance_of_images_is_gray_share_brightness_and_contrast() -> None:
    grey = np.repeat(np.arange(0, 200, 2, dtype=np.uint8).reshape(100, 1, 1, 1), 3, axis=1) * np.ones((4, 4), np.uint8)
    red = np.zeros((100, 3, 4, 4), np.uint8)
    red[:, 0] = 200
    assert appearance(grey)["grey"] == 1
    assert appearance(red)["grey"] == 0
    assert appearance(grey)["mean"] == pytest.approx([0, 198], abs=2)
    assert appearance(red)["contrast"][0] == pytest.approx(200 * np.sqrt(2) / 3, abs=0.01)
