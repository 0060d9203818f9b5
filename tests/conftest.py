"""What every test gets: shapes and types checked at run time, and the real data and weights where there are any."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from beartype import BeartypeConf
from beartype.claw import beartype_package

beartype_package("peftbench", conf=BeartypeConf(is_pep484_tower=True))  # before any test imports it: 1 is a float, too

ROOT = Path(__file__).parents[1]


def _folder(variable: str, default: str) -> Path:
    folder = Path(os.environ.get(variable) or ROOT / default)
    if not folder.is_dir():
        pytest.skip(f"no folder {folder}; {variable} names another")
    return folder


@pytest.fixture(scope="session")
def data_root() -> Path:
    """The folder of real data sets, or a skip that says where it was sought."""
    return _folder("PEFTBENCH_TEST_DATA", "../shared/data")


@pytest.fixture(scope="session")
def weights_root() -> Path:
    """The folder of real weights, or a skip that says where it was sought."""
    return _folder("PEFTBENCH_TEST_WEIGHTS", "../shared/weights")
