"""What `peftbench data fetch` and `peftbench cache list|clear` do and print. Imports torch to verify only."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import humanize
from platformdirs import user_cache_path
from rich.console import Console
from rich.table import Table

from peftbench.cli.progress import Bars
from peftbench.data import download
from peftbench.data.pixel_cache import is_whole
from peftbench.errors import RequestError
from peftbench.storage import archives, cache, checked_json
from peftbench.storage.cache import KINDS, Entry, Kind
from peftbench.storage.folders import data_folder
from peftbench.storage.sizes import format_size

console = Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else 120)


def fetch_data(names: Sequence[str], data: Path | None, *, accept: bool, keep: bool) -> int:
    """Download every data set that may be downloaded, say what to do about the others; 1 if there were such."""
    root = data_folder(data)
    wanted = {name: download.remote_files(name, root) for name in names}
    for name in names:
        if wanted[name] and (terms := download.terms(name)) and not accept:
            raise RequestError(f"{name}: {terms} Run the same command with --accept-licence if you accept it.")
    for name, files in wanted.items():
        if files:
            _fetch(files, keep=keep)
        else:
            for line in download.manual_steps(name, root):
                _say(line)
    return 0 if all(wanted.values()) else 1


def _fetch(files: Sequence[download.RemoteFile], *, keep: bool) -> None:
    for file in files:
        here = archives.place(file.target)
        if archives.is_packed(file.target) and here.is_dir():
            _say(f"{here} is here already; move it away to fetch it anew.")
            continue
        with Bars(console, in_bytes=True) as bars:
            there = download.fetch(file, bars, keep=keep)
        checked = "checksum as published" if file.checksum else "no checksum is published: its size agrees"
        _say(f"{there} ({checked if file.checksum or file.size else 'no checksum and no size is published'})")


def list_cache(root: Path | None, *, verify: bool, as_json: bool) -> int:
    """What is kept, how large, when last used; with `verify` whether it still is what was made. 1 if it is not."""
    place = root or user_cache_path("peftbench")
    found = cache.entries(place)
    state = {entry.folder: _state(entry) if verify else "" for entry in found}
    if as_json:
        rows = [{**_row(entry), "state": state[entry.folder]} for entry in found]
        console.print_json(json.dumps({"folder": str(place), "entries": rows}))
    else:
        _print(found, state, place)
    return 1 if "damaged" in state.values() else 0


def _row(entry: Entry) -> dict[str, str | int | float]:
    return {"kind": entry.kind, "name": entry.folder.name, "bytes": entry.bytes, "used": entry.used}


def _state(entry: Entry) -> str:
    """Whether every file of an entry still is what was written."""
    if entry.kind == "pixels" and not (entry.folder / "broken.json").exists():
        return "whole" if is_whole(entry.folder, thorough=True) else "damaged"
    if entry.kind in {"probes", "features"}:
        from peftbench.storage import checked_tensors  # noqa: PLC0415 - brings torch, which nothing else here wants

        return "whole" if all(map(checked_tensors.is_whole, entry.folder.glob("*.safetensors"))) else "damaged"
    return "whole" if all(map(_vouches, entry.folder.glob("*.json"))) else "damaged"


def _vouches(file: Path) -> bool:
    try:
        checked_json.read(file, "" if file.name == "broken.json" else file.parent.name)
    except (OSError, ValueError):
        return False
    return True


def _print(found: Sequence[Entry], state: dict[Path, str], place: Path) -> None:
    table = Table(box=None, pad_edge=False)
    for column in ("kind", "name", "size", "last used", ""):
        table.add_column(column, justify="right" if column == "size" else "left")
    for entry in found:
        table.add_row(
            entry.kind,
            entry.folder.name,
            format_size(entry.bytes),
            humanize.naturaltime(time.time() - entry.used),
            state[entry.folder],
        )
    if found:
        console.print(table)
    _say(f"Kept: {len(found)}, {format_size(sum(entry.bytes for entry in found))} in {place}.")


def clear_cache(root: Path | None, kinds: Sequence[Kind]) -> None:
    """Drop everything of these kinds that nobody uses."""
    place = root or user_cache_path("peftbench")
    if not kinds:
        raise RequestError(f"Say what to clear: {', '.join(f'--{kind}' for kind in KINDS)} or --all.")
    found = cache.entries(place, kinds)
    dropped = [entry for entry in found if cache.drop(entry)]
    used = f"; in use and kept: {len(found) - len(dropped)}" if len(dropped) < len(found) else ""
    _say(f"Dropped: {len(dropped)}, {format_size(sum(entry.bytes for entry in dropped))} in {place}{used}.")


def _say(line: str) -> None:
    console.print(line, markup=False, soft_wrap=True)
