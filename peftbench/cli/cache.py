"""`peftbench cache list` and `peftbench cache clear`: what is kept between runs. Imports torch to verify only."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from peftbench.cli.console import make_table, say, show, show_json
from peftbench.cli.options import CacheOption, JsonOption

if TYPE_CHECKING:
    from peftbench.storage.cache import CacheEntry, CacheKind

app = typer.Typer(help="List and clear what is kept between runs.", rich_markup_mode=None)


@app.command("list")
def list_(
    cache: CacheOption = None,
    verify: Annotated[bool, typer.Option("--verify", help="Read every file and compare its digest.")] = False,
    json: JsonOption = False,
) -> None:
    """List entries, the most recently used first."""
    raise typer.Exit(list_cache(cache, verify=verify, as_json=json))


@app.command()
def clear(
    cache: CacheOption = None,
    pixels: Annotated[bool, typer.Option("--pixels", help="Decoded images.")] = False,
    probes: Annotated[bool, typer.Option("--probes", help="Estimates of importance.")] = False,
    features: Annotated[bool, typer.Option("--features", help="Features of frozen backbones.")] = False,
    audit: Annotated[bool, typer.Option("--audit", help="Findings of audits, which name files.")] = False,
    measured: Annotated[bool, typer.Option("--measured", help="Measured costs of methods, for `plan`.")] = False,
    everything: Annotated[bool, typer.Option("--all", help="All of these.")] = False,
) -> None:
    """Remove entries that no other process is using."""
    from peftbench.storage.cache import KINDS

    chosen = zip(KINDS, (pixels, probes, features, audit, measured), strict=True)
    clear_cache(cache, [kind for kind, is_chosen in chosen if is_chosen or everything])


# --- list ------------------------------------------------------------------------------------------------------------


def list_cache(root: Path | None, *, verify: bool, as_json: bool) -> int:
    """Print the entries; with `verify` compare their digests and return 1 if one is damaged."""
    from peftbench.storage import cache
    from peftbench.storage.folders import cache_folder

    place = cache_folder(root)
    found = cache.entries(place)
    state = {entry.folder: _state(entry) if verify else "" for entry in found}
    if as_json:
        rows = [{**_facts(entry), "state": state[entry.folder]} for entry in found]
        show_json({"folder": str(place), "entries": rows})
    else:
        _show(found, state, place)
    return 1 if "damaged" in state.values() else 0


def _facts(entry: CacheEntry) -> dict[str, str | int | float]:
    return {"kind": entry.kind, "name": entry.folder.name, "bytes": entry.bytes, "used": entry.used}


def _state(entry: CacheEntry) -> str:
    return "whole" if _is_whole(entry) else "damaged"


def _is_whole(entry: CacheEntry) -> bool:
    """Return whether every file of an entry has the digest that it was written with."""
    if entry.kind == "pixels" and not (entry.folder / "broken.json").exists():
        from peftbench.data.pixel_cache import is_whole

        return is_whole(entry.folder, thorough=True)
    if entry.kind in {"probes", "features"}:
        from peftbench.storage import checked_tensors

        return all(map(checked_tensors.is_whole, entry.folder.glob("*.safetensors")))
    return all(map(_is_whole_json, entry.folder.glob("*.json")))


def _is_whole_json(file: Path) -> bool:
    from peftbench.storage import checked_json

    try:
        checked_json.read(file, "" if file.name == "broken.json" else file.parent.name)
    except (OSError, ValueError):
        return False
    return True


def _show(found: Sequence[CacheEntry], state: Mapping[Path, str], place: Path) -> None:
    import humanize

    from peftbench.storage.sizes import format_size

    now = time.time()
    rows = [
        (e.kind, e.folder.name, format_size(e.bytes), humanize.naturaltime(now - e.used), state[e.folder])
        for e in found
    ]
    if found:
        show(make_table(("kind", "name", "size", "last used", ""), rows, right={"size"}))
    say(f"Kept: {len(found)}, {format_size(sum(entry.bytes for entry in found))} in {place}.")


# --- clear -----------------------------------------------------------------------------------------------------------


def clear_cache(root: Path | None, kinds: Sequence[CacheKind]) -> None:
    """Remove all entries of these kinds that are not in use. Raises RequestError when no kind is named."""
    from peftbench.errors import RequestError
    from peftbench.storage import cache
    from peftbench.storage.folders import cache_folder
    from peftbench.storage.sizes import format_size

    place = cache_folder(root)
    if not kinds:
        options = ", ".join(f"--{kind}" for kind in cache.KINDS)
        raise RequestError(f"cache clear needs what to clear: give one or more of {options}, or --all.")
    found = cache.entries(place, kinds)
    dropped = [entry for entry in found if cache.drop(entry)]
    used = f"; in use and kept: {len(found) - len(dropped)}" if len(dropped) < len(found) else ""
    say(f"Removed: {len(dropped)}, {format_size(sum(entry.bytes for entry in dropped))} in {place}{used}.")
