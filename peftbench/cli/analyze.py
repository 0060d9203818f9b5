"""`peftbench analyze`: what the deltas of fully fine-tuned models show about sparsity, hybridity and positions."""

from __future__ import annotations

from pathlib import Path

import typer

from peftbench.cli.console import errors, say, warn
from peftbench.cli.options import STORE, CacheOption, DeviceOption, StoreArgument, WeightsOption
from peftbench.cli.progress import Tally
from peftbench.cli.report import AnonymousOption, OutOption

app = typer.Typer(
    help="Analyze the changes of fully fine-tuned models. Nothing is trained; finished steps are kept in the store.",
    rich_markup_mode=None,
)


@app.command()
def sparsity(
    store: StoreArgument = STORE,
    out: OutOption = None,
    weights: WeightsOption = None,
    device: DeviceOption = "auto",
    cache: CacheOption = None,
    anonymous: AnonymousOption = False,
) -> None:
    """Put only the most-moved weights of tuned models into the pretrained one, and score it."""
    _analyze("sparsity", store, out, weights, device, cache, anonymous=anonymous)


@app.command()
def hybridity(
    store: StoreArgument = STORE,
    out: OutOption = None,
    weights: WeightsOption = None,
    device: DeviceOption = "auto",
    cache: CacheOption = None,
    anonymous: AnonymousOption = False,
) -> None:
    """Compare which weights moved most on different data sets and with different seeds."""
    _analyze("hybridity", store, out, weights, device, cache, anonymous=anonymous)


@app.command()
def positions(
    store: StoreArgument = STORE,
    out: OutOption = None,
    weights: WeightsOption = None,
    device: DeviceOption = "auto",
    cache: CacheOption = None,
    anonymous: AnonymousOption = False,
) -> None:
    """Show where the weights lie that methods choose, and whether importance predicts movement."""
    _analyze("positions", store, out, weights, device, cache, anonymous=anonymous)


def _analyze(
    name: str,
    store: Path,
    out: Path | None,
    weights: Path | None,
    device: str,
    cache: Path | None,
    *,
    anonymous: bool,
) -> None:
    """Run what is missing of an analysis and write its report."""
    from peftbench.analysis.full_jobs import find_series
    from peftbench.analysis.report import ANALYSES, write
    from peftbench.errors import RequestError
    from peftbench.results.redaction import publish
    from peftbench.results.store import Store
    from peftbench.study.defaults import places

    out = out or Path("reports") / store.resolve().name
    if out.exists() and not out.is_dir():
        raise RequestError(f"--out {out} is a file; name a folder for the report.")
    results = publish(Store(store).results(warn), anonymous=anonymous)
    found = find_series(results, places(store, cache=cache, weights=weights, device=device))
    units = [unit for series in found for unit in ANALYSES[name].units(series)]
    with Tally(errors(), name, len(units)) as tally:
        for unit in units:
            tally.begin(unit.name)
            tally.end(unit.name, unit.run(), keep=False)
    kept = None if anonymous else store / "analysis"
    files, sentences = write(name, found, out, kept)
    for line in (*sentences, *map(str, files)):
        say(line)
