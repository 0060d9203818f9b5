"""`peftbench merge`: a job's model as one file of plain weights."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from peftbench.cli.console import say
from peftbench.cli.options import STORE, JobArgument, StoreOption, WeightsOption


def merge(
    job: JobArgument,
    out: Annotated[Path, typer.Option("--out", "-o", help="The safetensors file to write.")],
    weights: WeightsOption = None,
    store: StoreOption = STORE,
) -> None:
    """Write a job's model as plain timm weights with a linear head."""
    from peftbench.results.store import find_job, make_output_folder

    make_output_folder(out)
    folder = find_job(store, job)  # before torch is imported: a typing error is answered at once
    from peftbench.inference import merge as merging
    from peftbench.study.defaults import places

    error = merging.merge(folder, places(store, weights=weights, device="cpu"), out)
    say(f"{out}: plain timm weights with the head; relative difference of the logits {error:.1e}.")
    say(f"{out}.json: classes, preprocessing, the step before the head, and the origin of the weights.")
