"""Other cuts of the same data: what must never cross parts, what must stay as it was, what lies within what."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from peftbench.core.contract import DatasetCard, Part, Splits
from peftbench.core.record import Variant
from peftbench.core.spec import Study
from peftbench.data import pixel_cache
from peftbench.data.splits import crossings
from peftbench.data.subsets import apply_variant, deduplicated, grouped, select_share, select_shots
from peftbench.errors import RequestError, SplitError
from peftbench.study.resolve import resolve
from peftbench.study.tuning import Draft
from tests import studies

CLASSES = ("benign", "malignant", "normal")
CARD = DatasetCard("Drawn", "none", CLASSES, "none", "drawn from a seed", group_key="patient")


def part(prefix: str, labels: list[int], groups: list[str] | None = None) -> Part:
    names = tuple(f"{prefix}{i}" for i in range(len(labels)))
    return Part(np.zeros((len(labels), 2, 2, 3), np.uint8), np.asarray(labels, np.int64), names, tuple(groups or names))


def leaking() -> Splits:
    train = part("train", [0, 1, 2, 0, 1, 2, 0], ["a", "a", "b", "c", "d", "e", "f"])
    val, test = part("val", [0, 1, 2], ["b", "g", "h"]), part("test", [0, 1, 2], ["a", "h", "i"])
    parts = {"train": train, "val": val, "test": test}
    return Splits(train, val, test, "official", ("as published", *crossings(parts, "patient")))


Images = list[tuple[int, int]]  # label and group of each image
some_images = st.lists(st.tuples(st.integers(0, 2), st.integers(0, 12)), min_size=1, max_size=8)


def drawn(train: Images, val: Images, test: Images) -> Splits:
    parts = [
        part(n, [x for x, _ in p], [f"g{g}" for _, g in p]) for n, p in zip("tvs", (train, val, test), strict=True)
    ]
    return Splits(parts[0], parts[1], parts[2], "official")


# --- leaks -----------------------------------------------------------------------------------------------------------


def test_grouped_leaves_test_as_it_is_and_drops_what_lies_in_a_later_part() -> None:
    found = grouped(leaking(), "patient")
    assert found.train.names == ("train3", "train4", "train5", "train6")
    assert found.val.names == ("val0", "val1")
    assert found.test.names == leaking().test.names
    assert found.rule == "official, grouped"


def test_grouped_notes_what_it_left_out_and_no_longer_what_crossed() -> None:
    assert grouped(leaking(), "patient").notes == (
        "as published",
        "grouped: 3 images of train and 1 of val left out because their patient is also in a later part.",
    )


@settings(max_examples=40)
@given(some_images, some_images, some_images)
def test_no_group_crosses_after_grouped(train: Images, val: Images, test: Images) -> None:
    try:
        found = grouped(drawn(train, val, test), "patient")
    except SplitError as error:
        assert "would leave no image in" in str(error)  # noqa: PT017 - nothing left is an answer, too
        return
    assert crossings(found.parts, "patient") == ()
    assert found.test.names == drawn(train, val, test).test.names


def test_deduplicated_drops_what_resembles_a_later_part() -> None:
    pairs = [("test0", "train3"), ("val1", "train4"), ("test1", "val1"), ("train5", "train6"), ("test0", "gone")]
    found = deduplicated(leaking(), "patient", pairs[:3])
    assert found.train.names == ("train5", "train6")
    assert found.val.names == ("val0",)
    assert found.rule == "official, deduplicated"


def test_deduplicated_drops_doubles_of_another_label_but_never_from_test() -> None:
    found = deduplicated(leaking(), "patient", [("train5", "train6"), ("test0", "test1"), ("train3", "unheard of")])
    assert found.train.names == ("train3", "train4")
    assert found.test.names == leaking().test.names
    assert "0 images of train and val left out as duplicates of a later part, 2 more" in found.notes[-1]


def test_deduplicated_keeps_doubles_of_one_label_within_a_part() -> None:
    assert "train6" in deduplicated(leaking(), "patient", [("train3", "train6")]).train.names


@settings(max_examples=40)
@given(some_images, some_images, some_images, st.data())
def test_no_pair_crosses_or_contradicts_after_deduplicated(
    train: Images, val: Images, test: Images, data: st.DataObject
) -> None:
    splits = drawn(train, val, test)
    names = [name for one in splits.parts.values() for name in one.names]
    pairs = data.draw(st.lists(st.tuples(st.sampled_from(names), st.sampled_from(names)), max_size=5))
    try:
        found = deduplicated(splits, "patient", pairs)
    except SplitError:
        assume(False)  # noqa: FBT003 - nothing is left
        return
    place = {name: key for key, one in found.parts.items() for name in one.names}
    label = {name: int(one.labels[i]) for one in found.parts.values() for i, name in enumerate(one.names)}
    left = [(a, b) for a, b in pairs if a in place and b in place]
    assert all(place[a] == place[b] for a, b in left)
    assert all(label[a] == label[b] or place[a] == "test" for a, b in left)


def test_a_cut_that_leaves_nothing_is_refused() -> None:
    splits = drawn([(0, 1)], [(0, 2)], [(0, 1)])
    with pytest.raises(SplitError, match=r"--splits grouped would leave no image in train\. Use other"):
        grouped(splits, "patient")


# --- less of train ---------------------------------------------------------------------------------------------------


def big(images: int = 400, groups: int = 120, seed: int = 0) -> Part:
    rng = np.random.default_rng(seed)
    labels = rng.choice(3, images, p=[0.6, 0.3, 0.1])
    return part("t", labels.tolist(), [f"g{g}" for g in rng.integers(groups, size=images)])


@settings(max_examples=20)
@given(st.integers(0, 5), st.integers(0, 5))
def test_a_smaller_share_lies_within_a_larger_one(seed: int, draw: int) -> None:
    whole = big(seed=draw)
    nested = [set(select_share(whole, size, CLASSES, seed).tolist()) for size in (0.05, 0.1, 0.25, 0.5, 1.0)]
    assert all(small < large for small, large in pairwise(nested))
    assert nested[-1] == set(range(400))


@settings(max_examples=20)
@given(st.sampled_from([0.05, 0.1, 0.25, 0.6]), st.integers(0, 5), st.integers(0, 5))
def test_a_share_is_whole_groups_in_the_classes_proportions(size: float, seed: int, draw: int) -> None:
    whole = big(seed=draw)
    chosen = select_share(whole, size, CLASSES, seed)
    rest = np.setdiff1d(np.arange(400), chosen)
    assert not {whole.groups[i] for i in chosen} & {whole.groups[i] for i in rest}
    wanted = size * np.bincount(whole.labels)
    assert np.abs(np.bincount(whole.labels[chosen], minlength=3) - wanted).max() <= 12  # a group holds up to ten
    assert abs(len(chosen) - 400 * size) <= 8


def test_seeds_choose_other_images_and_the_same_seed_the_same() -> None:
    first, again, other = (select_share(big(), 0.1, CLASSES, seed).tolist() for seed in (0, 0, 1))
    assert first == again != other


def test_a_share_stays_nearly_the_same_where_a_group_is_left_out() -> None:
    whole = big()
    fewer = whole.take([i for i in range(400) if whole.groups[i] not in {"g3", "g70"}])
    with_, without = (
        {name for i, name in enumerate(one.names) if i in set(select_share(one, 0.25, CLASSES, 0).tolist())}
        for one in (whole, fewer)
    )
    assert len(with_ & without) > 0.9 * len(without)


def test_a_rare_class_is_in_every_share() -> None:
    whole = part("t", [0] * 97 + [1, 1, 2])
    assert set(whole.labels[select_share(whole, 0.03, CLASSES, 0)].tolist()) == {0, 1, 2}


def test_a_share_that_cannot_hold_every_class_is_refused_with_one_that_can() -> None:
    whole = part("t", [0, 1, 2] * 20, ["a"] * 30 + [f"g{i}" for i in range(30)])
    with pytest.raises(SplitError, match=r"--train-share 2% is 1 of 60 training images.*need 3.*Use 5.0% or"):
        select_share(part("t", [0, 1, 2] * 20), 0.02, CLASSES, 0)
    assert len(select_share(whole, 0.1, CLASSES, 0)) >= 3


def test_shots_are_exact_nested_and_from_as_many_groups_as_there_are() -> None:
    whole = big()
    nested = [select_shots(whole, shots, CLASSES, 3) for shots in (1, 4, 16)]
    assert [np.bincount(whole.labels[index]).tolist() for index in nested] == [[1] * 3, [4] * 3, [16] * 3]
    assert set(nested[0]) < set(nested[1]) < set(nested[2])
    for label in range(3):
        assert len({whole.groups[i] for i in nested[1] if whole.labels[i] == label}) == 4


def test_more_shots_than_images_are_refused() -> None:
    with pytest.raises(SplitError, match=r"--shots 4: class 'malignant' has only 3 images in train\."):
        select_shots(part("t", [0] * 9 + [1] * 3 + [2] * 9), 4, CLASSES, 0)


def test_shares_and_shots_know_images_of_several_labels_and_of_none() -> None:
    labels = np.asarray([[1, 1, 0], [0, 0, 0], [0, 1, 0], [0, 0, 1]] * 25)
    names = tuple(map(str, range(100)))
    whole = Part(np.zeros((100, 2, 2, 3), np.uint8), labels, names, names)
    chosen = select_share(whole, 0.2, CLASSES, 0)
    assert len(chosen) == 20
    assert (~labels[chosen].any(axis=1)).sum() == pytest.approx(5, abs=2)
    assert labels[select_shots(whole, 5, CLASSES, 0)].sum(axis=0).min() >= 5


# --- all together ----------------------------------------------------------------------------------------------------


def test_nothing_asked_for_changes_nothing() -> None:
    splits = leaking()
    assert apply_variant(splits, Variant(), CARD, [], 0) is splits


def test_a_cut_and_a_size_go_together_and_both_are_in_the_rule() -> None:
    found = apply_variant(leaking(), Variant("grouped", shots=1), CARD, [], 0)
    assert found.rule == "official, grouped, 1 shots"
    assert sorted(found.train.labels.tolist()) == [0, 1, 2]
    assert found.notes[-1] == "1 shots: 3 of 4 training images, 3 groups."


def test_a_subset_states_which_groups_still_cross() -> None:
    found = apply_variant(leaking(), Variant(share=0.8), CARD, [], 0)
    assert found.rule == "official, 80% of train"
    assert [note for note in found.notes if " in both " in note] == list(crossings(found.parts, "patient"))


@pytest.mark.parametrize(
    ("variant", "words"),
    [
        (Variant(), ""),
        (Variant("grouped"), "grouped"),
        (Variant(share=0.05), "5% of train"),
        (Variant("deduplicated", shots=8), "deduplicated, 8 shots"),
    ],
)
def test_a_variant_is_called(variant: Variant, words: str) -> None:
    assert str(variant) == words


# --- in a study ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return studies.home(tmp_path_factory)


def drafts(home: Path, **asked: object) -> Sequence[Draft]:
    return resolve(studies.small(home / "images", **asked), studies.places(home)).drafts


def test_every_cut_and_size_is_a_job_of_its_own(home: Path) -> None:
    found = drafts(home, splits=("official", "grouped"), train_share=("50%", "100%"))
    assert [str(draft.job.variant) for draft in found] == ["50% of train", "", "grouped, 50% of train", "grouped"]
    assert all(draft.job.split.endswith(str(draft.job.variant)) for draft in found)
    assert len({draft.job.id for draft in found}) == 4


def test_all_of_train_and_the_official_parts_are_the_job_as_ever(home: Path) -> None:
    asked = drafts(home, splits=("official",), train_share=("100%",))
    assert [draft.job.id for draft in asked] == [draft.job.id for draft in drafts(home)]


def test_shots_take_as_many_images_of_each_class(home: Path) -> None:
    (draft,) = drafts(home, shots=(2,))
    data = pixel_cache.open_prepared(draft.job.fingerprint, draft.job.preprocessing, studies.places(home).cache)
    assert np.bincount(data.labels["train"]).tolist() == [2, 2, 2]


def test_trials_see_the_cut_that_they_tune(home: Path) -> None:
    (draft,) = drafts(home, shots=(2,), tune=2)
    assert draft.search
    assert draft.search.job.split == draft.job.split


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"train_share": ("5",)}, "--train-share must be a share above 0%"),
        ({"train_share": ("0%",)}, "above 0% and at most 100%"),
        ({"train_share": ("5%",), "shots": (4,)}, "--train-share and --shots exclude each other"),
        ({"shots": (0,)}, "study: shots must be above 0, got 0"),
        ({"splits": ()}, "study: splits must not be empty"),
    ],
)
def test_what_is_no_size_of_train_is_refused(asked: dict[str, tuple[object, ...]], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        Study(**asked)  # type: ignore[arg-type]
