"""`peftbench merge`: a job's model as a file or folder that other software loads."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from peftbench.cli.console import say
from peftbench.cli.options import STORE, JobArgument, StoreOption, WeightsOption
from peftbench.errors import RequestError


class Target(StrEnum):
    """The software that the model is written for."""

    TIMM = "timm"
    HUGGINGFACE = "huggingface"
    ONNX = "onnx"


def merge(
    job: JobArgument,
    out: Annotated[Path, typer.Option("--out", "-o", help="The file to write; with --to huggingface a folder.")],
    to: Annotated[
        Target,
        typer.Option(
            "--to",
            help="timm: a safetensors file; huggingface: a folder with a model card, which timm loads; "
            "onnx: a file from pixels to probabilities.",
        ),
    ] = Target.TIMM,
    weights: WeightsOption = None,
    store: StoreOption = STORE,
) -> None:
    """Write a job's model for other software, by default as plain timm weights with a linear head."""
    from peftbench.results.store import find_job, make_output_folder

    if to is Target.HUGGINGFACE:
        _refuse_file(out)
    make_output_folder(out / "README.md" if to is Target.HUGGINGFACE else out)
    folder = find_job(store, job)  # before torch is imported: a typing error is answered at once
    from peftbench.study.defaults import places

    where = places(store, weights=weights, device="cpu")
    if to is Target.ONNX:
        from peftbench.inference import onnx

        error = onnx.write_file(folder, where, out)
        say(f"{out}: images (uint8) to probabilities; largest difference of onnxruntime and torch {error:.1e}.")
    elif to is Target.HUGGINGFACE:
        from peftbench.inference import huggingface

        error = huggingface.write_folder(folder, where, out)
        say(f'{out}: timm.create_model("local-dir:{out}", pretrained=True) loads it.')
        say(f"Relative difference of the logits {error:.1e}; {out / 'README.md'} is the model card.")
    else:
        from peftbench.inference import merge as merging

        error = merging.merge(folder, where, out)
        say(f"{out}: plain timm weights with the head; relative difference of the logits {error:.1e}.")
        say(f"{out}.json: classes, preprocessing, the step before the head, and the origin of the weights.")


def _refuse_file(out: Path) -> None:
    """Raise RequestError where a file is in the place of the folder."""
    if out.exists() and not out.is_dir():
        raise RequestError(f"--out {out} is a file; --to huggingface needs a folder.")
