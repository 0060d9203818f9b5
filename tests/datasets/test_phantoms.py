from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from peftbench.core.contract import Labels, Part, Splits
from peftbench.datasets import (
    phantom_ct,
    phantom_endoscopy,
    phantom_histology,
    phantom_oct,
    phantom_ultrasound,
    phantom_xray,
)
from peftbench.datasets._phantom import PATIENTS, Cohort, Phantom, draw_splits, grey_levels, to_pixels

PHANTOMS = [
    phantom_ct.plugin,
    phantom_endoscopy.plugin,
    phantom_histology.plugin,
    phantom_oct.plugin,
    phantom_ultrasound.plugin,
    phantom_xray.plugin,
]


@pytest.fixture(params=PHANTOMS, ids=lambda phantom: phantom.name, scope="module")
def phantom(request: pytest.FixtureRequest) -> Phantom:
    chosen: Phantom = request.param
    return chosen


@pytest.fixture(scope="module")
def splits(phantom: Phantom) -> Splits:
    return phantom.load(Path("nowhere"), seed=0)


def test_the_parts_hold_360_120_and_240_images_of_64_px(splits: Splits) -> None:
    for part, n in zip(splits.parts.values(), (360, 120, 240), strict=True):
        assert isinstance(part.images, np.ndarray)
        assert part.images.shape == (n, 64, 64, 3)
        assert part.images.dtype == np.uint8
        assert part.labels.shape == (n,)
        assert part.labels.dtype == np.int64
        assert len(part.names) == len(set(part.names)) == len(part.groups) == n


def test_no_patient_is_in_two_parts(splits: Splits) -> None:
    patients = [set(part.groups) for part in splits.parts.values()]
    assert [len(p) for p in patients] == [len(p) for p in PATIENTS.values()]
    assert len(set.union(*patients)) == sum(len(p) for p in patients)


def test_a_patient_has_two_to_four_images(splits: Splits) -> None:
    for part in splits.parts.values():
        _, images = np.unique(part.groups, return_counts=True)
        assert set(images.tolist()) == {2, 3, 4}


def test_a_name_holds_data_set_part_patient_and_visit(phantom: Phantom, splits: Splits) -> None:
    assert splits.val.names[:2] == (f"{phantom.name}/val/p120_1", f"{phantom.name}/val/p120_2")
    assert splits.val.groups[:2] == ("p120", "p120")


def test_every_class_is_in_every_part(phantom: Phantom, splits: Splits) -> None:
    for part in splits.parts.values():
        assert set(part.labels.tolist()) == set(range(len(phantom.card.classes)))


def test_images_of_a_patient_agree_on_the_class_as_the_modality_requires(phantom: Phantom, splits: Splits) -> None:
    pairs = set(zip(splits.train.groups, splits.train.labels.tolist(), strict=True))
    assert (len(pairs) == len(set(splits.train.groups))) == phantom.by_patient


def test_no_two_images_are_the_same(splits: Splits) -> None:
    images = np.concatenate([np.asarray(part.images) for part in splits.parts.values()])
    assert len(np.unique(images.reshape(len(images), -1), axis=0)) == len(images)


def test_the_card_is_synthetic_and_names_the_group_key(phantom: Phantom) -> None:
    card = phantom.card
    assert "synthetic" in card.title
    assert card.synthetic
    assert card.group_key == "patient"
    assert len(card.classes) == len(phantom.shares)


def test_only_colonoscopy_is_graded() -> None:
    assert {p.name for p in PHANTOMS if p.card.task == "ordinal"} == {"phantom_endoscopy"}


def test_each_phantom_has_a_seed_of_its_own() -> None:
    assert len({phantom.seed for phantom in PHANTOMS}) == len(PHANTOMS)


def test_neither_folder_nor_seed_changes_the_data(tmp_path: Path) -> None:
    assert phantom_oct.plugin.load(tmp_path, seed=7) is phantom_oct.plugin.load(Path("nowhere"), seed=0)


def test_drawing_again_gives_the_same_pixels() -> None:
    first = phantom_oct.plugin.load(Path("nowhere"), seed=0)
    again = draw_splits.__wrapped__(phantom_oct.plugin)
    np.testing.assert_array_equal(np.asarray(again.test.images), np.asarray(first.test.images))
    np.testing.assert_array_equal(again.test.labels, first.test.labels)


def test_statistics_of_the_pixels_do_not_tell_the_class(splits: Splits) -> None:
    """Mean, spread and histogram of each channel, fitted on train and val, stay near chance on test."""
    seen, labels = _statistics(splits.train, splits.val), np.concatenate([splits.train.labels, splits.val.labels])
    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=500)).fit(seen, labels)
    guessed = model.predict(_statistics(splits.test))
    assert f1_score(splits.test.labels, guessed, average="macro") < _chance(splits.test.labels) + 0.1


def _statistics(*parts: Part) -> NDArray[np.float64]:
    pixels = np.concatenate([np.asarray(part.images) for part in parts]).reshape(-1, 64 * 64, 3)
    n = len(pixels)
    bins = (pixels >> 4) + 16 * np.arange(3) + 48 * np.arange(n)[:, None, None]  # 16 levels of each channel and image
    shares = np.bincount(bins.ravel(), minlength=48 * n).reshape(n, 48) / 64**2
    return np.concatenate([pixels.mean(1), pixels.std(1), shares], axis=1)


def _chance(labels: Labels) -> float:
    """Macro F1 of a guess that is as common as each class is: 1 over the number of classes, nearly."""
    return float(1 / len(np.unique(labels)))


def _cohort() -> Cohort:
    return Cohort(np.array([0, 0, 1, 1]), np.array([0, 0, 0, 1]), np.random.Generator(np.random.PCG64(0)))


def test_what_is_shared_is_the_same_in_all_images_of_a_patient() -> None:
    drawn = _cohort().shared(0, 1)
    assert drawn.shape == (4, 1, 1)
    assert drawn[0] == drawn[1] == drawn[2] != drawn[3]


def test_what_is_not_shared_differs_from_image_to_image() -> None:
    assert len(np.unique(_cohort().each(0, 1))) == 4


def test_by_class_gives_the_value_of_the_label() -> None:
    assert _cohort().by_class(5, 7).ravel().tolist() == [5, 5, 7, 7]


def test_noise_has_unit_variance_whatever_its_grain() -> None:
    for grain in (0.5, 2.0):
        assert _cohort().noise(grain).std() == pytest.approx(1, abs=0.15)


def test_grey_levels_keep_the_order_and_set_the_histogram() -> None:
    field = _cohort().noise(2)
    dark, bright, bend = (np.full((4, 1, 1), value) for value in (0.1, 0.9, 2.0))
    levels = grey_levels(field, dark, bright, bend)
    flat, order = levels.reshape(4, -1), np.argsort(field.reshape(4, -1), axis=1)
    assert (np.diff(np.take_along_axis(flat, order, axis=1), axis=1) > 0).all()
    np.testing.assert_array_equal(np.sort(flat, axis=1), np.tile(np.sort(flat[0]), (4, 1)))


def test_pixels_are_rounded_and_clipped_and_grey_is_repeated_to_rgb() -> None:
    shown = to_pixels(np.array([[[-1.0, 0.5, 2.0]]]))
    assert shown.tolist() == [[[[0, 0, 0], [128, 128, 128], [255, 255, 255]]]]
