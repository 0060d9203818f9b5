from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from peftbench.data.splits import fingerprint
from peftbench.datasets.covid_ct import plugin, source_paper
from peftbench.errors import MissingDataError

LISTS = {
    ("COVID", "train"): ["2020.03.04.20026005-p10-93%1.png", "2020.03.04.20026005-p11-94.png"],
    ("COVID", "val"): ["bmj.m606.full-p3-17%0.png", "2020.03.04.20026005-p12-95.png"],
    ("COVID", "test"): ["PIIS0140673620301549_0%1.png"],
    ("NonCOVID", "train"): ["14.png", "a name with spaces.png"],
    ("NonCOVID", "val"): ["10%0.jpg", "10%1.jpg"],
    ("NonCOVID", "test"): ["14%0.jpg"],
}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A small COVID-CT in its published layout, lists with blank lines and Windows line ends."""
    home = tmp_path / "covid_ct"
    for (label, part), names in LISTS.items():
        list_file = home / "Data-split" / label / f"{part}CT_{label}.txt"
        list_file.parent.mkdir(parents=True, exist_ok=True)
        list_file.write_text("\r\n".join([*names, "", ""]), newline="")
        for name in names:
            image = home / "Images-processed" / f"CT_{label}" / name
            image.parent.mkdir(parents=True, exist_ok=True)
            image.write_text(name)
    return tmp_path


def test_parts_are_the_official_lists(root: Path) -> None:
    splits = plugin.load(root, seed=0)
    assert splits.rule == "official"
    assert splits.train.labels.tolist() == [0, 0, 1, 1]
    assert splits.val.names == (
        "Images-processed/CT_NonCOVID/10%0.jpg",
        "Images-processed/CT_NonCOVID/10%1.jpg",
        "Images-processed/CT_COVID/bmj.m606.full-p3-17%0.png",
        "Images-processed/CT_COVID/2020.03.04.20026005-p12-95.png",
    )
    assert "Incomplete copy: 10 of 746 images are here." in splits.notes


def test_papers_in_two_official_parts_are_counted(root: Path) -> None:
    notes = plugin.load(root, seed=0).notes
    assert "1 source paper is in both train and val (3 images)." in notes


def test_images_of_no_list_are_left_out_and_counted(root: Path) -> None:
    (root / "covid_ct/Images-processed/CT_COVID/new.png").write_text("new")
    assert "Images in no official list, left out: 1." in plugin.load(root, seed=0).notes


@pytest.mark.parametrize(
    ("file", "paper"),
    [
        ("CT_COVID/2020.03.21.20040691-p18-67-8.png", "COVID 2020.03.21.20040691"),
        ("CT_COVID/med-9780198814924-chapter-17-p10-515.png", "COVID med-9780198814924-chapter-17"),
        ("CT_COVID/kjr-21-e24-p1-16.png", "COVID kjr-21-e24"),
        ("CT_COVID/PIIS0140673620303603%8.png", "COVID PIIS0140673620303603"),
        ("CT_COVID/PIIS0140673620302117_2.png", "COVID PIIS0140673620302117"),
        ("CT_NonCOVID/10%2.jpg", "NonCOVID 10.jpg"),
        ("CT_NonCOVID/1029.png", "NonCOVID 1029.png"),
    ],
)
def test_the_source_paper_is_read_from_the_name(file: str, paper: str) -> None:
    assert source_paper(Path(file)) == paper


def test_copies_without_percent_signs_are_the_same_papers(root: Path) -> None:
    before = plugin.load(root, seed=0)
    for image in (root / "covid_ct/Images-processed").rglob("*%*"):
        image.rename(image.with_name(image.name.replace("%", "_")))
    after = plugin.load(root, seed=0)
    assert after.val.groups == before.val.groups
    assert after.val.names[0] == "Images-processed/CT_NonCOVID/10_0.jpg"


def test_each_zip_may_be_unpacked_into_a_folder_of_its_name(root: Path) -> None:
    folder = root / "covid_ct/Images-processed/CT_COVID"
    folder.rename(root / "moved")
    folder.mkdir()
    (root / "moved").rename(folder / folder.name)
    assert len(plugin.load(root, seed=0).train) == 4


def test_the_download_may_lie_deeper(root: Path) -> None:
    (root / "covid_ct").rename(root / "unpacked")
    (root / "covid_ct/COVID-CT-master").mkdir(parents=True)
    (root / "unpacked").rename(root / "covid_ct/COVID-CT-master/all")
    assert len(plugin.load(root, seed=0).train) == 4


def test_an_incomplete_copy_runs_without_the_listed_images_that_are_not_there(root: Path) -> None:
    (root / "covid_ct/Images-processed/CT_COVID/bmj.m606.full-p3-17%0.png").unlink()
    splits = plugin.load(root, seed=0)
    assert splits.val.labels.tolist() == [0, 0, 1]
    assert "Incomplete copy: 9 of 746 images are here." in splits.notes


def test_a_part_without_any_image_is_missing(root: Path) -> None:
    for label, names in [(label, names) for (label, part), names in LISTS.items() if part == "test"]:
        for name in names:
            (root / "covid_ct/Images-processed" / f"CT_{label}" / name).unlink()
    with pytest.raises(MissingDataError, match=r"none of 2 listed files exists, e\.g\. .*14%0.jpg\. Clone"):
        plugin.load(root, seed=0)


def test_a_missing_list_is_named(root: Path) -> None:
    (root / "covid_ct/Data-split/COVID/valCT_COVID.txt").unlink()
    with pytest.raises(MissingDataError, match=r"valCT_COVID\.txt"):
        plugin.load(root, seed=0)


def test_images_still_zipped_are_unpacked_beside_their_zip(root: Path) -> None:
    images = root / "covid_ct/Images-processed"
    before = fingerprint(plugin.load(root, seed=0))
    for name in ("CT_COVID", "CT_NonCOVID"):
        shutil.make_archive(str(images / name), "zip", images, name)
        shutil.rmtree(images / name)
    assert plugin.presence(root).packed
    assert fingerprint(plugin.load(root, seed=0)) == before


def test_the_whole_repository_as_one_zip_with_zips_in_it(root: Path) -> None:
    before = fingerprint(plugin.load(root, seed=0))
    images, top = root / "covid_ct/Images-processed", root / "COVID-CT-master"
    for name in ("CT_COVID", "CT_NonCOVID"):
        shutil.make_archive(str(images / name), "zip", images, name)
        shutil.rmtree(images / name)
    (root / "covid_ct").rename(top)
    shutil.make_archive(str(root / "covid_ct/COVID-CT-master"), "zip", root, top.name)
    assert fingerprint(plugin.load(root, seed=0)) == before


def test_a_missing_folder_of_images_is_named(root: Path) -> None:
    shutil.rmtree(root / "covid_ct/Images-processed/CT_COVID")
    with pytest.raises(MissingDataError, match=r"covid_ct lacks Images-processed/CT_COVID\. Clone"):
        plugin.load(root, seed=0)


def test_missing_data_name_where_they_were_searched_and_how_to_get_them(tmp_path: Path) -> None:
    with pytest.raises(MissingDataError, match=r"covid_ct does not exist\. Clone https"):
        plugin.load(tmp_path, seed=0)


def test_the_real_images(data_root: Path) -> None:
    if not (data_root / "covid_ct").is_dir():
        pytest.skip(f"no COVID-CT in {data_root}")
    splits = plugin.load(data_root, seed=0)
    counts = {name: np.bincount(part.labels).tolist() for name, part in splits.parts.items()}
    assert counts == {"train": [234, 191], "val": [58, 60], "test": [105, 98]}
    assert len({group for part in splits.parts.values() for group in part.groups if group.startswith("COVID")}) == 58
    assert splits.notes == (
        "1 source paper is in both train and val (12 images).",
        "1 source paper is in both train and test (6 images).",
        "1 source paper is in both val and test (14 images).",
    )
    assert fingerprint(splits) == fingerprint(plugin.load(data_root, seed=1))
