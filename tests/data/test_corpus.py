"""A wall of odd images: the same picture in any container gives the same pixels, or a refusal with a reason."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from peftbench.data.image_io import facts, open_picture, quiet_decoders
from peftbench.data.raster import UndecodableError
from tests.odd_images import Case, draw

DRAWN = int(os.environ.get("PEFTBENCH_TEST_ODD_IMAGES", "500"))  # 20,000 in the fuzz session


def fault(case: Case, file: Path) -> str:
    """What is wrong with how a case is decoded, "" if nothing is."""
    file.write_bytes(case.content)
    try:
        found = np.asarray(open_picture(file))
    except UndecodableError as error:
        return "" if case.right is None else f"refused: {error}"
    if case.right is None:
        return "should be refused"
    if found.shape != case.right.shape:
        return f"shape {found.shape} instead of {case.right.shape}"
    off = int(np.abs(found.astype(int) - case.right).max())
    return f"off by {off}" if off > case.tolerance else ""


def test_the_same_picture_in_any_container_gives_the_same_pixels(tmp_path: Path) -> None:
    faults = Counter[str]()
    with quiet_decoders():
        for seed in range(DRAWN):
            case = draw(seed)
            if wrong := fault(case, tmp_path / f"{seed}{case.suffix}"):
                faults[f"seed {seed}: {case.what}: {wrong}"] += 1
    assert not faults, f"{len(faults)} of {DRAWN}: {list(faults)[:5]}"


@pytest.mark.parametrize("seed", range(12))
def test_the_header_tells_what_decoding_will_do(seed: int, tmp_path: Path) -> None:
    case = draw(seed)
    (tmp_path / f"x{case.suffix}").write_bytes(case.content)
    shown = facts(tmp_path / f"x{case.suffix}")
    assert shown.dicom == case.what.startswith("DICOM")
    if "turned" in case.what and case.right is not None:
        assert shown.turned == (not case.what.split("turned ")[1].startswith("1"))
