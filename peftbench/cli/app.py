"""The command line. Imports nothing heavy before a verb needs it: `peftbench --help` answers at once."""

from __future__ import annotations

import os
import sys
import traceback
from pathlib import Path
from typing import Annotated

import typer

from peftbench.cli import data
from peftbench.cli.errors import UsageError, sentence, spell_out
from peftbench.cli.options import (
    AugmentationOption,
    BackboneOption,
    BaselinesOption,
    CacheOption,
    CompileOption,
    DataOption,
    DatasetsOption,
    DeterministicOption,
    DeviceOption,
    GraphOption,
    JsonOption,
    MethodsOption,
    PrecisionOption,
    RatiosOption,
    RecipeOption,
    SeedsOption,
    ShareOption,
    ShotsOption,
    SizeOption,
    SplitsOption,
    StoreOption,
    TuneOption,
    WeightsOption,
)
from peftbench.errors import PeftbenchError

INTERRUPTED = 130
MEASURED = ["linear,bitfit,lora,shpeft"]
FORMATS = ["markdown,latex,csv,figure,html"]

app = typer.Typer(
    help="Compare parameter-efficient fine-tuning methods for vision transformers on medical images.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.add_typer(data.app, name="data")
app.add_typer(data.cache_app, name="cache")


@app.command()
def run(
    study: Annotated[Path | None, typer.Argument(help="A study.toml; options given beside it win.")] = None,
    methods: MethodsOption = None,
    datasets: DatasetsOption = None,
    splits: SplitsOption = None,
    train_share: ShareOption = None,
    shots: ShotsOption = None,
    ratios: RatiosOption = None,
    seeds: SeedsOption = None,
    backbone: BackboneOption = "",
    weights: WeightsOption = None,
    image_size: SizeOption = None,
    recipe: RecipeOption = "",
    tune: TuneOption = None,
    steps: Annotated[int | None, typer.Option(help="Training steps, instead of the recipe's.")] = None,
    batch: Annotated[int | None, typer.Option(help="Images a step, instead of the recipe's.")] = None,
    evaluations: Annotated[int | None, typer.Option(help="How often to evaluate, instead of the recipe's.")] = None,
    lr: Annotated[float | None, typer.Option(help="One learning rate for every method, untuned.")] = None,
    baselines: BaselinesOption = True,  # noqa: FBT002 - typer's way of flags
    augmentation: AugmentationOption = "",
    precision: PrecisionOption = "",
    compile: CompileOption = None,  # noqa: A002 - the flag's name
    graph: GraphOption = None,
    deterministic: DeterministicOption = None,
    device: DeviceOption = "auto",
    threads: Annotated[int | None, typer.Option(help="CPU threads of a job; part of its identity.")] = None,
    jobs: Annotated[int, typer.Option(min=0, help="Jobs side by side; 0 = one a core on CPU, one a card on GPUs.")] = 0,
    skip_broken: Annotated[bool, typer.Option("--skip-broken", help="Leave out images that do not open.")] = False,  # noqa: FBT002
    store: StoreOption = Path("runs"),
    data: DataOption = None,
    cache: CacheOption = None,
    cache_limit: Annotated[
        str, typer.Option("--cache-limit", envvar="PEFTBENCH_CACHE_LIMIT", help="Such as 20G; what is older goes.")
    ] = "50G",
) -> None:
    """Train every method on every data set; without arguments, the quick study."""
    from peftbench.core.spec import asked

    wanted = asked(study, locals())  # a mistake in the words is told before torch is imported
    from peftbench.cli.show_all import run_study
    from peftbench.study.defaults import places

    code = run_study(wanted, places(store, data, cache, weights, device, cache_limit), jobs, skip_broken=skip_broken)
    raise typer.Exit(code)


@app.command()
def plan(
    study: Annotated[Path | None, typer.Argument(help="A study.toml; options given beside it win.")] = None,
    methods: MethodsOption = None,
    datasets: DatasetsOption = None,
    splits: SplitsOption = None,
    train_share: ShareOption = None,
    shots: ShotsOption = None,
    ratios: RatiosOption = None,
    seeds: SeedsOption = None,
    backbone: BackboneOption = "",
    image_size: SizeOption = None,
    recipe: RecipeOption = "",
    tune: TuneOption = None,
    baselines: BaselinesOption = True,  # noqa: FBT002
    data: DataOption = None,
    cache: CacheOption = None,
    json: JsonOption = False,  # noqa: FBT002
) -> None:
    """List the jobs of a study with exact counts; needs neither weights nor images and trains nothing."""
    from peftbench.core.spec import asked

    wanted = asked(study, locals())
    from peftbench.cli.costs import show_plan
    from peftbench.study.defaults import places

    show_plan(wanted, places(Path("runs"), data, cache), as_json=json)


@app.command()
def report(
    store: Annotated[Path, typer.Argument(help="Folder of the results.")] = Path("runs"),
    formats: Annotated[
        list[str], typer.Option("--format", help="Some of markdown (md), latex, csv, figure, html.")
    ] = FORMATS,
    out: Annotated[
        Path | None, typer.Option("--out", help="Where to write; default reports/NAME OF THE STORE.")
    ] = None,
) -> None:
    """Write tables and figures from finished jobs; trains nothing."""
    from peftbench.cli.show_all import write_report

    write_report(store, ",".join(formats), out or Path("reports") / store.resolve().name)


@app.command()
def status(
    store: Annotated[Path, typer.Argument(help="Folder of the results.")] = Path("runs"),
    json: JsonOption = False,  # noqa: FBT002
) -> None:
    """What is done, running, interrupted and failed."""
    from peftbench.cli.show_all import show_status

    show_status(store, as_json=json)


@app.command("list")
def list_(
    kind: Annotated[str, typer.Argument(help="methods, datasets, backbones, metrics, reports or recipes.")],
    data: DataOption = None,
    json: JsonOption = False,  # noqa: FBT002
) -> None:
    """What there is; of data sets, also what of them is here."""
    from peftbench.cli.list import show_list

    show_list(kind, data, as_json=json)


@app.command()
def show(
    kind: Annotated[str, typer.Argument(help="method, dataset, backbone or recipe.")],
    name: str,
    data: DataOption = None,
    cache: CacheOption = None,
    out: Annotated[Path | None, typer.Option("--out", help="Of a data set: the file for pictures.")] = None,
    json: JsonOption = False,  # noqa: FBT002
) -> None:
    """All about one of them; of a data set that is here also its audit and, in a file, pictures of each class."""
    if kind == "dataset":
        from peftbench.cli.show_data import show_data

        show_data(name, data, cache, out, as_json=json)
        return
    from peftbench.cli.show import show_one

    show_one(kind, name, as_json=json)


@app.command()
def merge(
    job: Annotated[str, typer.Argument(help="Its id, the beginning of it, or its folder.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The safetensors file to write.")],
    weights: WeightsOption = None,
    store: StoreOption = Path("runs"),
) -> None:
    """Write a job's model as plain timm weights with a linear head."""
    from peftbench.cli.show_all import merge_job

    merge_job(job, out, store, weights)


@app.command()
def predict(
    job: Annotated[str, typer.Argument(help="Its id, the beginning of it, or its folder.")],
    images: Annotated[list[Path], typer.Argument(help="Image files, or folders of them.")],
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Write to this file, not to the terminal.")] = None,
    weights: WeightsOption = None,
    store: StoreOption = Path("runs"),
    device: DeviceOption = "auto",
    json: JsonOption = False,  # noqa: FBT002
) -> None:
    """Class probabilities of new images by a job's model. For research only; not a medical device."""
    from peftbench.cli.show_all import predict_images

    predict_images(job, images, store, weights, device, out, as_json=json)


@app.command()
def check(
    name: Annotated[str | None, typer.Argument(help="A plug-in such as lora or metrics/auc, or PACKAGE:NAME.")] = None,
    everything: Annotated[bool, typer.Option("--all", help="Everything that is installed.")] = False,  # noqa: FBT002
    compiled: Annotated[bool, typer.Option("--compile", help="torch.compile, too: 0.7 s a method.")] = False,  # noqa: FBT002
    data: DataOption = None,
    json: JsonOption = False,  # noqa: FBT002
) -> None:
    """The conformance rules on a method, data set, backbone, metric or report; exit code 1 if one does not hold."""
    from peftbench.cli.check import show_check
    from peftbench.study.defaults import places

    folder = places(Path("runs"), data).data
    raise typer.Exit(show_check(name, folder, everything=everything, compiled=compiled, as_json=json))


@app.command()
def measure(
    methods: MethodsOption = MEASURED,
    ratios: RatiosOption = None,
    backbone: BackboneOption = "mini",
    weights: WeightsOption = None,
    image_size: SizeOption = None,
    batch: Annotated[int | None, typer.Option(help="Images a training step; default 64 on a GPU, 8 on a CPU.")] = None,
    precision: PrecisionOption = "auto",
    compile: CompileOption = None,  # noqa: A002 - the flag's name
    graph: GraphOption = None,
    device: DeviceOption = "auto",
    threads: Annotated[int, typer.Option(min=1, help="CPU threads.")] = 1,
    seconds: Annotated[float, typer.Option(min=0.0, max=3600.0, help="To spend on each time that is taken.")] = 2.0,
    cache: CacheOption = None,
    out: Annotated[Path | None, typer.Option("--out", help="Write the figures to this JSON file.")] = None,
    json: JsonOption = False,  # noqa: FBT002
) -> None:
    """What each method costs on this machine: operations, memory, speed, latency. Needs no data."""
    from peftbench.core.spec import asked

    wanted = asked(None, locals())
    from peftbench.cli.costs import show_measure
    from peftbench.study.defaults import places

    show_measure(wanted, places(Path("runs"), None, cache, weights, device), seconds, out, as_json=json)


@app.command()
def bench(
    out: Annotated[Path | None, typer.Option("--out", help="Write the figures to this JSON file.")] = None,
    device: DeviceOption = "auto",
) -> None:
    """The speed and memory gates, as ratios; fails on equality and memory only."""
    from peftbench.cli.show_all import show_bench

    raise typer.Exit(show_bench(device, out))


def main() -> None:
    """Entry point: errors of the user's making are one sentence and exit code 2."""
    debug = "--debug" in sys.argv
    spell_out()
    words = [word for word in sys.argv[1:] if word != "--debug"]
    try:
        code = app(words or ["--help"], prog_name="peftbench", standalone_mode=False)
        if code == INTERRUPTED:  # what typer makes of Ctrl-C
            raise KeyboardInterrupt  # noqa: TRY301 - one place for both
    except (KeyboardInterrupt, typer.Abort):
        again = "; the same command goes on from the last checkpoint" if words[:1] == ["run"] else ""
        typer.echo(f"peftbench: interrupted{again}.", err=True)
        sys.exit(INTERRUPTED)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the reader of our output went away
        sys.exit(0)
    except SystemExit as end:  # rich's, when the reader of our output went away
        sys.exit(0 if isinstance(end.__context__, BrokenPipeError) else end.code)
    except (PeftbenchError, UsageError, OSError) as error:
        if debug:
            traceback.print_exc()
        typer.echo(f"peftbench: {sentence(error)}", err=True)
        sys.exit(2)
    sys.exit(code)
