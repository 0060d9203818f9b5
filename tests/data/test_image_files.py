"""Which files are images: the same for training and for prediction, and nothing is passed over in silence."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from peftbench.data import image_files
from peftbench.errors import DataError
from peftbench.inference import predict
from tests import studies


def test_prediction_sees_the_images_that_training_sees(tmp_path: Path) -> None:
    home, elsewhere = studies.draw(tmp_path / "images", 2), studies.draw(tmp_path / "elsewhere", 1)
    (home / "dots" / "._00.png").write_bytes(b"macOS put this here")
    (home / "a folder.png").mkdir()
    (home / "linked").symlink_to(elsewhere / "rows")
    (home / "notes.txt").write_text("no image")
    found = predict.find_images([home])
    assert found == image_files.images_in(home)
    assert [str(file.relative_to(home)) for file in found] == [
        *("dots/00.png", "dots/01.png", "linked/00.png", "rows/00.png", "rows/01.png"),
        *("stripes/00.png", "stripes/01.png"),
    ]


def test_a_folder_that_cannot_be_read_is_no_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home, scan = studies.draw(tmp_path / "images", 2), os.scandir

    def denied(place: Any) -> Any:
        if Path(place).name == "rows":
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), place)
        return scan(place)

    monkeypatch.setattr(os, "scandir", denied)
    for look in (
        image_files.images_in,
        lambda folder: image_files.other_files([folder]),
        lambda folder: image_files.count_images(folder, ["."]),
    ):
        with pytest.raises(DataError, match=r"Cannot read .*images.*rows: Permission denied\. Change"):
            look(home)


def test_where_there_is_no_folder_there_is_no_image(tmp_path: Path) -> None:
    assert image_files.images_in(tmp_path / "nowhere") == []
    assert image_files.count_images(tmp_path, ["nowhere"]) == 0
