"""`peftbench data fetch` and `peftbench data check`: download data sets, and audit them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from peftbench.cli.console import errors, make_table, output, say, show, show_json
from peftbench.cli.options import CacheOption, ColumnOptions, DataOption, JsonOption, grouped

if TYPE_CHECKING:
    from rich.table import Table

    from peftbench.core.contract import Splits
    from peftbench.data.audit import Audit
    from peftbench.data.download import RemoteFile

NAMED = 5  # cases of a finding that are printed; --json has all

app = typer.Typer(help="Download and audit data sets.", rich_markup_mode=None)


@app.command()
@grouped
def check(
    name: Annotated[str, typer.Argument(help="A data set, folder:PATH or table:FILE.csv.")],
    columns: ColumnOptions,
    data: DataOption = None,
    cache: CacheOption = None,
    json: JsonOption = False,
) -> None:
    """Audit a data set. Finds leaks between parts, duplicates, contradicting labels and broken files."""
    found = audit(name, data, cache, columns.given())
    if json:
        show_json(audit_facts(found))
        return
    say(f"{found.card.title}: {_images(found.splits)}", style="bold")
    show_audit(found)


@app.command()
def fetch(
    names: Annotated[list[str], typer.Argument(help="Such as chest_xray or 'medmnist:octmnist[size=224]'.")],
    data: DataOption = None,
    accept: Annotated[bool, typer.Option("--accept-licence", help="Accept the terms that were shown.")] = False,
    keep: Annotated[bool, typer.Option("--keep", help="Keep archives after unpacking.")] = False,
) -> None:
    """Download, verify and unpack data sets. Interrupted downloads resume; data that need a form are explained."""
    raise typer.Exit(fetch_data(names, data, accept=accept, keep=keep))


# --- fetch -----------------------------------------------------------------------------------------------------------


def fetch_data(names: Sequence[str], data: Path | None, *, accept: bool, keep: bool) -> int:
    """Download what may be downloaded and print how to get the rest; return 1 if there is such a rest.

    Raises RequestError when a licence is not accepted.
    """
    from peftbench.data import download
    from peftbench.errors import RequestError
    from peftbench.storage.folders import data_folder

    root = data_folder(data)
    found = {name: download.remote_files(name, root) for name in names}
    for name in names:
        if found[name] and (terms := download.terms(name)) and not accept:
            raise RequestError(f"{name}: {terms} Run the same command with --accept-licence to accept them.")
    for name, files in found.items():
        for file in files:
            _fetch(file, keep=keep)
        for line in [] if files else download.manual_steps(name, root):
            say(line)
    return 0 if all(found.values()) else 1


def _fetch(file: RemoteFile, *, keep: bool) -> None:
    from peftbench.cli.progress import Bars
    from peftbench.data import download
    from peftbench.storage import archives

    unpacked = archives.place(file.target)
    if archives.is_packed(file.target) and unpacked.is_dir():
        say(f"{unpacked} exists; move it away to download it again.")
        return
    with Bars(output(), in_bytes=True) as bars:
        path = download.fetch(file, bars, keep=keep)
    if file.checksum:
        say(f"{path} (checksum as published)")
    elif file.size:
        say(f"{path} (size as published; no checksum is published)")
    else:
        say(f"{path} (neither checksum nor size is published)")


# --- check -----------------------------------------------------------------------------------------------------------


def audit(name: str, data: Path | None, cache: Path | None, columns: Mapping[str, str] | None = None) -> Audit:
    """Read every image of a data set. Raises DataError, MissingDataError where it is not on this machine."""
    from peftbench.cli.progress import Bars
    from peftbench.data import image_scan
    from peftbench.data.audit import Audit
    from peftbench.data.availability import open_dataset
    from peftbench.data.dataset_check import load_splits
    from peftbench.storage.folders import cache_folder, data_folder

    dataset = open_dataset(name, columns)
    card, splits = load_splits(name, dataset, data_folder(data), 0)
    with Bars(errors()) as bars:
        seen = image_scan.scan(splits, cache_folder(cache), None, partial(bars, f"auditing {name}"))
    return Audit(card, splits, seen)


def audit_facts(found: Audit) -> dict[str, Any]:
    """Return everything that an audit found, for --json."""
    return {
        "title": found.card.title,
        "split": found.splits.rule,
        "notes": found.splits.notes,
        "images": {part: len(images) for part, images in found.splits.parts.items()},
        "groups": {part: len(set(images.groups)) for part, images in found.splits.parts.items()},
        "group_key": found.card.group_key,
        "balance": found.balance,
        "sizes": found.sizes,
        "counts": found.counts,
        "found": found.found,
    }


def show_audit(found: Audit) -> None:
    """Print the balance of classes, the split, and the first cases of each finding."""
    from peftbench.data.audit import DESCRIPTIONS

    show(_balance(found))
    for line in (*_description(found), *found.splits.notes):
        say(line)
    for kind, cases in found.found.items():
        say(f"{DESCRIPTIONS[kind]}: {len(cases):,}", style="bold" if cases else "dim")
        for case in cases[:NAMED]:
            say(f"    {case}")
        if len(cases) > NAMED:
            say(f"    and {len(cases) - NAMED:,} more (--json lists all)")


def _images(splits: Splits) -> str:
    return ", ".join(f"{len(part):,} {name}" for name, part in splits.parts.items())


def _balance(found: Audit) -> Table:
    """Return the number of images of each class in each part."""
    rows = [
        [name, *(f"{images[label]:,}" for images in found.balance.values())]
        for label, name in enumerate(found.card.classes)
    ]
    return make_table(["class", *found.balance], rows, right=set(found.balance))


def _description(found: Audit) -> list[str]:
    """Return lines on the order of grades, split, groups, imbalance and image sizes."""
    counts = [count for count in found.balance["train"] if count]
    key = found.card.group_key
    groups = f"groups: {key}" if key else "groups unknown, so leaks between parts cannot be detected"
    lines = [f"split: {found.splits.rule}; {groups}"]
    if found.card.task == "ordinal":
        lines.insert(0, f"grades in order: {' < '.join(found.card.classes)}")
    if counts:
        lines.append(f"imbalance: the largest class of train has {max(counts) / min(counts):.1f} times the smallest")
    if found.sizes:
        small, large = ("{} x {}".format(*size) for size in found.sizes)
        lines.append(f"image sizes: {small} px" + ("" if small == large else f" to {large} px"))
    return lines
