from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from peftbench.core.contract import Splits
from peftbench.data.availability import open_dataset
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
    assert load(file).notes[0].startswith("Images of more than 8 bits per channel, shown from percentile")


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("", DataError, "no column 'image' and no column 'label', found none"),
        ("image\na.png\n", DataError, "no column 'label', found 'image'\\. Pass --image-column"),
        (
            "image,label\na.png,in situ, invasive\n",
            DataError,
            "line 2: more cells than columns",
        ),
        ("image,label\n", DataError, "no line below the column names"),
        ("image,label\na.png,\n", DataError, "line 2: no label. Fill"),
        ("image,label\na.png,|\n", DataError, "line 2: no label. Fill"),
        ("image,label\na.png,x|y\n", DataError, "line 2: several labels. Keep one"),
        ("image,label,split\na.png,x,dev\n", DataError, "line 2: a split 'dev' other than train"),
        ("image,label,group\na.png,x,1\nb.png,y,\n", DataError, "line 3: no group, which other lines state"),
        ("image,label\nx.png,x\nall.csv,x\n", DataError, "all images have the label 'x', but at least two classes"),
        ("image,label\na.png,x\na.png,y\n", DataError, "line 3: the image 'a.png' again"),
        ("image,label\na.png,x\n./b/../a.png,y\n", DataError, "line 3: the image './b/../a.png' again"),
        (
            "image,label\na.png,x\nb.png,y\n",
            MissingDataError,
            r"2 of 2 images .* 'a.png' \(line 2\)\. Paths",
        ),
        ("image,label,split\nx.png,x,test\nall.csv,y,test\n", SplitError, "no line with the split train"),
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
    with pytest.raises(MissingDataError, match=r"none\.csv does not exist\. Give a table"):
        load(tmp_path / "none.csv")
    with pytest.raises(MissingDataError, match=r"is a folder\. Give a table"):
        load(tmp_path)


def test_a_table_that_is_no_text_is_refused(tmp_path: Path) -> None:
    for content, reason in ((b"image,label\n\0,x", "is not a text file"), (b"PK\x03\x04", "is an Excel workbook")):
        (tmp_path / "all.csv").write_bytes(content)
        with pytest.raises(DataError, match=reason):
            load(tmp_path / "all.csv")


@pytest.mark.parametrize(
    ("change", "notes"),
    [
        (lambda text: text + ",\n,\n", ()),
        (lambda text: "\ufeff" + text, ()),
        (lambda text: text.replace(",", ";"), ()),
        (lambda text: "sep=;\n" + text.replace(",", ";"), ()),
        (lambda text: text.replace(",", "\t").replace("\n", "\r"), ()),
        (lambda text: text.replace("\n", "\r\n\r\n"), ()),
        (lambda text: text.replace("label", "label,notes").replace("a\n", 'a,"two\nlines"\n'), ()),
        (lambda text: text.replace("/", "\\"), ("Backslashes in paths of the table, read as slashes: 40.",)),
    ],
)
def test_tables_as_programs_write_them(change: Callable[[str], str], notes: tuple[str, ...], tmp_path: Path) -> None:
    file = write(tmp_path, PLAIN)
    file.write_bytes(change(file.read_text()).encode())
    splits = load(file)
    assert sizes(splits) == [[14, 14], [2, 2], [4, 4]]
    assert splits.notes == notes


@pytest.mark.parametrize("encoding", ["latin-1", "utf-16"])
def test_tables_in_other_encodings(encoding: str, tmp_path: Path) -> None:
    file = write(tmp_path, [f"scans/{i}.png,{('böse', 'gut')[i % 2]}" for i in range(40)])
    file.write_bytes(file.read_text().encode(encoding))
    assert plugin(str(file)).card.classes == ("böse", "gut")
    assert encoding.upper()[:5] in load(file).notes[0].upper()


def test_quotes_and_dashes_of_windows_keep_their_signs(tmp_path: Path) -> None:
    file = write(tmp_path, [f"scans/{i}.png,{('“grade”–1', 'grade 2')[i % 2]}" for i in range(40)])
    file.write_bytes(file.read_text(encoding="utf-8").encode("cp1252"))
    assert plugin(str(file)).card.classes == ("grade 2", "“grade”–1")


def test_a_table_in_utf_32_is_refused(tmp_path: Path) -> None:
    file = write(tmp_path, PLAIN)
    file.write_bytes(file.read_text().encode("utf-32"))
    with pytest.raises(DataError, match=r"not a text file\. Save the table as CSV in UTF-8"):
        load(file)


def test_the_lines_of_a_refusal_are_those_of_the_file(tmp_path: Path) -> None:
    file = write(tmp_path, PLAIN)
    text = file.read_text().replace("3.png,b", "3.png,\n\n", 1).replace("scans/5.png,b", '"scans/5.png","nan"', 1)
    file.write_text(text)
    assert [i for i, line in enumerate(text.splitlines(), 1) if line in {"scans/3.png,", '"scans/5.png","nan"'}] == [
        5,
        9,
    ]
    with pytest.raises(DataError, match="lines 5, 9: no label"):
        load(file)


# --- classes ---------------------------------------------------------------------------------------------------------


def test_whole_numbers_are_one_class_however_they_are_written(tmp_path: Path) -> None:
    labels = ["10.0", "2", "0", "2.", "10", "1.50", "0.0"]
    file = write(tmp_path, [f"scans/{i}.png,{labels[i % 7]}" for i in range(140)])
    assert plugin(str(file)).card.classes == ("0", "1.50", "2", "10")
    assert np.sum(sizes(load(file)), axis=0).tolist() == [40, 20, 40, 40]


@pytest.mark.parametrize(
    "names", [("Benign", "benign"), ("\N{LATIN SMALL LETTER E WITH ACUTE}", "e\u0301"), ("a", "a\u200b"), ("01", "1")]
)
def test_classes_that_look_alike_are_noted(names: tuple[str, str], tmp_path: Path) -> None:
    lines = [f"scans/{i}.png,{(*names, '3')[i % 3]}" for i in range(60)]
    (note,) = load(write(tmp_path, lines)).notes
    assert note == f"Classes that look alike: {', '.join(map(ascii, sorted(names)))}."


def test_numbers_within_names_are_in_the_order_of_numbers(tmp_path: Path) -> None:
    file = write(tmp_path, [f"scans/{i}.png,grade {i % 11}" for i in range(110)])
    assert plugin(str(file)).card.classes == tuple(f"grade {i}" for i in range(11))


def test_columns_of_other_names(tmp_path: Path) -> None:
    file = write(tmp_path, [f"{line},train,p{i}" for i, line in enumerate(PLAIN)], "File Name,DX,part,who")
    columns = {"image_column": "file name", "label_column": "dx", "split_column": "Part", "group_column": "who"}
    splits = open_dataset(f"table:{file}", columns).load(Path("unused"), 0)
    assert sizes(splits) == [[14, 14], [2, 2], [4, 4]]
    assert splits.train.groups[0].startswith("p")
    with pytest.raises(DataError, match="no column 'image' and no column 'label', found 'File Name', 'DX', 'part'"):
        load(file)
