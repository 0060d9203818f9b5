from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from peftbench.core.contract import Splits
from peftbench.data import dicom
from peftbench.data.image_scan import scan
from peftbench.data.splits import check_parts
from peftbench.datasets.folder import plugin
from peftbench.errors import DataError, MissingDataError, SplitError
from tests.data.test_dicom import write_dicom


def fill(home: Path, images: int, *folders: str, suffix: str = ".png") -> None:
    """Files of their own bytes in each of the folders."""
    for folder in folders:
        (home / folder).mkdir(parents=True, exist_ok=True)
        for i in range(images):
            (home / folder / f"{i}{suffix}").write_text(f"{folder} {i}")


def load(home: Path, seed: int = 0) -> Splits:
    return plugin(str(home)).load(Path("unused"), seed)


def sizes(splits: Splits) -> list[list[int]]:
    return [np.bincount(part.labels).tolist() for part in splits.parts.values()]


# --- what is accepted ------------------------------------------------------------------------------------------------


def test_class_folders_alone_are_split_70_10_20(tmp_path: Path) -> None:
    fill(tmp_path, 20, "b", "a")
    splits = load(tmp_path)
    assert sizes(splits) == [[14, 14], [2, 2], [4, 4]]
    assert splits.rule == "70/10/20 stratified"
    assert not splits.carved


def test_class_names_in_sorted_order_are_the_label_order(tmp_path: Path) -> None:
    fill(tmp_path, 10, "malignant", "benign", "Normal")
    assert plugin(str(tmp_path)).card.classes == ("Normal", "benign", "malignant")


@pytest.mark.parametrize("val", ["val", "valid", "Validation"])
def test_three_given_parts_are_kept(tmp_path: Path, val: str) -> None:
    fill(tmp_path, 4, "Training/a", "Training/b", f"{val}/a", f"{val}/b", "testing/a", "testing/b")
    splits = load(tmp_path)
    assert sizes(splits) == [[4, 4]] * 3
    assert splits.rule == "as given"
    assert {name.split("/")[0] for name in splits.val.names} == {val}
    assert splits.notes == ()


def test_validation_is_cut_off_train_where_only_test_is_given(tmp_path: Path) -> None:
    fill(tmp_path, 20, "train/a", "train/b", "test/a", "test/b")
    splits = load(tmp_path)
    assert sizes(splits) == [[18, 18], [2, 2], [20, 20]]
    assert splits.carved
    assert splits.rule == "as given, val 10% of train, stratified"


def test_test_is_cut_off_train_where_only_validation_is_given(tmp_path: Path) -> None:
    fill(tmp_path, 20, "train/a", "train/b", "val/a", "val/b")
    assert sizes(load(tmp_path)) == [[16, 16], [20, 20], [4, 4]]


def test_train_alone_is_split_in_three(tmp_path: Path) -> None:
    fill(tmp_path, 100, "train/a", "train/b")
    splits = load(tmp_path)
    assert sizes(splits) == [[70, 70], [10, 10], [20, 20]]
    assert splits.rule == "70/10/20 stratified"


@pytest.mark.parametrize("suffix", [".png", ".JPG", ".jpeg", ".bmp", ".tif", ".tiff", ".webp"])
def test_images_of_every_usual_format_are_read(tmp_path: Path, suffix: str) -> None:
    fill(tmp_path, 10, "a", "b", suffix=suffix)
    assert sum(len(part) for part in load(tmp_path).parts.values()) == 20


def test_other_and_hidden_files_are_no_images(tmp_path: Path) -> None:
    fill(tmp_path, 10, "a", "b")
    for name in ("a/notes.txt", "a/._0.png", "a/Thumbs.db", "readme.md"):
        (tmp_path / name).write_text("x")
    assert sum(len(part) for part in load(tmp_path).parts.values()) == 20


def test_the_path_may_be_relative_to_home_or_to_the_working_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(tmp_path / "clinic", 10, "a", "b")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert plugin("~/clinic").card == plugin("clinic").card
    assert plugin("clinic").card.title == "folder clinic"


# --- duplicates ------------------------------------------------------------------------------------------------------


def test_equal_files_stay_in_one_part(tmp_path: Path) -> None:
    fill(tmp_path, 20, "a", "b")
    for i in range(5):
        (tmp_path / "a" / f"{i}.png").write_text("the same")
    for seed in range(3):
        splits = load(tmp_path, seed)
        assert sum(any(f"a/{i}.png" in part.names for i in range(5)) for part in splits.parts.values()) == 1


def test_equal_files_in_two_given_parts_are_reported(tmp_path: Path) -> None:
    fill(tmp_path, 4, "train/a", "train/b", "val/a", "val/b", "test/a", "test/b")
    (tmp_path / "test/a/0.png").write_text("train/a 0")
    assert load(tmp_path).notes == ("1 byte-identical picture is in both train and test (2 images).",)


def test_equal_files_of_two_classes_are_reported(tmp_path: Path) -> None:
    fill(tmp_path, 20, "a", "b")
    (tmp_path / "b/0.png").write_text("a 0")
    assert load(tmp_path).notes == ("Byte-identical images with contradicting labels, kept: 1.",)


# --- what is refused or noted ----------------------------------------------------------------------------------------


def test_a_class_that_test_lacks_is_noted(tmp_path: Path) -> None:
    fill(tmp_path, 4, "train/a", "train/b", "val/a", "val/b", "test/a")
    assert load(tmp_path).notes == ("No image of class 'b' in test.",)


def test_folders_beside_the_parts_are_counted(tmp_path: Path) -> None:
    fill(tmp_path, 20, "train/a", "train/b", "test/a", "test/b", "masks")
    assert load(tmp_path).notes == (
        "Folders beside the parts are left out: 1.",
        "Images outside of the class folders, left out: 20.",
    )


def test_files_that_are_no_images_by_their_names_are_counted(tmp_path: Path) -> None:
    fill(tmp_path, 10, "a", "b/deep")
    for name in ("a/1.gif", "a/2.GIF", "b/deep/IM00001", "b/.hidden", "c.gif", "b/IM00002.Mueller"):
        (tmp_path / name).write_text(name)
    assert load(tmp_path).notes == (
        "Files left out because they are not image files: 4 (2 .gif, 1 no suffix, 1 other).",
    )


def test_folders_of_the_same_names_in_every_class_folder_are_noted(tmp_path: Path) -> None:
    fill(tmp_path, 5, "clinic 1/a", "clinic 1/b", "clinic 2/a", "clinic 2/b")
    (note,) = load(tmp_path).notes
    assert note == "Every class folder holds the same 2 folders. If those are the classes, use a table instead."


def test_links_to_folders_are_followed_but_not_in_circles(tmp_path: Path) -> None:
    fill(tmp_path, 10, "set/a", "set/b", "elsewhere")
    (tmp_path / "set/a/more").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "set/b/again").symlink_to(tmp_path / "set")
    (tmp_path / "set/b/deeper").symlink_to(tmp_path)
    assert np.sum(sizes(load(tmp_path / "set")), axis=0).tolist() == [20, 10]


@pytest.mark.parametrize("link", ["before", "zz behind"])
def test_a_link_beside_the_folder_that_it_leads_to_adds_nothing(tmp_path: Path, link: str) -> None:
    fill(tmp_path, 10, "a/images", "b")
    (tmp_path / "a" / link).symlink_to(tmp_path / "a/images")
    splits = load(tmp_path)
    assert np.sum(sizes(splits), axis=0).tolist() == [10, 10]
    assert {name.split("/")[1] for part in splits.parts.values() for name in part.names if name[0] == "a"} == {"images"}


def test_a_link_to_nothing_is_an_image_that_cannot_be_decoded(tmp_path: Path) -> None:
    fill(tmp_path / "d", 10, "a", "b")
    for name in ("gone", "lost"):
        (tmp_path / f"d/a/{name}.png").symlink_to(tmp_path / f"{name}.png")
    found = scan(load(tmp_path / "d"), tmp_path / "cache")
    assert found is not None
    reasons = {name: why for name, why in found.broken.items() if why != "not an image: text"}
    assert reasons == dict.fromkeys(("a/gone.png", "a/lost.png"), "No such file or directory")
    assert found.identical == ()


def test_files_of_windows_are_not_counted(tmp_path: Path) -> None:
    fill(tmp_path, 10, "a", "b")
    for name in ("Thumbs.db", "desktop.ini", ".DS_Store", "._a0.png", "a/Thumbs.db", "a/desktop.ini"):
        (tmp_path / name).write_bytes(b"x")
    assert not any("left out" in note for note in load(tmp_path).notes)


def test_no_such_path(tmp_path: Path) -> None:
    with pytest.raises(MissingDataError, match=r"nowhere is not a folder\. Give a folder of class folders"):
        load(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("folders", "error", "message"),
    [
        (["a"], DataError, "must hold at least two class folders, got 1. Give the folder above"),
        ([], DataError, "got 0"),
        (["train/a", "test/a", "test/b"], DataError, "train must hold at least two class folders"),
        (["train/a", "train/b", "test/a", "test/c"], SplitError, "test holds class 'c', which .*train lacks"),
        (["test/a", "test/b", "val/a", "val/b"], DataError, "holds test, val but no folder train"),
        (["train/a", "train/b", "val/a", "valid/a"], DataError, "two folders for the part val, one is val"),
    ],
)
def test_a_layout_that_cannot_be_used_is_refused(
    tmp_path: Path, folders: list[str], error: type[Exception], message: str
) -> None:
    fill(tmp_path, 3, *folders)
    with pytest.raises(error, match=message):
        load(tmp_path)


def test_a_class_folder_without_images_is_named(tmp_path: Path) -> None:
    fill(tmp_path, 10, "a", "b")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="empty holds no image"):
        load(tmp_path)


def test_a_class_too_small_to_split_is_noted(tmp_path: Path) -> None:
    fill(tmp_path, 10, "a", "b")
    fill(tmp_path, 1, "rare")
    assert load(tmp_path).notes == ("No image of class 'rare' in val.", "No image of class 'rare' in test.")


def test_the_real_oct_sample_is_read_as_given(data_root: Path) -> None:
    home = data_root / "oct/OCT2017"
    if not home.is_dir():
        pytest.skip(f"no OCT sample in {data_root}")
    splits = load(home)
    assert sizes(splits) == [[13, 10, 13, 10], [7, 8, 8, 8], [15, 15, 15, 15]]


# --- greys of more than eight bits, DICOM ----------------------------------------------------------------------------


def test_deep_images_and_dicom_are_read_and_noted(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for i in range(20):
            write_dicom(tmp_path / name / f"{i}.dcm", np.full((2, 2), i + 20 * (name == "b"), np.uint8))
    deep = np.arange(64, dtype=np.uint16).reshape(8, 8)
    Image.fromarray(deep).save(tmp_path / "a" / "deep.png")
    splits = load(tmp_path)
    assert sum(len(part) for part in splits.parts.values()) == 41
    assert [(note.split(",")[0], note.rpartition(": ")[2]) for note in splits.notes] == [
        ("DICOM images", "40."),
        ("Images of more than 8 bits per channel", "1."),
    ]


def test_dicom_without_the_extra_is_refused_before_anything_is_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(tmp_path, 20, "a", "b", suffix=".dcm")
    monkeypatch.setattr(dicom, "find_spec", lambda _: None)
    with pytest.raises(DataError, match="needs pydicom"):
        load(tmp_path)


def test_a_patient_of_dicom_files_stays_in_one_part(tmp_path: Path) -> None:
    for label in ("a", "b"):
        (tmp_path / label).mkdir()
        for i in range(20):
            pixels = np.full((4, 4), 20 * (label == "b") + i, np.uint8)
            write_dicom(tmp_path / label / f"{i}.dcm", pixels, PatientID=f"{label}{i // 2}")
    (tmp_path / "a" / "alone.png").write_text("no DICOM")
    splits = load(tmp_path)
    groups = [set(part.groups) for part in splits.parts.values()]
    assert sum(map(len, groups)) == len(set().union(*groups)) == 21
    assert plugin(str(tmp_path)).card.group_key == "patient"
    assert splits.rule == "70/10/20 stratified, grouped by patient"


# --- what people's folders look like ---------------------------------------------------------------------------------


def test_grades_are_in_the_order_of_numbers(tmp_path: Path) -> None:
    fill(tmp_path, 10, *map(str, range(11)))
    assert plugin(str(tmp_path)).card.classes == tuple(map(str, range(11)))
    assert load(tmp_path).train.names[-1].startswith("10/")


def test_two_folders_of_one_class_are_refused(tmp_path: Path) -> None:
    fill(tmp_path, 10, "1", "1.0", "2")
    with pytest.raises(DataError, match="holds two folders of the class '1'"):
        load(tmp_path)


def test_images_outside_of_the_class_folders_are_counted_and_named(tmp_path: Path) -> None:
    fill(tmp_path, 10, "train/a", "train/b", "test/a", "test/b")
    fill(tmp_path, 2, "test", ".", "old")
    (tmp_path / "test/._0.png").write_text("hidden")
    splits = load(tmp_path)
    assert splits.left_out == ("0.png", "1.png", "test/0.png", "test/1.png", "old/0.png", "old/1.png")
    assert "Images outside of the class folders, left out: 6." in splits.notes


def test_a_test_folder_without_class_folders_is_an_empty_part(tmp_path: Path) -> None:
    fill(tmp_path, 20, "train/a", "train/b")
    fill(tmp_path, 5, "test")
    splits = load(tmp_path)
    card = plugin(str(tmp_path)).card
    with pytest.raises(SplitError, match=r"the part test has no image; 5 images in it are outside of class folders"):
        check_parts(card, splits)


def test_a_pipe_is_left_out_and_noted(tmp_path: Path) -> None:
    fill(tmp_path, 20, "a", "b")
    os.mkfifo(tmp_path / "a/x.png")
    splits = load(tmp_path)
    assert sum(map(len, splits.parts.values())) == 40
    assert splits.notes == ("Files left out because they are not image files: 1 (1 not a regular file).",)
