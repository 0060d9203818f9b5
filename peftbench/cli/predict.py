"""`peftbench predict`: class probabilities of new images by a job's model."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from peftbench.cli.console import say
from peftbench.cli.options import (
    STORE,
    DeviceOption,
    JobArgument,
    JsonOption,
    SkipBrokenOption,
    StoreOption,
    WeightsOption,
)

if TYPE_CHECKING:
    from peftbench.inference.predict import Prediction

SHOWN = 5  # images whose warnings are printed; the file has all


def predict(
    job: JobArgument,
    images: Annotated[list[Path], typer.Argument(help="Image files, or folders of them.")],
    out: Annotated[Path | None, typer.Option("--out", "-o", help="File to write to; default: the terminal.")] = None,
    weights: WeightsOption = None,
    store: StoreOption = STORE,
    device: DeviceOption = "auto",
    skip_broken: SkipBrokenOption = False,
    json: JsonOption = False,
) -> None:
    """Predict class probabilities of new images with a job's model. For research only; not a medical device."""
    from peftbench.results.store import find_job, make_output_folder

    if out:
        make_output_folder(out)
    folder = find_job(store, job)  # before torch is imported: a typing error is answered at once
    from peftbench.data.image_io import broken_sentence
    from peftbench.errors import BrokenImagesError
    from peftbench.inference import predict as inference
    from peftbench.inference.model import open_model
    from peftbench.storage.files import write_text
    from peftbench.study.defaults import places

    model = open_model(folder, places(store, weights=weights, device=device))
    broken: dict[str, str] = {}
    found = list(inference.predict(model, inference.find_images(images), broken if skip_broken else None))
    if not found:
        raise BrokenImagesError(broken_sentence(broken))
    text = (inference.as_json if json else inference.as_csv)(model, found, broken)
    if out is None:
        sys.stdout.write(text)
        return
    write_text(out, text, private=True)  # it holds names of images
    show_summary(found, broken, out)


def show_summary(found: Sequence[Prediction], broken: Mapping[str, str], out: Path) -> None:
    """Print the number of images in the file `out`, and the first warnings and images that were left out."""
    warned = {one.image: "; ".join(one.warnings) for one in found if one.warnings}
    images = f"{len(found)} image{'' if len(found) == 1 else 's'}"
    notes = [f", {len(warned)} with warnings"] if warned else []
    notes += [f", {len(broken)} left out"] if broken else []
    say(f"{out}: {images}{''.join(notes)}.")
    for name, note in [*list(broken.items())[:SHOWN], *list(warned.items())[:SHOWN]]:
        say(f"  {name}: {note}")
