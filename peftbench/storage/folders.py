"""Default folders of this user."""

from __future__ import annotations

from pathlib import Path

from platformdirs import user_cache_path, user_data_path


def data_folder(given: Path | None = None) -> Path:
    """Return the folder that holds all data sets: `given`, or the default in the user's data folder."""
    return given or user_data_path("peftbench") / "data"


def weights_file(name: str) -> Path:
    """Return where a user may put a backbone's weights, in the user's data folder."""
    return user_data_path("peftbench") / "weights" / f"{name.replace('/', '-')}.safetensors"


def cache_folder(given: Path | None = None) -> Path:
    """Return the folder of decoded images and estimates: `given`, or the user's cache folder."""
    return given or user_cache_path("peftbench")
