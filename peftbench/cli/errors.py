"""What the command line says of a mistake, in one line, on any terminal."""

from __future__ import annotations

import io
import sys
from typing import Any, cast

import typer

# Of click, which some versions of typer bring under another name.
UsageError = cast("type[typer.BadParameter]", typer.BadParameter.__bases__[0])


def sentence(error: Exception) -> str:
    """What an error says, on one line."""
    if isinstance(error, OSError):
        return f"{error.filename or 'The system'}: {error.strerror or error}."
    said = _usage(error) if isinstance(error, UsageError) else str(error)
    return " ".join(said.split())


def _usage(error: Any) -> str:  # noqa: ANN401 - UsageError, a name that no type checker knows
    """What is wrong with the words, what the one that is missing should be, and where the help is."""
    said = str(error.format_message()).rstrip(".")
    means = getattr(getattr(error, "param", None), "help", None)  # only some of these errors know their parameter
    if means and said.startswith("Missing"):
        said += f": {means.rstrip('.')}"
    end = "" if said.endswith("?") else "."
    return said + end + (f" `{error.ctx.command_path} --help` says more." if error.ctx else "")


def spell_out() -> None:
    """Write letters that a terminal has not by their number, rather than fail."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
