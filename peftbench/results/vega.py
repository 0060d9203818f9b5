"""One style for all figures, which are Vega-Lite specifications, and the files that are made from them.

Colors are those of Okabe and Ito, which color-blind readers can tell apart. Vega-Lite:
https://vega.github.io/vega-lite/docs/.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeAlias

from peftbench.storage.files import write_bytes, write_text

VegaSpec: TypeAlias = dict[str, Any]

SCHEMA = "https://vega.github.io/schema/vega-lite/v6.json"  # a name; nothing is fetched
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C6D31", "#999933")
GREYS = ("#555555", "#888888", "#AAAAAA")
SHAPES = ("circle", "square", "diamond", "triangle-up", "triangle-down", "cross", "triangle-right", "triangle-left")
STYLE: Mapping[str, Any] = MappingProxyType(  # of files; the page has the colors of the reader's browser
    {
        "background": "white",
        "font": "Helvetica, Arial, sans-serif",
        "view": {"stroke": None},
        "axis": {"gridColor": "#E6E6E6", "domainColor": "#888888", "tickColor": "#888888", "titleFontWeight": "normal"},
        "legend": {"orient": "bottom", "columns": 4, "labelLimit": 160},
    }
)
SCALE = 2  # pixels of a PNG per pixel of the drawing


def save(spec: VegaSpec, stem: Path) -> list[Path]:
    """Write a figure as STEM.svg, STEM.pdf and STEM.png and return the files. Raises OSError."""
    import vl_convert  # noqa: PLC0415 - `peftbench list` loads every report

    styled = {"$schema": SCHEMA, **spec, "config": dict(STYLE)}
    svg, pdf, png = (stem.with_name(f"{stem.name}.{kind}") for kind in ("svg", "pdf", "png"))
    drawing = vl_convert.vegalite_to_svg(styled)
    write_text(svg, drawing)
    write_bytes(pdf, vl_convert.svg_to_pdf(drawing))
    write_bytes(png, vl_convert.svg_to_png(drawing, scale=SCALE))
    return [svg, pdf, png]


def script() -> str:
    """Return the JavaScript that draws figures in a browser; it defines vegaEmbed and fits into a script element."""
    import vl_convert  # noqa: PLC0415 - slow to import, and `peftbench list` does not need it

    bundle: str = vl_convert.javascript_bundle()  # type: ignore[call-arg] # its stub requires what it does not
    return bundle.replace("</script", "<\\/script")
