from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from peftbench.core.contract import Splits
from peftbench.datasets.table import plugin
from peftbench.errors import DataError, MissingDataError, SplitError
from tests.data.test_dicom import write_dicom


def write(home: Path, lines: list[str], header: str = "image,label") -> Path:
    """A table and, for each of its lines, an image of its own bytes."""
    (home / "scans").mkdir(parents=True, exist_ok=True)
    for line in lines:
        (home / line.split(",")[0]).write_text(line)
    (home / "all.csv").write_text("\n".join([header, *lines]) + "\n", encoding="utf-8")
    return home / "all.csv"


def load(file: Path, seed: int = 0) -> Splits:
    return plugin(str(file)).load(Path("unused"), seed)


def sizes(splits: Splits) -> list[list[int]]:
    return [np.bincount(part.labels).tolist() for part in splits.parts.values()]


PLAIN = [f"scans/{i}.png,{'ab'[i % 2]}" for i in range(40)]


def test_images_and_labels_alone_are_split_70_10_20(tmp_path: Path) -> None:
    splits = load(write(tmp_path, PLAIN))
    assert sizes(splits) == [[14, 14], [2, 2], [4, 4]]
    assert splits.rule == "70/10/20 stratified"
    assert splits.notes == ()


def test_a_group_never_crosses_parts(tmp_path: Path) -> None:
    file = write(tmp_path, [f"{line},patient {i // 4}" for i, line in enumerate(PLAIN)], "image,label,group")
    for seed in range(3):
        splits = load(file, seed)
        groups = [set(part.groups) for part in splits.parts.values()]
        assert sum(map(len, groups)) == len(set().union(*groups)) == 10
        assert splits.rule == "70/10/20 stratified, grouped by group"


def test_given_parts_are_kept_and_what_is_missing_is_cut_off_train(tmp_path: Path) -> None:
    lines = [f"{line},{'Test' if i < 8 else 'training'}" for i, line in enumerate(PLAIN)]
    splits = load(write(tmp_path, lines, "image,label,split"))
    assert sizes(splits)[2] == [4, 4]
    assert splits.carved
    assert splits.rule == "as given, val 10% of train, stratified"


def test_a_group_in_two_given_parts_is_reported(tmp_path: Path) -> None:
    parts = ["train"] * 20 + ["val"] * 10 + ["test"] * 10
    lines = [f"{line},{part},p{i % 39}" for i, (line, part) in enumerate(zip(PLAIN, parts, strict=True))]
    assert load(write(tmp_path, lines, "image,label,split,group")).notes == (
        "1 group is in both train and test (2 images).",
    )


def test_numbers_as_labels_are_in_the_order_of_numbers(tmp_path: Path) -> None:
    file = write(tmp_path, [f"scans/{i}.png,{i % 11}" for i in range(110)])
    assert plugin(str(file)).card.classes == tuple(str(i) for i in range(11))


@pytest.mark.parametrize("separator", [";", "\t"])
def test_other_separators_other_columns_and_a_mark_of_the_encoding(separator: str, tmp_path: Path) -> None:
    file = write(tmp_path, [f"{line},{i}" for i, line in enumerate(PLAIN)], " Image , LABEL ,age")
    file.write_text(file.read_text().replace(",", separator), encoding="utf-8-sig")
    assert sizes(load(file)) == [[14, 14], [2, 2], [4, 4]]


def test_equal_files_of_two_groups_join_them(tmp_path: Path) -> None:
    file = write(tmp_path, [f"{line},p{i // 4}" for i, line in enumerate(PLAIN)], "image,label,group")
    (tmp_path / "scans/0.png").write_bytes((tmp_path / "scans/39.png").read_bytes())
    splits = load(file)
    assert len({group for part in splits.parts.values() for group in part.groups}) == 9
    assert "Byte-identical images with contradicting labels, kept: 1." in splits.notes


@pytest.mark.parametrize("suffix", [".dcm", ""])
def test_a_patient_of_dicom_files_stays_in_one_part_without_a_column_for_it(tmp_path: Path, suffix: str) -> None:
    file = write(tmp_path, [line.replace(".png", suffix) for line in PLAIN])
    for i in range(40):
        write_dicom(tmp_path / f"scans/{i}{suffix}", np.full((4, 4), i, np.uint8), PatientID=f"P{i // 4}")
    groups = [set(part.groups) for part in load(file).parts.values()]
    assert sum(map(len, groups)) == len(set().union(*groups)) == 10
    assert plugin(str(file)).card.group_key == "patient"


def test_deep_images_are_noted(tmp_path: Path) -> None:
    file = write(tmp_path, PLAIN)
    Image.fromarray(np.arange(64, dtype=np.uint16).reshape(8, 8)).save(tmp_path / "scans/0.png")
    assert load(file).notes[0].startswith("1 grey images of more than 8 bits are shown from percentile")


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("", DataError, "must hold the columns image and label"),
        ("image\na.png\n", DataError, "must hold the columns image and label"),
        (
            "image,label\na.png,in situ, invasive\n",
            DataError,
            "the line of 'a.png' holds more cells than",
        ),
        ("image,label\n", DataError, "must hold the columns image and label and a line an image"),
        ("image,label\na.png,\n", DataError, "line 2: an image and one label are needed"),
        ("image,label\na.png,|\n", DataError, "line 2: an image and one label are needed"),
        ("image,label\na.png,x|y\n", DataError, "line 2: several labels an image need a description"),
        ("image,label,split\na.png,x,dev\n", DataError, "line 2: the split 'dev' is none of"),
        ("image,label,group\na.png,x,1\nb.png,y,\n", DataError, "line 3: some lines state a group and some do not"),
        ("image,label\nx.png,x\nall.csv,x\n", DataError, "all images have the label 'x', but at least two classes"),
        ("image,label\na.png,x\na.png,y\n", DataError, "line 3: the image 'a.png' stands there twice"),
        ("image,label\na.png,x\nb.png,y\n", MissingDataError, "2 of 2 images .* the first is 'a.png'; paths are"),
        ("image,label,split\nx.png,x,test\nall.csv,y,test\n", SplitError, "no image of the split train"),
    ],
)
def test_a_table_that_cannot_be_used_is_refused(
    text: str, error: type[Exception], message: str, tmp_path: Path
) -> None:
    (tmp_path / "all.csv").write_text(text)
    (tmp_path / "x.png").write_text("x")
    with pytest.raises(error, match=message):
        load(tmp_path / "all.csv")


def test_no_such_table(tmp_path: Path) -> None:
    with pytest.raises(MissingDataError, match=r"none\.csv does not exist; give a table"):
        load(tmp_path / "none.csv")
    with pytest.raises(MissingDataError, match=r"is a folder; give a table"):
        load(tmp_path)


def test_a_table_that_is_no_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "all.csv").write_bytes(b"image,label\n\xff\xfe,x")
    with pytest.raises(DataError, match="is no table in UTF-8"):
        load(tmp_path / "all.csv")
