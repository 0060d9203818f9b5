"""The command line, assembled from one file per verb.

A verb's module imports nothing heavy before its function runs, so that `peftbench --help` and `list` answer at once.
"""

from __future__ import annotations

import os
import sys
import traceback

import typer

from peftbench.cli import analyze, cache, data, weights
from peftbench.cli.bench import bench
from peftbench.cli.cancel import cancel
from peftbench.cli.check import check
from peftbench.cli.claims import claims
from peftbench.cli.compare import compare
from peftbench.cli.doctor import doctor
from peftbench.cli.errors import UsageError, is_closed, sentence, spell_out
from peftbench.cli.list import list_
from peftbench.cli.measure import measure
from peftbench.cli.merge import merge
from peftbench.cli.merge_stores import merge_stores
from peftbench.cli.plan import plan
from peftbench.cli.predict import predict
from peftbench.cli.recommend import recommend
from peftbench.cli.report import report
from peftbench.cli.run import run
from peftbench.cli.show import show
from peftbench.cli.status import status
from peftbench.errors import PeftbenchError, PluginError

INTERRUPTED = 130  # the exit code after Ctrl-C, as a shell has it

app = typer.Typer(
    help="Compare parameter-efficient fine-tuning methods for vision transformers on medical images.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
for verb in (run, plan, report, compare, recommend, claims, status, cancel):
    app.command()(verb)
app.command("list")(list_)
app.command("merge-stores")(merge_stores)
for verb in (show, merge, predict, check, measure, bench, doctor):
    app.command()(verb)
app.add_typer(analyze.app, name="analyze")
app.add_typer(data.app, name="data")
app.add_typer(weights.app, name="weights")
app.add_typer(cache.app, name="cache")


def main() -> None:
    """Run the command line; an error that the user can correct is one sentence and exit code 2."""
    debug = "--debug" in sys.argv
    spell_out()
    words = [word for word in sys.argv[1:] if word != "--debug"]
    try:
        code = app(words or ["--help"], prog_name="peftbench", standalone_mode=False)
        if code == INTERRUPTED:  # typer's answer to Ctrl-C
            raise KeyboardInterrupt  # noqa: TRY301 - one place for both
    except (KeyboardInterrupt, typer.Abort) as error:
        if isinstance(error.__cause__, EOFError):  # typer takes any for the end of a user's input
            sys.exit(_exit_code(error.__cause__, words, debug=debug))
        resume = "; run the same command again to resume" if words[:1] == ["run"] else ""
        typer.echo(f"peftbench: interrupted{resume}.", err=True)
        sys.exit(INTERRUPTED)
    except (SystemExit, PeftbenchError, UsageError, OSError) as error:
        sys.exit(_exit_code(error, words, debug=debug))
    sys.exit(code)


def _exit_code(error: BaseException, words: list[str], *, debug: bool) -> int:
    """Print what went wrong and return the exit code."""
    cause = error.__context__ if isinstance(error, SystemExit) else error
    if isinstance(error, SystemExit) and not isinstance(cause, BrokenPipeError):  # typer exits on a broken pipe
        cause = PluginError(f"A plug-in or library ended the program, with the exit code {error.code}.")
    if isinstance(cause, BrokenPipeError) and is_closed(sys.stdout):
        return _stdout_closed(words)
    if debug:
        traceback.print_exc()
    typer.echo(f"peftbench: {sentence(cause)}", err=True)
    return 2


def _stdout_closed(words: list[str]) -> int:
    """Return the exit code after the reader of stdout has closed it, as in `peftbench list methods | head -1`.

    That is no failure, except of `run`, whose exit code 0 means that every job has a record.
    """
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    if words[:1] != ["run"]:
        return 0
    typer.echo("peftbench: stdout was closed before the study ended; run the same command again to resume.", err=True)
    return 1
