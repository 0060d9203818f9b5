"""`peftbench claims`: which claims of the SH-PEFT paper hold in the jobs of a store."""

from __future__ import annotations

from typing import TYPE_CHECKING

from peftbench.cli.console import say, show_json, warn
from peftbench.cli.options import STORE, JsonOption, StoreArgument

if TYPE_CHECKING:
    from peftbench.analysis.claims import Decided


def claims(store: StoreArgument = STORE, json: JsonOption = False) -> None:
    """Decide ten claims of the SH-PEFT paper: holds, fails or undecided.

    Each comes with the numbers and the command that would decide it.
    """
    from peftbench.analysis.claims import decide
    from peftbench.results.store import Store, no_finished_job

    found = decide(Store(store).results(warn), store)
    if not found:
        raise no_finished_job(store)
    if json:
        show_json([one.as_dict() for one in found])
        return
    for one in found:
        _show(one)


def _show(found: Decided) -> None:
    say(f"{found.network}; recipe {found.recipe}; {', '.join(found.datasets)}", style="bold")
    if found.synthetic:
        say("Synthetic data: nothing here is shown about medical images.")
    for claim, conclusion in found.conclusions:
        say(f"{claim.number:2d}. {conclusion.verdict.upper():9s} {claim.text}")
        for line in conclusion.numbers:
            say(f"      {line}")
        if conclusion.command:
            say(f"      {conclusion.command}")
    say("")
