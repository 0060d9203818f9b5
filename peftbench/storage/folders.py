"""Default folders of this user."""

from __future__ import annotations

from pathlib import Path

from platformdirs import user_cache_path, user_data_path


def data_folder(given: Path | None = None) -> Path:
    """Return the folder that holds all data sets: `given`, or the default in the user's data folder."""
    return given or user_data_path("peftbench") / "data"


def cache_folder(given: Path | None = None) -> Path:
    """Return the folder of decoded images and estimates: `given`, or the user's cache folder."""
    return given or user_cache_path("peftbench")
