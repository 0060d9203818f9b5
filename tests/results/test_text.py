"""Names from outside are harmless in a terminal, in a table and in a spreadsheet."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from peftbench.results.text import csv_text, printable


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("benign", "benign"),
        ("x \x1b]0;pwned\x07", r"x \x1b]0;pwned\x07"),
        ("a\nb\tc\u2028d", "a b c d"),
        ("\u202egnp.exe", r"\u202egnp.exe"),
        ("zero\u200bwidth", r"zero\u200bwidth"),
        ("\udcff.png", r"\udcff.png"),
        ("肺 ± 2", "肺 ± 2"),
        ("[bold]$x$ <b>", "[bold]$x$ <b>"),
    ],
)
def test_control_characters_are_shown_by_their_code_and_letters_stay(text: str, shown: str) -> None:
    assert printable(text) == shown


@given(st.text(st.characters(codec=None)))
def test_no_text_holds_anything_that_a_terminal_obeys(text: str) -> None:
    found = printable(text)
    assert not {unicodedata.category(letter) for letter in found} & {"Cc", "Cf", "Cs", "Zl", "Zp"}
    assert printable(found) == found
    found.encode()


@pytest.mark.parametrize(
    "text", ["=HYPERLINK(1)", "+1", "-2+3", "@SUM(A1)", "\t=1", "\r=1", "\N{FULLWIDTH EQUALS SIGN}1"]
)
def test_a_text_that_a_spreadsheet_would_compute_gets_an_apostrophe(text: str) -> None:
    assert csv_text(text) == f"'{printable(text)}"


@pytest.mark.parametrize("text", ["", "benign", "grade 1", "a=b", "'=1"])
def test_other_texts_of_a_csv_stay_as_they_are(text: str) -> None:
    assert csv_text(text) == text
