"""`peftbench weights`: pretrained weights by the name of their backbone: download, list, find."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from peftbench.cli.console import errors, make_table, say, show, show_json
from peftbench.cli.options import JsonOption
from peftbench.core.syntax import is_random

if TYPE_CHECKING:
    from peftbench.core.contract import HubFile
    from peftbench.core.presets import Preset
    from peftbench.models.hub import Fetched

NameArgument = Annotated[str, typer.Argument(help="A backbone of `peftbench list backbones`, such as clip_vit_b16.")]
SHIPPED = "in the package"

app = typer.Typer(help="Download, list and find pretrained weights.", rich_markup_mode=None)


@app.command()
def fetch(
    names: Annotated[
        list[str], typer.Argument(help="Backbones such as clip_vit_b16 or timm:vit_small_patch14_dinov2.")
    ],
    json: JsonOption = False,
) -> None:
    """Download weights from the Hugging Face hub into its cache, and check their SHA-256."""
    found = {name: fetch_weights(name) for name in names}
    if json:
        show_json({name: asdict(one) for name, one in found.items()})
        return
    for one in found.values():
        say(str(one.path))
        say(f"revision {one.revision}, sha256 {one.sha256}")


@app.command("list")
def list_(json: JsonOption = False) -> None:
    """List the weights of every preset: where they come from, how large they are, and whether they are here."""
    rows = _rows()
    if json:
        show_json(rows)
        return
    columns = ["name", *next(iter(rows.values()))]
    show(make_table(columns, [[name, *map(str, row.values())] for name, row in rows.items()]))
    say("gated: access must be asked for on the hub; `peftbench show backbone NAME` has the address and the licence.")


@app.command()
def where(name: NameArgument) -> None:
    """Print the file of a backbone's weights on this machine."""
    say(str(_find(name).here()))


# --- what the verbs share --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Origin:
    """Where the weights of a backbone come from, and how to find them on this machine."""

    file: HubFile | None
    licence: str
    source: str
    here: Callable[[], Path]  # raises WeightsError

    @property
    def is_missing(self) -> bool:
        """Whether the hub has the weights and this machine does not."""
        from peftbench.errors import WeightsError

        try:
            return not (self.file is None or self.here())
        except WeightsError:
            return True

    def __str__(self) -> str:
        """Return what would be downloaded, how large it is and under which licence."""
        from peftbench.models import hub

        if self.file is None:
            return self.source
        return f"{hub.describe(self.file)}, {hub.describe_size(self.file)}, licence: {self.licence}"


def fetch_weights(name: str) -> Fetched:
    """State what is downloaded, download it and check it. Raises RequestError, WeightsError."""
    from peftbench.errors import RequestError
    from peftbench.models import hub

    origin = _find(name)
    if origin.file is None:
        raise RequestError(f"The weights of {name} are not on the Hugging Face hub: {origin.source}.")
    if (here := hub.cached(origin.file)) is None:
        say(f"Downloading the weights of {name}: {origin}.", to=errors())
    elif origin.file.revision:
        return hub.fetched(here)
    return hub.fetch(origin.file)


def fetch_missing(backbone: str, given: Path | None) -> None:
    """Download the weights of a study's backbone if the hub has them and this machine does not."""
    if backbone and not given and not is_random(backbone) and _find(backbone).is_missing:
        fetch_weights(backbone)


def download_note(backbone: str) -> str:
    """Return a sentence on what a run would download first; "" if nothing."""
    origin = None if is_random(backbone) else _find(backbone)
    if origin is None or origin.file is None or not origin.is_missing:
        return ""
    gated = f"; gated: ask for access at {origin.file.gated}" if origin.file.gated else ""
    return f"`run` would first download the weights: {origin}{gated}."


def _find(name: str) -> Origin:
    """Return the origin of a backbone's weights; of a preset without importing torch."""
    from peftbench.core import presets
    from peftbench.core.catalogue_files import backbone_names, own_backbones
    from peftbench.core.syntax import parse
    from peftbench.models import hub

    plain = parse(name).name
    if plain in {*backbone_names(), *own_backbones()}:
        known = presets.preset(plain)
        source = "; ".join(known.pretraining) or "not stated"
        return Origin(known.hub_file, known.licence, source, partial(hub.find_preset_weights, plain, None))
    from peftbench.models import backbone

    plugin = backbone.locate(name, blank=True).plugin
    card = plugin.card
    return Origin(getattr(plugin, "hub_file", None), card.licence, card.source, partial(plugin.weights, None))


def _rows() -> dict[str, dict[str, Any]]:
    """Return the weights of every preset. Imports no torch."""
    from peftbench.core import presets
    from peftbench.core.catalogue_files import backbone_names, own_backbones

    return {name: _row(name, presets.preset(name)) for name in sorted({*backbone_names(), *own_backbones()})}


def _row(name: str, known: Preset) -> dict[str, Any]:
    from peftbench.models import hub

    file = known.hub_file
    place = SHIPPED if known.weights.shipped else known.weights.path
    return {
        "from": file.repository if file else place,
        "size": hub.describe_size(file) if file else "",
        "gated": "yes" if known.gated else "no",
        "here": "yes" if hub.has_preset_weights(name) else "no",
    }
