"""`peftbench cancel`: end what a cluster runs for a store."""

from __future__ import annotations

from peftbench.cli.console import say
from peftbench.cli.options import STORE, StoreArgument


def cancel(store: StoreArgument = STORE) -> None:
    """Cancel the Slurm jobs of a store. Running jobs stop after a checkpoint; `peftbench run` resumes them."""
    from peftbench.execution import slurm_queue
    from peftbench.results.store import Store

    Store(store).ids()  # refuses a folder that is no store
    found = slurm_queue.cancel(store)
    say(f"Cancelled Slurm {', '.join(found)}." if found else f"Slurm has no jobs of {store} in its queue.")
