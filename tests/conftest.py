"""Settings of every test: shapes and types are checked at run time; real data and weights where they exist."""

from __future__ import annotations

import os
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from beartype import BeartypeConf
from beartype.claw import beartype_package
from hypothesis import settings

# A shell that runs tests in the background makes them, and what they start, ignore Ctrl-C; tests of it must hear it.
signal.signal(signal.SIGINT, signal.default_int_handler)

# No test downloads weights or sees those of the user who runs it; huggingface_hub reads these when it is imported.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HOME"] = tempfile.mkdtemp(prefix="peftbench-tests-hub-")

# Before any test imports the package. 1 is a float, too; the command line imports the names in its annotations for type
# checkers only, because it must not import what is heavy. Ray rejects classes whose methods are wrapped.
UNCHECKED = ("peftbench.cli", "peftbench.execution.ray")
CHECKED = BeartypeConf(is_pep484_tower=True, claw_skip_package_names=UNCHECKED)
beartype_package("peftbench", conf=CHECKED)

# No test asserts a time, and examples are the same each time; `nox -s fuzz` draws new ones.
settings.register_profile("peftbench", deadline=None, derandomize=True)
settings.load_profile("peftbench")

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="session", autouse=True)
def _own_folders(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep tests from reading or writing the caches, data and weights of the user who runs them."""
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        for variable in ("PEFTBENCH_CACHE", "PEFTBENCH_DATA", "XDG_DATA_HOME", "XDG_CACHE_HOME"):
            patch.setenv(variable, str(home / variable.lower()))
        yield


def _folder(variable: str, default: str) -> Path:
    folder = Path(os.environ.get(variable) or ROOT / default)
    if not folder.is_dir():
        pytest.skip(f"no folder {folder}; {variable} names another")
    return folder


@pytest.fixture(scope="session")
def data_root() -> Path:
    """Return the folder of real data sets, or skip with the folder that was searched."""
    return _folder("PEFTBENCH_TEST_DATA", "../shared/data")


@pytest.fixture(scope="session")
def weights_root() -> Path:
    """Return the folder of real weights, or skip with the folder that was searched."""
    return _folder("PEFTBENCH_TEST_WEIGHTS", "../shared/weights")
