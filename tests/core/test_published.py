"""The scores of the SH-PEFT paper, as its tables 1 to 5 print them."""

from __future__ import annotations

from collections import Counter
from statistics import fmean

import pytest

from peftbench.core import catalogue, catalogue_files
from peftbench.core.constants import PAPER_DATASETS
from peftbench.core.published import AVERAGE, main_scores, published_methods, published_scores

MISPRINTED = "spt_lora"  # prints 82.9, its cells average 82.5


def test_every_cell_of_the_five_tables_is_there() -> None:
    assert Counter(one.table for one in published_scores()) == {1: 12 * 7, 2: 4 * 2, 3: 4 * 2, 4: 5 * 2, 5: 5 * 2}
    assert len({(one.table, one.label, one.dataset, one.metric) for one in published_scores()}) == 120
    dashes = [(one.table, one.label, one.metric) for one in published_scores() if one.value is None]
    assert dashes == [(2, "PVB+L", "macro_f1"), (2, "GSB", "macro_f1")]


@pytest.mark.parametrize("method", published_methods())
def test_a_row_averages_to_what_is_printed(method: str) -> None:
    scores = main_scores(method)
    printed = scores.pop(AVERAGE)
    assert set(scores) == set(PAPER_DATASETS)
    error = abs(fmean(scores.values()) - printed)
    assert (error < 0.051) is (method != MISPRINTED)


def test_the_one_wrong_average_is_as_printed() -> None:
    scores = main_scores(MISPRINTED)
    assert scores.pop(AVERAGE) == pytest.approx(82.9)
    assert fmean(scores.values()) == pytest.approx(82.5)


def test_sh_peft_has_the_same_score_in_every_table() -> None:
    found = {
        (one.dataset, one.metric, one.value) for one in published_scores() if one.method == "shpeft" and one.table > 1
    }
    f1 = {where: score for where, metric, score in found if metric == "macro_f1"}
    assert f1 == {where: main_scores("shpeft")[where] for where in ("chaoyang", "covid_ct", AVERAGE)}
    assert len(found) == 6


def test_types_and_methods_are_those_of_the_catalogue() -> None:
    assert len(published_methods()) == 12
    for one in published_scores():
        if one.table == 1:
            assert one.type == catalogue.method_entry(one.method).family.replace("baseline", "S")
    assert set(published_methods()) <= set(catalogue_files.method_names())


def test_models_that_were_made_for_one_task() -> None:
    found = {
        one.label: tuple(other.value for other in published_scores() if other.label == one.label)
        for one in published_scores()
        if not one.method
    }
    assert found == {
        "NSHE": (76.5, 83.4),
        "PVB+L": (None, 84.3),
        "GSB": (None, 82.5),
        "SKNet": (76, 77),
        "ECAN": (74, 75),
        "ResGANet": (81, 80),
    }
