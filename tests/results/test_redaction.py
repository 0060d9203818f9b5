"""A report names no image and no folder, and no data set if it is anonymous."""

from __future__ import annotations

from pathlib import Path

import pytest

from peftbench.results.redaction import publish, redact
from peftbench.results.tables import tables
from tests.records import Fake


@pytest.mark.parametrize(
    ("text", "redacted"),
    [
        ("2 images do not open: 'a/b c.png'", "2 images do not open: [name]"),
        ("cannot read ward3/patient_17.DCM", "cannot read [image]"),
        ("no space left on /home/someone/runs", "no space left on [path]"),
        ("group 'Smith, J.' lies in two parts", "group [name] lies in two parts"),
        ("The loss isn't finite at step 3 (lr 0.01); it's too high.", None),
        ("5 images/s is slow", None),
    ],
)
def test_a_reason_names_no_image_and_no_folder(text: str, redacted: str | None) -> None:
    assert redact(text) == (redacted or text)


def test_a_data_set_of_ones_own_is_published_by_the_last_part_of_its_path(tmp_path: Path) -> None:
    names = ["folder:/home/dr_x/ward 3/mine", "folder:/other/mine", "table:../lists/all.csv", "busi"]
    results = publish([Fake(dataset=name).write(tmp_path) for name in names])
    assert [result.record.data.name for result in results] == ["folder:mine", "folder:mine #2", "table:all.csv", "busi"]
    assert [result.damage for result in results] == [""] * 4


def test_an_anonymous_report_numbers_data_sets_and_classes(tmp_path: Path) -> None:
    names = ["folder:/home/dr_x/mine", "busi", "busi"]
    results = [Fake(dataset=name, seed=seed).write(tmp_path) for seed, name in enumerate(names)]
    published = publish(results, anonymous=True)
    assert [result.record.data.name for result in published] == ["data set 2", "data set 1", "data set 1"]
    assert published[0].record.data.card["classes"] == ["class 0", "class 1", "class 2"]
    text = repr(tables(published)) + repr([result.record.data for result in published])
    assert "data set 1" in text
    assert not [word for word in ("mine", "dr_x", "busi", "Busi", "patient") if word in text]
