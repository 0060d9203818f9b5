from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from peftbench.data import availability
from peftbench.errors import MissingDataError, RequestError
from peftbench.study import defaults
from tests import studies
from tests.datasets.medmnist_files import write_set


def busi(root: Path, images: int) -> Path:
    """BUSI's folders, the images empty: nothing is opened."""
    for name, count in {"benign": 437, "malignant": 210, "normal": 133}.items():
        folder = root / "busi/Dataset_BUSI_with_GT" / name
        folder.mkdir(parents=True)
        for i in range(min(count, images)):
            (folder / f"{name} ({i}).png").touch()
            (folder / f"{name} ({i})_mask.png").touch()
    return root


def group(word: str, tmp_path: Path, root: Path) -> tuple[tuple[str, ...], str]:
    where = replace(studies.places(tmp_path), data=root)
    study, notes = defaults.complete(studies.study(methods=("linear",), datasets=(word,)), where)
    return study.datasets, " ".join(notes)


@pytest.mark.parametrize(("images", "state"), [(1000, "complete"), (100, "incomplete (300 of 780)"), (0, "no")])
def test_a_copy_is_complete_incomplete_or_not_here(images: int, state: str, tmp_path: Path) -> None:
    assert availability.describe_presence("busi", busi(tmp_path, images)) == state


def test_a_packed_copy_is_reported_and_counts_once_unpacked(tmp_path: Path) -> None:
    home = busi(tmp_path, 1000) / "busi"
    shutil.make_archive(str(home / "Dataset_BUSI_with_GT"), "zip", home, "Dataset_BUSI_with_GT")
    shutil.rmtree(home / "Dataset_BUSI_with_GT")
    assert availability.describe_presence("busi", tmp_path) == "packed, unpacked when first used"
    assert not (home / "Dataset_BUSI_with_GT").exists()


def test_what_is_packed_is_unpacked_to_learn_whether_it_is_complete(tmp_path: Path) -> None:
    home = tmp_path / "chest_xray"
    for name in ("train/NORMAL/IM-1.jpeg", "train/PNEUMONIA/p_bacteria_1.jpeg", "test/NORMAL/a", "test/PNEUMONIA/a"):
        (home / "chest_xray" / name).parent.mkdir(parents=True, exist_ok=True)
        (home / "chest_xray" / name).touch()
    shutil.make_archive(str(home / "ChestXRay2017"), "zip", home, "chest_xray")
    shutil.rmtree(home / "chest_xray")
    assert not availability.is_complete("chest_xray", tmp_path)
    assert availability.describe_presence("chest_xray", tmp_path) == "incomplete (2 of 5,840)"


def test_all_leaves_an_incomplete_copy_out_with_a_note(tmp_path: Path) -> None:
    names, notes = group("all", tmp_path, busi(tmp_path / "data", 100))
    assert all(name.startswith("phantom_") for name in names)
    assert "incomplete, and run only when named: busi (300 of 780)" in notes


def test_all_takes_a_complete_copy(tmp_path: Path) -> None:
    names, notes = group("all", tmp_path, busi(tmp_path / "data", 1000))
    assert names == ("busi",)
    assert "all = 1 of the paper's 6 data sets; not in" in notes


def test_medmnist_means_those_of_the_twelve_that_are_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(MissingDataError, match=r"No data set of MedMNIST\+ is in .*\. Run `peftbench data fetch"):
        group("medmnist", tmp_path, tmp_path / "data")
    write_set(tmp_path / "data", "breastmnist", 64, monkeypatch)
    assert group("medmnist", tmp_path, tmp_path / "data")[0] == ("medmnist:breastmnist[size=64]",)
    assert availability.describe_presence("medmnist", tmp_path / "data") == "1 of 12"


def test_every_means_all_real_sets_that_are_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    busi(tmp_path / "data", 1000)
    write_set(tmp_path / "data", "breastmnist", 28, monkeypatch)
    assert group("every", tmp_path, tmp_path / "data")[0] == ("busi", "medmnist:breastmnist[size=28]")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("medmnist", "write medmnist:NAME"),
        ("table", "write table:PATH"),
        ("busi[size=3]", "write busi"),
        ("medmnist:pathmnist@random", "write medmnist:NAME"),
        ("medmnist:pathmnist[sise=64]", "has no field 'sise'; its fields are name, size"),
        ("medmnist:pathmnist[size=large]", "size must be a whole number, got large"),
    ],
)
def test_a_name_with_too_much_or_too_little_is_refused(text: str, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        availability.open_dataset(text)


def test_the_list_shows_what_is_here_and_how_to_get_the_rest(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    busi(tmp_path, 100)
    assert studies.call(["list", "datasets", "--json", "--data", str(tmp_path)], monkeypatch) == 0
    rows = json.loads(capsys.readouterr().out)
    assert rows["busi"]["here"] == "incomplete (300 of 780)"
    assert rows["covid_ct"] | {"licence": "", "how to get": ""} == {
        "here": "no",
        "modality": "lung CT",
        "classes": 2,
        "sizes": {"train": 425, "val": 118, "test": 203},
        "licence": "",
        "how to get": "",
    }
    assert rows["phantom_ct"]["here"] == "built in"
    assert rows["medmnist"]["classes"] == "2 to 14"
    studies.call(["list", "datasets", "--data", str(tmp_path)], monkeypatch)
    given = " ".join(capsys.readouterr().out.split())
    assert "limuc: Download train_and_validation_sets.zip" in given
    assert "phantom_ct: " not in given


def test_a_faulty_description_does_not_hide_the_others(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "datasets").mkdir()
    (tmp_path / "datasets/mine.toml").write_text("title = 3")
    assert studies.call(["list", "datasets", "--json"], monkeypatch) == 0
    rows = json.loads(capsys.readouterr().out)
    assert "mine.toml: key" in rows["mine"]["here"]
    assert rows["busi"]["here"] == "no"


def test_presence_is_found_without_torch() -> None:
    code = (
        "import sys; from pathlib import Path; from peftbench.data.availability import describe_presence; "
        "[describe_presence(name, Path('x')) for name in ('oct', 'medmnist')]; "
        "print([m for m in ('torch', 'pandas', 'scipy', 'medmnist') if m in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


@pytest.mark.parametrize(("name", "written"), [("clinic", "folder:clinic"), ("clinic.csv", "table:clinic.csv")])
def test_a_folder_or_a_table_without_a_path_is_an_error_with_the_right_form(
    name: str, written: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for file in ("clinic/ill/1.png", "clinic/well/2.png", "clinic.csv"):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).touch()
    with pytest.raises(RequestError, match=f"write {written}"):
        availability.open_dataset(name)
    assert availability.open_dataset("clinic/") == availability.open_dataset("folder:clinic/")
