from __future__ import annotations

import hashlib
import json
import os
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image

from peftbench.core.contract import DatasetCard, Labels, Part, Splits
from peftbench.data import splits as splits_
from peftbench.data.splits import (
    cached_file_digest,
    carve,
    crossings,
    drop_unknown_group_key,
    fingerprint,
    join_duplicates,
    join_pairs,
    split,
)
from peftbench.errors import SplitError
from tests.images import photo
from tests.images import splits as image_files

SHARES = (0.7, 0.1, 0.2)


def part(prefix: str, labels: list[int], groups: list[str] | None = None, pixel: int = 0) -> Part:
    names = tuple(f"{prefix}{i}" for i in range(len(labels)))
    images = np.full((len(labels), 4, 4, 3), pixel, np.uint8)
    return Part(images, np.asarray(labels, np.int64), names, tuple(groups or names))


def example(images: int = 300, groups: int = 60) -> tuple[Labels, list[str]]:
    rng = np.random.default_rng(0)
    return rng.integers(0, 3, images), [f"patient {g}" for g in rng.integers(0, groups, images)]


# --- split -----------------------------------------------------------------------------------------------------------


def test_parts_hold_every_image_once() -> None:
    labels, groups = example()
    parts = split(labels, groups, SHARES, seed=0)
    assert sorted(np.concatenate(parts)) == list(range(300))


def test_shares_of_classes_are_exact_where_every_image_is_a_group() -> None:
    labels = np.repeat([0, 1, 2], [437, 210, 133])
    parts = split(labels, [str(i) for i in range(780)], SHARES, seed=0)
    assert [np.bincount(labels[part]).tolist() for part in parts] == [[306, 147, 93], [44, 21, 13], [87, 42, 27]]


def test_shares_of_classes_are_close_where_groups_are_large() -> None:
    labels, groups = example()
    for found, share in zip(split(labels, groups, SHARES, seed=0), SHARES, strict=True):
        assert np.abs(np.bincount(labels[found]) - share * np.bincount(labels)).max() <= 2


def test_shares_need_not_add_up_to_one() -> None:
    labels, groups = example()
    percent = split(labels, groups, (70, 10, 20), seed=0)
    assert [len(found) for found in percent] == [len(found) for found in split(labels, groups, SHARES, seed=0)]


def test_the_same_seed_gives_the_same_parts_and_another_seed_others() -> None:
    labels, groups = example()
    first, again, other = (split(labels, groups, SHARES, seed) for seed in (0, 0, 1))
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not np.array_equal(first[1], other[1])


def test_a_rare_class_is_in_every_part() -> None:
    labels = np.repeat([0, 1], [997, 3])
    parts = split(labels, [str(i) for i in range(1000)], SHARES, seed=0)
    assert [int((labels[found] == 1).sum()) for found in parts] == [1, 1, 1]


def test_two_images_of_a_class_go_to_train_and_test_one_image_to_train() -> None:
    for images, expected in ((2, [1, 0, 1]), (1, [1, 0, 0])):
        labels = np.repeat([0, 1], [100, images])
        parts = split(labels, [str(i) for i in range(100 + images)], SHARES, seed=0)
        assert [int((labels[found] == 1).sum()) for found in parts] == expected


@settings(max_examples=50)
@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 30)), min_size=60, max_size=200),
    st.integers(0, 5),
)
def test_no_group_is_in_two_parts(images: list[tuple[int, int]], seed: int) -> None:
    labels, groups = np.asarray([label for label, _ in images]), [str(group) for _, group in images]
    assume(len(set(groups)) >= 10)
    parts = [{groups[i] for i in found} for found in split(labels, groups, SHARES, seed)]
    assert not [left & right for left, right in combinations(parts, 2) if left & right]


@pytest.mark.parametrize(
    ("labels", "groups", "shares", "message"),
    [
        ([0, 1], ["a", "b"], (0.7, 0.1, 0.2), "^2 images are too few for 3 parts"),
        ([0, 1, 0, 1], ["a"] * 4, (0.5, 0.5), "^4 images in 1 groups are too few for 2 parts"),
        ([0, 1], ["a"], (0.5, 0.5), "got 2 and 1"),
        ([0, 1], ["a", "b"], (1.0, 0.0), "must be above 0"),
    ],
)
def test_what_cannot_be_split_is_refused(
    labels: list[int], groups: list[str], shares: tuple[float, ...], message: str
) -> None:
    with pytest.raises(SplitError, match=message):
        split(np.asarray(labels), groups, shares, seed=0)


def test_carving_takes_whole_groups_off() -> None:
    labels, groups = example()
    whole = part("image", labels.tolist(), groups)
    rest, cut = carve(whole, 0.1, seed=0)
    assert len(rest) + len(cut) == 300
    assert abs(len(cut) - 30) <= 2
    assert not set(rest.groups) & set(cut.groups)


# --- groups ----------------------------------------------------------------------------------------------------------


def test_equal_bytes_join_the_groups_of_both_images_wholly() -> None:
    groups = join_duplicates(["x", "y", "x", "z"], ["a", "a", "b", "c"])
    assert groups == ("a", "a", "a", "c")


def test_pairs_join_in_chains() -> None:
    assert join_pairs([(3, 2), (1, 2)], ["a", "b", "c", "d", "e"]) == ("a", "b", "b", "b", "e")


def test_crossings_count_groups_and_images_and_name_no_group() -> None:
    parts = {
        "train": part("t", [0, 1, 0], ["secret", "secret", "x"]),
        "val": part("v", [0, 1], ["y", "z"]),
        "test": part("s", [0, 1], ["secret", "x"]),
    }
    assert crossings(parts, "patient") == ("2 patients are in both train and test (5 images).",)


# --- contents --------------------------------------------------------------------------------------------------------


def splits(test: Part | None = None) -> Splits:
    return Splits(part("t", [0, 1]), part("v", [0, 1]), test or part("s", [0, 1]), rule="official")


@pytest.mark.parametrize(
    "changed",
    [
        part("other", [0, 1]),
        part("s", [1, 0]),
        part("s", [0, 1], ["a", "a"]),
        part("s", [0, 1], pixel=1),
    ],
    ids=["name", "label", "group", "pixel"],
)
def test_a_fingerprint_changes_with_every_name_label_group_and_pixel(changed: Part) -> None:
    assert fingerprint(splits()) == fingerprint(splits())
    assert fingerprint(splits()) != fingerprint(splits(test=changed))


def test_a_fingerprint_changes_with_a_files_bytes_but_not_with_its_place(tmp_path: Path) -> None:
    def found(name: str, content: bytes) -> str:
        file = tmp_path / name
        file.write_bytes(content)
        return fingerprint(splits(test=Part([file], np.zeros(1, np.int64), ("s0",), ("g",))))

    assert found("here", b"1") == found("there", b"1") != found("here", b"2")


def test_a_card_promises_no_groups_that_the_copy_does_not_tell() -> None:
    card = DatasetCard("OCT", "retina", ("a", "b"), "none", "drawn", group_key="patient")
    alone = Splits(part("a", [0, 1]), part("b", [0]), part("c", [1]), "official")
    assert not drop_unknown_group_key(card, alone).group_key
    assert drop_unknown_group_key(card, replace(alone, test=part("c", [1], ["patient 7"]))).group_key == "patient"


def test_a_file_is_read_again_only_once_it_has_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, reads = tmp_path / "a.png", list[Path]()
    file.write_text("one")
    monkeypatch.setattr(splits_, "SETTLED", 0)

    def read(asked: Path) -> str:
        reads.append(asked)
        return asked.read_text()

    monkeypatch.setattr(splits_, "sha256_file", read)
    assert [cached_file_digest(file), cached_file_digest(file)] == ["one", "one"]
    assert len(reads) == 1
    before = file.stat()
    file.write_text("two")  # of the same size; and then its time is put back
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert cached_file_digest(file) == "two"


def test_a_file_that_has_just_changed_is_always_read(tmp_path: Path) -> None:
    file = tmp_path / "a.png"
    digests = set[str]()
    for i in range(20):  # within a tick of the disk's clock
        file.write_text(f"{i:02}")
        digests.add(cached_file_digest(file))
    assert len(digests) == 20


# --- images that version 0.1.0 decoded otherwise ---------------------------------------------------------------------


def before(splits: Splits) -> str:
    """The fingerprint of version 0.1.0."""
    total = hashlib.sha256()
    for name, one in splits.parts.items():
        contents = [hashlib.sha256(Path(file).read_bytes()).hexdigest() for file in one.images]
        total.update(json.dumps([name, one.names, one.labels.tolist(), one.groups, contents]).encode())
    return total.hexdigest()


def test_data_whose_pixels_are_the_same_keep_their_fingerprint_and_others_do_not(tmp_path: Path) -> None:
    found = image_files(tmp_path / "d")
    assert fingerprint(found) == before(found)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(photo()).save(tmp_path / "d/0.png", exif=exif)
    assert fingerprint(found) != before(found)
