"""The verbs `peftbench data ...` and `peftbench cache ...`. Imports nothing heavy before a verb needs it."""

from __future__ import annotations

from typing import Annotated

import typer

from peftbench.cli.options import CacheOption, DataOption, JsonOption

app = typer.Typer(help="Fetch and audit data sets.", rich_markup_mode=None)
cache_app = typer.Typer(help="What is kept between runs.", rich_markup_mode=None)


@app.command()
def check(
    name: Annotated[str, typer.Argument(help="A data set, or folder:PATH.")],
    data: DataOption = None,
    cache: CacheOption = None,
    json: JsonOption = False,  # noqa: FBT002 - typer's way of flags
) -> None:
    """Audit a data set before anything trains: leaks between parts, doubles, contradictions, broken files."""
    from peftbench.cli.show_data import check_data  # noqa: PLC0415 - heavy

    check_data(name, data, cache, as_json=json)


@app.command()
def fetch(
    names: Annotated[list[str], typer.Argument(help="Such as chest_xray or 'medmnist:octmnist[size=224]'.")],
    data: DataOption = None,
    accept: Annotated[bool, typer.Option("--accept-licence", help="You accept the terms that were shown.")] = False,  # noqa: FBT002
    keep: Annotated[bool, typer.Option("--keep", help="Keep archives that were unpacked.")] = False,  # noqa: FBT002
) -> None:
    """Download, check and unpack data sets, going on where a download stopped; or say how to get them."""
    from peftbench.cli.show_files import fetch_data  # noqa: PLC0415 - heavy

    raise typer.Exit(fetch_data(names, data, accept=accept, keep=keep))


@cache_app.command("list")
def list_(
    cache: CacheOption = None,
    verify: Annotated[bool, typer.Option("--verify", help="Read everything and compare its digest.")] = False,  # noqa: FBT002
    json: JsonOption = False,  # noqa: FBT002
) -> None:
    """Kinds, sizes and last use, the most recently used first."""
    from peftbench.cli.show_files import list_cache  # noqa: PLC0415 - heavy

    raise typer.Exit(list_cache(cache, verify=verify, as_json=json))


@cache_app.command()
def clear(
    cache: CacheOption = None,
    pixels: Annotated[bool, typer.Option("--pixels", help="Decoded images.")] = False,  # noqa: FBT002
    probes: Annotated[bool, typer.Option("--probes", help="Estimates of importance.")] = False,  # noqa: FBT002
    features: Annotated[bool, typer.Option("--features", help="Features of frozen backbones.")] = False,  # noqa: FBT002
    audit: Annotated[bool, typer.Option("--audit", help="What audits saw; it names files.")] = False,  # noqa: FBT002
    measured: Annotated[bool, typer.Option("--measured", help="What methods cost here, for `plan`.")] = False,  # noqa: FBT002
    everything: Annotated[bool, typer.Option("--all", help="All of these.")] = False,  # noqa: FBT002
) -> None:
    """Drop what is kept, but for what another process uses."""
    from peftbench.cli.show_files import clear_cache  # noqa: PLC0415 - heavy
    from peftbench.storage.cache import KINDS  # noqa: PLC0415 - only here

    asked = zip(KINDS, (pixels, probes, features, audit, measured), strict=True)
    clear_cache(cache, [kind for kind, said in asked if said or everything])
