"""One style for all figures, and files that are the same whenever the figure is the same.

Colors are those of Okabe and Ito, distinguishable by color-blind readers; each line also has its own marker.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType, ModuleType
from typing import TYPE_CHECKING, Any

from peftbench.storage.files import replacing

if TYPE_CHECKING:
    import matplotlib.figure

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C6D31", "#000000")
MARKERS = "os^Dv<>Pp*hX"
DASHES = ("--", ":", "-.", (0, (8, 3)), (0, (3, 1, 1, 1, 1, 1)))
DPI = 200
STYLE: Mapping[Any, object] = MappingProxyType(
    {
        "font.size": 9,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.edgecolor": "#666666",
        "axes.grid": True,
        "axes.grid.axis": "y",
        "axes.axisbelow": True,
        "grid.color": "#E6E6E6",
        "xtick.color": "#444444",
        "ytick.color": "#444444",
        "pdf.fonttype": 42,  # text that can be searched and edited
        "svg.hashsalt": "peftbench",  # the same figure is the same file
    }
)
METADATA: Mapping[str, dict[str, Any]] = MappingProxyType(  # by format, without the time
    {
        "png": {"Software": None},
        "svg": {"Date": None, "Creator": "peftbench"},
        "pdf": {"CreationDate": None, "Creator": "peftbench", "Producer": None},
    }
)


def save(
    draw: Callable[[matplotlib.figure.Figure], None],
    size: tuple[float, float],
    stem: Path,
    formats: Sequence[str] = ("png", "svg", "pdf"),
) -> list[Path]:
    """Let `draw` fill a figure of `size` inches, write it in each format as STEM.FORMAT and return the files.

    Raises OSError.
    """
    mpl = import_matplotlib()
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: PLC0415 - `peftbench list` loads every report
    from matplotlib.figure import Figure  # noqa: PLC0415 - likewise

    files = [stem.with_name(f"{stem.name}.{suffix}") for suffix in formats]
    with mpl.rc_context(dict(STYLE)):
        figure = Figure(figsize=size, layout="constrained")
        FigureCanvasAgg(figure)
        draw(figure)
        for file, suffix in zip(files, formats, strict=True):
            with replacing(file) as draft:
                figure.savefig(draft, format=suffix, dpi=DPI, metadata=METADATA[suffix])
    return files


def grid(panels: int) -> tuple[int, int]:
    """Return rows and columns: at most four panels in a row, and no row with a single one."""
    columns = panels if panels <= 4 else 3 if panels in (5, 6, 9) else 4  # noqa: PLR2004 - the small cases
    return math.ceil(panels / columns), columns


def import_matplotlib() -> ModuleType:
    """Import matplotlib without MPLBACKEND: these figures need no backend, and an unknown one would be an error."""
    given = os.environ.pop("MPLBACKEND", None)
    try:
        import matplotlib as mpl  # noqa: PLC0415 - likewise
    finally:
        if given is not None:
            os.environ["MPLBACKEND"] = given
    return mpl
