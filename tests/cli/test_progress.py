"""Progress of long work, in a terminal and in a log."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from peftbench.cli import progress
from peftbench.cli.progress import Bars, Tally, counters


def text(*, terminal: bool, in_bytes: bool = False) -> str:
    out = io.StringIO()
    with Bars(Console(file=out, force_terminal=terminal, width=100), in_bytes=in_bytes) as bars:
        for done in range(0, 5001, 50):
            bars("decoding busi", done, 5000)
    return out.getvalue()


def test_a_log_gets_the_end_and_no_line_an_image() -> None:
    assert text(terminal=False).splitlines() == ["decoding busi: 5,000 of 5,000 images"]


def test_a_log_gets_a_line_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "INTERVAL", 0.0)
    assert len(text(terminal=False).splitlines()) == 101


def test_bytes_are_shown_as_such() -> None:
    assert text(terminal=False, in_bytes=True) == "decoding busi: 5.0 kB of 5.0 kB\n"


def test_a_terminal_gets_a_bar() -> None:
    assert "5,000 of 5,000 images" in text(terminal=True)


def test_an_unknown_end_is_not_invented() -> None:
    out = io.StringIO()
    with Bars(Console(file=out, force_terminal=True, width=100)) as bars:
        bars("x.zip", 10, 0)
    assert "10 images" in out.getvalue()
    assert " of " not in out.getvalue()


def given(*, terminal: bool) -> str:
    out = io.StringIO()
    with Tally(Console(file=out, force_terminal=terminal, width=100, highlight=False), "checking", 2) as tally:
        for name, keep in (("lora", False), ("[broken]", True)):
            tally.begin(name)
            tally.end(name, "done", keep=keep)
    return out.getvalue()


def test_a_log_gets_a_line_for_each() -> None:
    assert given(terminal=False).splitlines() == ["[1/2] lora: done", "[2/2] [broken]: done"]


def test_a_terminal_keeps_the_lines_that_matter() -> None:
    shown = given(terminal=True)
    assert "[2/2] [broken]: done" in shown
    assert "lora: done" not in shown
    assert "2/2" in shown.splitlines()[-2]


def test_brackets_of_a_name_are_shown_in_a_terminal() -> None:
    out = io.StringIO()
    with counters(Console(file=out, force_terminal=True, width=120)) as bars:
        bars.add_task("lora[r=4] on medmnist:x[size=64]", total=1, note="shpeft[lam=0]")
    assert "lora[r=4] on medmnist:x[size=64]" in out.getvalue()
    assert "shpeft[lam=0]" in out.getvalue()
