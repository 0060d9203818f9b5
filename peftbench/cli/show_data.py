"""What `peftbench data check` and `peftbench show dataset` print: the audit, and a picture grid. Imports no torch."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from platformdirs import user_cache_path
from rich.console import Console
from rich.table import Table

from peftbench.cli import show
from peftbench.cli.progress import Bars
from peftbench.core.contract import Part, Splits
from peftbench.core.registry import registry
from peftbench.data import image_scan
from peftbench.data.audit import DESCRIPTIONS, Audit
from peftbench.data.availability import open_dataset
from peftbench.data.image_io import open_picture
from peftbench.data.splits import drop_unknown_group_key
from peftbench.errors import MissingDataError, RequestError
from peftbench.results.store import make_room
from peftbench.storage.folders import data_folder

NAMED = 5  # cases of a finding that are printed; --json has all
TILE, COLUMNS, BAND = 112, 8, 16  # of the grid: pixels of a picture, pictures a class, pixels of a heading
FORMATS = (".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp", ".pdf")
GREY = (24, 24, 24)

console = Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else 120)


def check_data(name: str, data: Path | None, cache: Path | None, *, as_json: bool) -> None:
    """Read every image of a data set and print the findings; raises DataError where it is not here."""
    found = _audit(name, data, cache)
    if as_json:
        console.print_json(json.dumps(_facts(found)))
        return
    console.print(f"{found.card.title}: {_images(found.splits)}", style="bold", markup=False)
    _print_audit(found)


def show_data(name: str, data: Path | None, cache: Path | None, out: Path | None, *, as_json: bool) -> None:
    """What the catalogue knows; of a data set that is here also the audit and, written to a file, pictures."""
    if out and out.suffix.lower() not in FORMATS:
        raise RequestError(f"--out {out}: name a file that ends in {', '.join(FORMATS)}.")
    told = show.facts("dataset", name) if name in registry("datasets").names() else asdict(open_dataset(name).card)
    found = None if isinstance(_plugin(name), type) else _audit_if_here(name, data, cache)
    file = _pictures(found, out or Path("reports") / "datasets" / f"{_stem(name)}.png") if found else None
    if as_json:
        more = {"audit": _facts(found), "pictures": str(file)} if found else {}
        console.print_json(json.dumps(told | more, default=str))
        return
    show.print_facts(f"dataset {name}", told)
    if found:
        _print_audit(found)
        console.print(f"Pictures: {file} (images of the data set: mind its licence and its patients).", markup=False)
    elif not isinstance(_plugin(name), type):
        console.print(f"Not (wholly) under {data_folder(data)}, so there is no audit and no picture.", markup=False)


def _plugin(name: str) -> object:
    """The plug-in of that very name, if there is one: a class needs an argument before it is a data set."""
    return registry("datasets").get(name) if name in registry("datasets").names() else None


def _audit_if_here(name: str, data: Path | None, cache: Path | None) -> Audit | None:
    try:
        return _audit(name, data, cache)
    except MissingDataError:
        return None


def _pictures(found: Audit, file: Path) -> Path:
    make_room(file)
    grid(found.splits, found.card.classes).save(file)
    return file


def _audit(name: str, data: Path | None, cache: Path | None) -> Audit:
    dataset = open_dataset(name)
    splits = dataset.load(data_folder(data), 0)
    with Bars(Console(stderr=True)) as bars:
        seen = image_scan.scan(splits, cache or user_cache_path("peftbench"), None, partial(bars, f"auditing {name}"))
    return Audit(drop_unknown_group_key(dataset.card, splits), splits, seen)


def _stem(name: str) -> str:
    return "".join(letter if letter.isalnum() else "_" for letter in name).strip("_")


def _facts(found: Audit) -> dict[str, Any]:
    """Everything, for --json."""
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


def _images(splits: Splits) -> str:
    return ", ".join(f"{len(part):,} {name}" for name, part in splits.parts.items())


def _print_audit(found: Audit) -> None:
    console.print(_balance(found))
    for line in (*_lines(found), *found.splits.notes):
        console.print(line, markup=False)
    for kind, cases in found.found.items():
        console.print(f"{DESCRIPTIONS[kind]}: {len(cases):,}", markup=False, style="bold" if cases else "dim")
        for case in cases[:NAMED]:
            console.print(f"    {case}", markup=False)
        if len(cases) > NAMED:
            console.print(f"    and {len(cases) - NAMED:,} more (--json lists all)", markup=False)


def _balance(found: Audit) -> Table:
    """Images of each class, by part."""
    table = Table(box=None, pad_edge=False)
    table.add_column("class")
    for part in found.balance:
        table.add_column(part, justify="right")
    for label, name in enumerate(found.card.classes):
        table.add_row(name, *(f"{images[label]:,}" for images in found.balance.values()))
    return table


def _lines(found: Audit) -> list[str]:
    """Split, groups, imbalance, sizes."""
    counts = [count for count in found.balance["train"] if count]
    known = f"groups: {found.card.group_key}" if found.card.group_key else "no group is known, so leaks cannot be seen"
    lines = [f"split: {found.splits.rule}; {known}"]
    if counts:
        lines.append(f"imbalance: the largest class of train has {max(counts) / min(counts):.1f} times the smallest")
    if found.sizes:
        small, large = ("{} x {}".format(*size) for size in found.sizes)
        lines.append(f"image sizes: {small} px" + ("" if small == large else f" to {large} px"))
    return lines


# --- pictures ------------------------------------------------------------------------------------------------------


def grid(splits: Splits, classes: tuple[str, ...]) -> Image.Image:
    """COLUMNS pictures of each class, evenly from the whole of train, under the class's name."""
    sheet = Image.new("RGB", (COLUMNS * TILE, len(classes) * (TILE + BAND)), GREY)
    draw = ImageDraw.Draw(sheet)
    for label, name in enumerate(classes):
        top = label * (TILE + BAND)
        draw.text((2, top + 2), name, fill="white")
        for column, i in enumerate(_chosen(splits.train, label)):
            sheet.paste(_tile(splits.train.images[i]), (column * TILE, top + BAND))
    return sheet


def _chosen(part: Part, label: int) -> list[int]:
    """Positions of up to COLUMNS images of a class, evenly spaced."""
    shown = part.labels == label if part.labels.ndim == 1 else part.labels[:, label] > 0
    mine = np.flatnonzero(shown)
    places = np.linspace(0, len(mine) - 1, min(COLUMNS, len(mine))).round().astype(int)
    return [int(i) for i in mine[places]]


def _tile(image: Path | NDArray[np.uint8]) -> Image.Image:
    """A square with the whole image in it; a cross where it does not open."""
    tile = Image.new("RGB", (TILE, TILE), GREY)
    try:
        picture = open_picture(image) if isinstance(image, Path) else Image.fromarray(image)
    except (OSError, ValueError, SyntaxError):
        ImageDraw.Draw(tile).line((0, 0, TILE, TILE), fill="red", width=3)
        return tile
    picture.thumbnail((TILE - 2, TILE - 2))
    tile.paste(picture, ((TILE - picture.width) // 2, (TILE - picture.height) // 2))
    return tile
