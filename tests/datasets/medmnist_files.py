"""Drawn files in MedMNIST's format, under its names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from peftbench.core.catalogue import dataset_entry
from peftbench.core.contract import PARTS
from peftbench.datasets import _medmnist
from peftbench.storage import files


def write_set(root: Path, name: str, side: int, monkeypatch: pytest.MonkeyPatch, images: int = 30) -> Path:
    """Noise of `images` pictures a part, every class among the labels; its checksum counts as the published one."""
    member, rng = dataset_entry("medmnist").members[name], np.random.default_rng(side)
    shape = (side, side, 3) if name in {"pathmnist", "retinamnist"} else (side, side)
    arrays: dict[str, Any] = {}
    for part in PARTS:
        arrays[f"{part}_images"] = rng.integers(256, size=(images, *shape), dtype=np.uint8)
        labels = np.arange(images)[:, None] % len(member.classes)
        if member.task == "multi_label":
            labels = (labels == np.arange(len(member.classes))) | (labels == 0)
        arrays[f"{part}_labels"] = labels.astype(np.uint8)
    file = _medmnist.file_of(root, name, side)
    file.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(file, **arrays)
    sums, real = dataset_entry("medmnist").checksums, files.checksum
    known, own = file.read_bytes(), sums[file.name].removeprefix("md5:")
    monkeypatch.setattr(
        _medmnist, "checksum", lambda asked, kind: own if asked.read_bytes() == known else real(asked, kind)
    )
    return file
