"""`peftbench analyze`: what the deltas of fully fine-tuned models show about sparsity, hybridity and positions."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import typer

from peftbench.cli.console import errors, say, warn
from peftbench.cli.options import STORE, CacheOption, DeviceOption, StoreArgument, WeightsOption, grouped
from peftbench.cli.progress import Tally
from peftbench.cli.report import AnonymousOption, OutOption

app = typer.Typer(
    help="Analyze the changes of fully fine-tuned models. Nothing is trained; finished steps are kept in the store.",
    rich_markup_mode=None,
)


@dataclass(frozen=True)
class AnalysisOptions:
    """The options of every analysis."""

    store: StoreArgument = STORE
    out: OutOption = None
    weights: WeightsOption = None
    device: DeviceOption = "auto"
    cache: CacheOption = None
    anonymous: AnonymousOption = False


@app.command()
@grouped
def sparsity(options: AnalysisOptions) -> None:
    """Put only the most-moved weights of tuned models into the pretrained one, and score it."""
    _analyze("sparsity", options)


@app.command()
@grouped
def hybridity(options: AnalysisOptions) -> None:
    """Compare which weights moved most on different data sets and with different seeds."""
    _analyze("hybridity", options)


@app.command()
@grouped
def positions(options: AnalysisOptions) -> None:
    """Show where the weights lie that methods choose, and whether importance predicts movement."""
    _analyze("positions", options)


def _analyze(name: str, options: AnalysisOptions) -> None:
    """Run what is missing of an analysis and write its report."""
    from peftbench.analysis.full_jobs import find_series
    from peftbench.analysis.report import ANALYSES, write
    from peftbench.errors import RequestError
    from peftbench.results.redaction import publish
    from peftbench.results.store import Store
    from peftbench.study.defaults import places

    store, anonymous = options.store, options.anonymous
    out = options.out or Path("reports") / store.resolve().name
    if out.exists() and not out.is_dir():
        raise RequestError(f"--out {out} is a file; name a folder for the report.")
    results = publish(Store(store).results(warn), anonymous=anonymous)
    found = find_series(results, places(store, cache=options.cache, weights=options.weights, device=options.device))
    units = [unit for series in found for unit in ANALYSES[name].units(series)]
    with Tally(errors(), name, len(units)) as tally:
        for unit in units:
            tally.begin(unit.name)
            tally.end(unit.name, unit.run(), keep=False)
    kept = None if anonymous else store / "analysis"
    files, sentences = write(name, found, out, kept)
    for line in (*sentences, *map(str, files)):
        say(line)
