"""Where the pretraining of a backbone may have seen the test images, every table and the page state it."""

from __future__ import annotations

from pathlib import Path

import pytest

from peftbench.core import presets
from peftbench.results.answers import answers
from peftbench.results.protocol import data_columns
from peftbench.results.summary import pretraining_overlap, summarize
from peftbench.results.tables import caption, main_tables
from tests.records import Fake

REASON = "its pretraining contains this set (Kermany et al.)"


@pytest.mark.parametrize(
    ("backbone", "dataset", "seen"),
    [
        ("retfound_oct", "oct", True),
        ("retfound_oct[depth=8]", "medmnist:octmnist[size=64]", True),
        ("retfound_oct", "busi", False),
        ("retfound_oct@random", "oct", False),
        ("biomedclip", "covid_ct", True),
        ("biomedclip", "medmnist:breastmnist", True),
        ("medsiglip", "covid_ct", True),
        ("clip_vit_b16", "covid_ct", False),
        ("timm:vit_small_patch14_dinov2", "oct", False),
        ("retfound_oct", "folder:./oct", False),
    ],
)
def test_an_overlap_is_found_by_the_names_of_a_job(backbone: str, dataset: str, seen: bool) -> None:  # noqa: FBT001 - a parameter
    assert bool(presets.overlap(backbone, dataset)) is seen


def test_tables_protocol_and_answers_state_it(tmp_path: Path) -> None:
    pairs = [(method, data) for method in ("lora", "full") for data in ("oct", "busi")]
    found = [Fake(method, data, backbone="retfound_oct").write(tmp_path) for method, data in pairs]
    sentence = f"The pretraining of retfound_oct may have seen test images: oct: {REASON}."
    assert [sentence in text for text in caption(found)] == [True]
    for table in main_tables(found):
        assert (sentence in table.caption) is (table.subject != "busi"), table.subject
    (block,) = summarize(found)
    notes = dict(zip(block.datasets, data_columns(block)["notes"], strict=True))
    assert REASON in notes["oct"].text
    assert REASON not in notes["busi"].text
    (overlaps,) = [lines for question, lines in answers(found) if "overlaps" in question]
    assert f"oct: the pretraining of retfound_oct may have seen its test images: {REASON}." in overlaps


def test_random_weights_have_seen_nothing(tmp_path: Path) -> None:
    fake = Fake(dataset="oct", backbone="retfound_oct", random=True)
    assert pretraining_overlap(fake.write(tmp_path).record) == ""
