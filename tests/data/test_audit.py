"""What is wrong with a data set: planted faults are found and counted, clean images are left in peace."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from peftbench.core.contract import Splits
from peftbench.data import audit, image_scan, pixel_cache
from peftbench.data.audit import Audit
from peftbench.data.availability import open_dataset
from peftbench.errors import MissingDataError
from peftbench.study.resolve import resolve
from peftbench.training.record_writer import make_record
from tests import studies
from tests.studies import call

CLEAN = dict.fromkeys(audit.DESCRIPTIONS, 0)


def save(file: Path, seed: int, kind: str = "PNG") -> Path:
    """Smooth noise that no other seed's resembles."""
    rough = np.random.default_rng(seed).integers(0, 256, (8, 8), dtype=np.uint8)
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(rough).resize((80, 64), Image.Resampling.BICUBIC).save(file, kind)
    return file


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Three parts of two classes, five, three and four images per class; no two alike."""
    root, seed = tmp_path / "images", 0
    for part, count in (("train", 5), ("val", 3), ("test", 4)):
        for label in ("benign", "malignant"):
            for i in range(count):
                save(root / part / label / f"{i}.png", seed := seed + 1)
    return root


def check(images: Path, cache: Path) -> Audit:
    dataset = open_dataset(f"folder:{images}")
    splits = dataset.load(Path(), 0)
    return Audit(dataset.card, splits, image_scan.scan(splits, cache))


# --- what is found ---------------------------------------------------------------------------------------------------


def test_clean_images_are_left_in_peace(images: Path, tmp_path: Path) -> None:
    found = check(images, tmp_path)
    assert found.counts == CLEAN
    assert found.balance == {"train": [5, 5], "val": [3, 3], "test": [4, 4]}
    assert found.sizes == ((80, 64), (80, 64))
    assert audit.warning(found.counts) == ""


def test_a_file_in_two_parts_and_two_classes(images: Path, tmp_path: Path) -> None:
    copy = images / "test" / "malignant" / "copy.png"
    copy.write_bytes((images / "train" / "benign" / "0.png").read_bytes())
    found = check(images, tmp_path)
    kinds = {"groups_across_parts", "identical", "near_pairs", "contradicting_pairs"}
    across = {"identical_across_parts", "near_pairs_across_parts"}
    assert found.counts == CLEAN | dict.fromkeys(kinds | across, 1)
    assert found.found["identical"] == ("test/malignant/copy.png (test) = train/benign/0.png (train)",)
    assert audit.warning(found.counts).startswith("the audit found groups in several parts: 1; sets of")


def test_a_file_three_times_is_one_set_and_three_pairs(images: Path, tmp_path: Path) -> None:
    for i in (10, 11):
        (images / f"train/benign/{i}.png").write_bytes((images / "train/benign/0.png").read_bytes())
    counts = check(images, tmp_path).counts
    assert (counts["identical"], counts["near_pairs"], counts["contradicting_pairs"]) == (1, 3, 0)


def test_a_darker_and_smaller_copy_is_near_and_not_identical(images: Path, tmp_path: Path) -> None:
    with Image.open(images / "train/benign/0.png") as original:
        original.resize((60, 48)).point(lambda grey: 0.8 * grey).save(images / "test/benign/near.png")
    counts = check(images, tmp_path).counts
    assert counts == CLEAN | {"near_pairs": 1, "near_pairs_across_parts": 1}


def test_what_does_not_open_is_named_and_not_raised(images: Path, tmp_path: Path) -> None:
    (images / "val/benign/cut.png").write_bytes((images / "val/benign/0.png").read_bytes()[:200])
    (images / "val/benign/text.jpg").write_text("no image")
    assert check(images, tmp_path).found["broken"] == (
        "val/benign/cut.png (truncated at byte 200)",
        "val/benign/text.jpg (not an image: text)",
    )


def test_a_jpeg_that_is_called_png(images: Path, tmp_path: Path) -> None:
    save(images / "train/benign/camera.png", 99, "JPEG")
    save(images / "train/benign/right.JPG", 98, "JPEG")
    assert check(images, tmp_path).found["misnamed"] == ("train/benign/camera.png is JPEG",)


def test_a_class_without_an_image_in_a_part(images: Path, tmp_path: Path) -> None:
    for file in (images / "val" / "malignant").iterdir():
        file.unlink()
    (images / "val" / "malignant").rmdir()
    assert check(images, tmp_path).found["classes_missing"] == ("malignant in val",)


def test_of_a_subset_only_what_lies_in_it_counts(images: Path, tmp_path: Path) -> None:
    (images / "test/benign/copy.png").write_bytes((images / "train/benign/0.png").read_bytes())
    found = check(images, tmp_path)
    parts = found.splits.parts
    fewer = Splits(parts["train"].take(range(1, 10)), parts["val"], parts["test"], "fewer")
    assert Audit(found.card, fewer, found.scan).counts == CLEAN


def test_without_evidence_labels_and_groups_still_tell(images: Path, tmp_path: Path) -> None:
    found = check(images, tmp_path)
    assert Audit(found.card, found.splits).counts == {"groups_across_parts": 0, "classes_missing": 0, "left_out": 0}


# --- what is kept ----------------------------------------------------------------------------------------------------


def splits_of(images: Path) -> Splits:
    return open_dataset(f"folder:{images}").load(Path(), 0)


def test_images_are_read_once(images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = image_scan.scan(splits_of(images), tmp_path / "cache")
    monkeypatch.setattr(image_scan, "scan_images", lambda *_: pytest.fail("an image was read again"))
    assert image_scan.scan(splits_of(images), tmp_path / "cache") == first


def test_a_changed_image_is_looked_at_again(images: Path, tmp_path: Path) -> None:
    first = check(images, tmp_path)
    file = images / "train/benign/0.png"
    file.write_bytes((images / "train/benign/1.png").read_bytes())
    os.utime(file, ns=(1, 1))
    assert (first.counts["identical"], check(images, tmp_path).counts["identical"]) == (0, 1)


def test_a_change_of_the_pixel_limit_takes_effect(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    for limit in ("", "0.001", "0.002", ""):
        monkeypatch.setenv("PEFTBENCH_MAX_MEGAPIXELS", limit)
        seen = image_scan.scan(splits_of(images), tmp_path)
        found.append(set(seen.broken.values() if seen else ["none"]))
    why = "0.0051 megapixels exceed the limit of {}, see PEFTBENCH_MAX_MEGAPIXELS"
    assert found == [set(), {why.format("0.001")}, {why.format("0.002")}, set()]


def test_a_damaged_cache_is_rebuilt(images: Path, tmp_path: Path) -> None:
    first = check(images, tmp_path)
    (kept,) = (tmp_path / "audit").glob("*/*")
    kept.write_text("{")
    assert check(images, tmp_path).counts == first.counts
    assert json.loads(kept.read_text())["value"]["names"]


@pytest.mark.parametrize("key", ["digests", "names", "alike"])
def test_a_scan_that_was_changed_is_made_again(key: str, images: Path, tmp_path: Path) -> None:
    first = image_scan.scan(splits_of(images), tmp_path)
    (file,) = (tmp_path / "audit").glob("*/evidence.json")
    given = json.loads(file.read_text())
    given["value"][key] = [[0, 999, 0.999]] if key == "alike" else ["a"] * len(given["value"][key])
    file.write_text(json.dumps(given))
    assert image_scan.scan(splits_of(images), tmp_path) == first


def test_evidence_is_its_owners_only(images: Path, tmp_path: Path) -> None:
    check(images, tmp_path)
    (kept,) = (tmp_path / "audit").glob("*/*")
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600


def test_many_files_are_read_only_when_asked(images: Path, tmp_path: Path) -> None:
    assert image_scan.scan(splits_of(images), tmp_path, most=23) is None
    assert image_scan.scan(splits_of(images), tmp_path, most=24) is not None
    assert image_scan.scan(splits_of(images), tmp_path, most=23) is not None  # known by now


# --- in a run --------------------------------------------------------------------------------------------------------


def test_a_run_tells_and_its_record_holds_counts_and_names_no_image(images: Path, tmp_path: Path) -> None:
    (images / "test/malignant/secret.png").write_bytes((images / "train/benign/0.png").read_bytes())
    found = resolve(studies.small(images, methods=("majority",)), studies.places(tmp_path))
    assert f"`peftbench data check folder:{images}` lists them." in found.notes[-1]
    job, where = found.drafts[0].job, studies.places(tmp_path)
    data = pixel_cache.open_prepared(job.fingerprint, job.preprocessing, where.cache)
    record = make_record(job, where, data, "stopped before it began")
    assert record.data.audit["contradicting_pairs"] == 1
    assert record.data.balance["test"] == [4, 5]
    assert "secret" not in record.model_dump_json()


# --- the verbs -------------------------------------------------------------------------------------------------------


def test_data_check_states_what_is_wrong(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (images / "test/benign/copy.png").write_bytes((images / "train/benign/0.png").read_bytes())
    asked = ["data", "check", str(images), "--cache", str(tmp_path / "cache")]
    assert call(asked, monkeypatch) == 0
    printed = capsys.readouterr().out
    assert "sets of byte-identical images in several parts: 1" in printed
    assert "test/benign/copy.png (test) = train/benign/0.png (train)" in printed
    assert call([*asked, "--json"], monkeypatch) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["counts"]["identical_across_parts"] == 1
    assert facts["balance"]["test"] == [5, 4]


def test_show_dataset_draws_pictures_of_each_class(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    asked = ["show", "dataset", f"folder:{images}", "--cache", str(tmp_path), "--out", str(tmp_path / "a" / "grid.png")]
    assert call([*asked, "--json"], monkeypatch) == 0
    facts = json.loads(capsys.readouterr().out)
    with Image.open(facts["pictures"]) as grid:
        rows = np.asarray(grid).reshape(2, 128, 8 * 112, 3)
        assert [len(np.unique(row[16:])) > 20 for row in rows] == [True, True]
    assert facts["audit"]["counts"] == CLEAN


def test_show_dataset_of_what_is_not_here_tells_the_catalogues_facts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert call(["show", "dataset", "busi", "--data", str(tmp_path)], monkeypatch) == 0
    printed = capsys.readouterr().out
    assert "how_to_get" in printed
    assert "no audit and no pictures" in printed
    assert list(tmp_path.iterdir()) == []


# --- the real data ---------------------------------------------------------------------------------------------------


def real(name: str, root: Path, cache: Path) -> Audit:
    dataset = open_dataset(name)
    try:
        splits = dataset.load(root, 0)
    except MissingDataError as error:
        pytest.skip(str(error))
    return Audit(dataset.card, splits, image_scan.scan(splits, cache))


def test_busi_has_one_image_with_two_labels(data_root: Path, tmp_path: Path) -> None:
    found = real("busi", data_root, tmp_path)
    (twice,) = found.found["identical"]
    assert "benign/benign (433).png" in twice
    assert "malignant/malignant (145).png" in twice
    assert found.counts["near_pairs"] in {70, 73}  # at a short side of 224 pixels, and as published
    assert found.counts["contradicting_pairs"] == 5
    assert found.counts["near_pairs_across_parts"] == 0


def test_covid_ct_has_papers_and_pictures_in_two_parts(data_root: Path, tmp_path: Path) -> None:
    found = real("covid_ct", data_root, tmp_path)
    assert found.counts["groups_across_parts"] == 3
    assert found.counts["similar_pairs_across_parts"] == 2
    assert found.counts["identical"] == 0
