"""Errors as the command line prints them: one line, on any terminal."""

from __future__ import annotations

import io
import select
import sys
from typing import Any, TextIO, cast

import typer

# Of click, which some versions of typer bring under another name.
UsageError = cast("type[typer.BadParameter]", typer.BadParameter.__bases__[0])


def sentence(error: BaseException | None) -> str:
    """Return an error's message on one line."""
    if isinstance(error, OSError):
        return f"{error.filename or 'The system'}: {error.strerror or error}."
    if isinstance(error, EOFError):
        return f"A file or process ended too early{f' ({error})' if str(error) else ''}. Run the same command again."
    text = _usage(error) if isinstance(error, UsageError) else str(error)
    return " ".join(text.split())


def _usage(error: Any) -> str:  # noqa: ANN401 - UsageError, a name that no type checker knows
    """Return what is wrong with the command, what a missing argument means, and where the help is."""
    text = str(error.format_message()).replace("Value error, ", "").rstrip(".")  # typer passes pydantic's words on
    meaning = getattr(getattr(error, "param", None), "help", None)  # only some of these errors know their parameter
    if meaning and text.startswith("Missing"):
        text += f": {meaning.rstrip('.')}"
    end = "" if text.endswith("?") else "."
    return text + end + (f" See `{error.ctx.command_path} --help`." if error.ctx else "")


def is_closed(stream: TextIO) -> bool:
    """Return whether `stream` is a pipe or a socket whose reader has closed it."""
    poll = select.poll()
    try:
        poll.register(stream, 0)
    except OSError:  # no file of the system, such as a StringIO
        return False
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))


def spell_out() -> None:
    """Make stdout and stderr write letters that their encoding lacks by their number, rather than fail."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
