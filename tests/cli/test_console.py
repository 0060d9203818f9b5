"""The console: text from outside is printed as it is, on one line, without control over the terminal."""

from __future__ import annotations

import pytest

from peftbench.cli import console


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("[bold]lung[/] :smile:", "[bold]lung[/] :smile:"),
        ("a\nb\r\nc", "a b c"),
        ("\x1b[2Jgone", "\\x1b[2Jgone"),
        ("\u202eevil", "\\u202eevil"),
        ("Größe µm 肺", "Größe µm 肺"),
    ],
)
def test_a_line_is_printed_as_it_is(text: str, shown: str, capsys: pytest.CaptureFixture[str]) -> None:
    console.say(text)
    assert capsys.readouterr().out == f"{shown}\n"


def test_a_cell_is_printed_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    console.show(console.make_table(("class", "[b]"), [("[/]", "\x07")]))
    assert [line.split() for line in capsys.readouterr().out.splitlines()] == [["class", "[b]"], ["[/]", "\\x07"]]


def test_rows_that_must_be_read_by_programs_stay_on_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    long = "x" * 300
    console.show_rows(("a", "b"), [(long, long), ("肺\n", "\x1b")])
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split() == [long, long]
    assert lines[2] == "肺" + 300 * " " + "\\x1b"


def test_json_keeps_every_name(capsys: pytest.CaptureFixture[str]) -> None:
    console.show_json({"[bold]": ":smile:"})
    assert '"[bold]": ":smile:"' in capsys.readouterr().out
