"""How each kind of figure is drawn: from rows of numbers to the Vega-Lite specification of one panel.

Each method has a color and a shape of its own, so that figures are legible in grey.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle
from types import MappingProxyType
from typing import Any

from peftbench.results.series import Rows
from peftbench.results.summary import Block
from peftbench.results.vega import COLORS, GREYS, SHAPES, VegaSpec

WIDTH, HEIGHT = 300, 230  # of a panel in a file, in pixels; on the page a panel is as wide as its column
ROW = 18  # height of a method where methods are rows
RANKS = {"zero": False, "nice": False, "padding": 8}  # the scale of average ranks
LOGARITHMIC = 30  # a cost whose largest value is that many times its smallest has a logarithmic axis


def score_against_share(rows: Rows, block: Block) -> VegaSpec:
    """Draw macro F1 with intervals over the trainable share; methods that train nothing in the backbone as lines."""
    trained = [row for row in rows if row["trained"]]
    level = [row for row in rows if not row["trained"]]
    tips = _tips(method="method", share="share (%)", trained="trained weights", score="macro F1 (%)", **BOUNDS)
    share = {
        "field": "place",
        "type": "quantitative",
        "title": "trainable share of the backbone (%)",
        "scale": {"type": "log", "nice": False, "padding": 18},
        "axis": {"format": "~g", "tickCount": 5, "grid": False},
    }
    color = _color(rows, block)
    layers = [
        {
            "mark": {"type": "rule", "strokeDash": [5, 3], "strokeWidth": 1.5},
            "data": {"values": level},
            "encoding": {"y": _score(), "color": color, "tooltip": tips},
        },
        {
            "mark": {"type": "line", "strokeWidth": 1.5},
            "data": {"values": trained},
            "encoding": {"x": share, "y": _score(), "detail": {"field": "label"}, "color": color},
        },
        {
            "mark": {"type": "rule", "strokeWidth": 1},
            "data": {"values": trained},
            "encoding": {
                "x": share,
                "y": {"field": "low", "type": "quantitative"},
                "y2": {"field": "high"},
                "color": color,
            },
        },
        {
            "mark": {"type": "point", "filled": True, "size": 70, "opacity": 1},
            "data": {"values": trained},
            "encoding": {"x": share, "y": _score(), "color": color, "shape": _shape(rows, block), "tooltip": tips},
        },
    ]
    return _panel(layer=layers if trained else layers[:1])


def tiers(rows: Rows, _: Block) -> VegaSpec:
    """Draw the score of every method with its interval, the best first, the first tier apart."""
    methods = [row["method"] for row in sorted(rows, key=lambda row: -row["score"])]
    y = _methods(methods)
    tier = {
        "field": "tier",
        "type": "nominal",
        "title": "tier",
        "scale": {"domain": sorted({row["tier"] for row in rows if row["tier"]}), "range": [COLORS[0], *GREYS]},
    }
    tips = _tips(method="method", tier="tier", score="macro F1 (%)", **BOUNDS)
    score = {**_score(), "axis": {"grid": True}}
    layers = [
        {
            "mark": {"type": "rule", "strokeWidth": 1.5},
            "encoding": {"y": y, "x": {**score, "field": "low"}, "x2": {"field": "high"}, "color": tier},
        },
        {
            "mark": {"type": "point", "filled": True, "size": 70, "opacity": 1},
            "encoding": {"y": y, "x": score, "color": tier, "tooltip": tips},
        },
    ]
    return _panel(rows, layer=layers, height=ROW * len(methods))


def matrix(rows: Rows, block: Block) -> VegaSpec:
    """Draw the difference of every pair of methods, row minus column; a differing pair in bold."""
    order = _in_order(rows, block)
    widest = max((abs(row["difference"]) for row in rows if row["difference"] is not None), default=1) or 1
    axis = {"labelLimit": 150, "domain": False, "ticks": False, "grid": False}
    encoding = {
        "y": {"field": "method", "type": "nominal", "sort": order, "title": None, "axis": axis},
        "x": {"field": "other", "type": "nominal", "sort": order, "title": None, "axis": {**axis, "labelAngle": -60}},
    }
    tips = _tips(method="method", other="minus", difference="points", **BOUNDS, p="p (Holm)", verdict="verdict")
    color = {
        "field": "difference",
        "type": "quantitative",
        "legend": None,
        "scale": {"domain": [-widest, 0, widest], "range": ["#E69F00", "#FFFFFF", "#56B4E9"]},
    }
    layers = [
        {"mark": {"type": "rect", "stroke": "#DDDDDD"}, "encoding": {"color": color, "tooltip": tips}},
        {
            "mark": {"type": "text", "fontSize": 9, "color": "#222222"},
            "transform": [{"filter": "datum.verdict != 'better' && datum.verdict != 'worse'"}],
            "encoding": {"text": {"field": "difference", "format": "+.1f"}, "tooltip": tips},
        },
        {
            "mark": {"type": "text", "fontSize": 9, "fontWeight": "bold", "color": "#000000"},
            "transform": [{"filter": "datum.verdict == 'better' || datum.verdict == 'worse'"}],
            "encoding": {"text": {"field": "difference", "format": "+.1f"}, "tooltip": tips},
        },
    ]
    return _panel(rows, layer=layers, encoding=encoding, height=20 * len(order))


def critical_difference(rows: Rows, _: Block) -> VegaSpec:
    """Draw average ranks with the critical difference as a bar from the best one."""
    order = [row["method"] for row in rows]
    best, critical = rows[0]["rank"], rows[0]["critical"]
    x = {"field": "rank", "type": "quantitative", "title": "average rank (1 is best)", "scale": RANKS}
    layers: list[VegaSpec] = [
        {
            "mark": {"type": "point", "filled": True, "size": 70, "opacity": 1, "color": COLORS[0]},
            "encoding": {"y": _methods(order), "x": x, "tooltip": _tips(method="method", rank="average rank")},
        },
    ]
    if critical is not None:
        reach = [{"from": best, "to": best + critical}]
        bar = {
            "mark": {"type": "rect", "opacity": 0.15, "color": GREYS[1]},
            "data": {"values": reach},
            "encoding": {"x": {"field": "from", "type": "quantitative"}, "x2": {"field": "to"}},
        }
        layers.insert(0, bar)
    return _panel(rows, layer=layers, height=ROW * len(order))


def pareto(rows: Rows, block: Block) -> VegaSpec:
    """Draw the score over one cost of every method, with the Pareto front."""
    front = _front(rows)
    title, least, most = rows[0]["title"], min(row["value"] for row in rows), max(row["value"] for row in rows)
    is_logarithmic = least > 0 and most > LOGARITHMIC * least
    log, linear = {"type": "log", "nice": False, "padding": 12}, {"type": "linear", "zero": False, "nice": True}
    x = {"field": "value", "type": "quantitative", "title": title, "scale": log if is_logarithmic else linear}
    color = _color(rows, block)
    tips = _tips(method="method", value=title, score="macro F1 (%)", **BOUNDS)
    layers = [
        {
            "mark": {"type": "line", "interpolate": "step-after", "color": GREYS[1], "strokeDash": [4, 3]},
            "data": {"values": front},
            "encoding": {"x": x, "y": _score()},
        },
        {
            "mark": {"type": "point", "filled": True, "size": 70, "opacity": 1},
            "encoding": {"x": x, "y": _score(), "color": color, "shape": _shape(rows, block), "tooltip": tips},
        },
    ]
    return _panel(rows, layer=layers)


def seeds(rows: Rows, block: Block) -> VegaSpec:
    """Draw the score of every seed."""
    order = _in_order(rows, block)
    tips = _tips(method="method", seed="seed", score="macro F1 (%)")
    mark = {"type": "tick", "thickness": 2, "color": COLORS[0], "size": 12}
    return _panel(
        rows, mark=mark, encoding={"y": _methods(order), "x": _score(), "tooltip": tips}, height=ROW * len(order)
    )


def curves(rows: Rows, block: Block) -> VegaSpec:
    """Draw macro F1 on validation over the training steps, mean over seeds."""
    x = {"field": "step", "type": "quantitative", "title": "training step", "axis": {"grid": False, "tickCount": 5}}
    y = {**_score(), "field": "validation", "title": "validation macro F1 (%)"}
    tips = _tips(method="method", step="step", validation="macro F1 (%)", loss="training loss")
    mark = {"type": "line", "point": {"size": 18}, "strokeWidth": 1.5}
    return _panel(rows, mark=mark, encoding={"x": x, "y": y, "color": _color(rows, block), "tooltip": tips})


def reliability(rows: Rows, block: Block) -> VegaSpec:
    """Draw the accuracy of predictions over their confidence; on the diagonal both agree."""
    low = min(row["confidence"] for row in rows)
    diagonal = [{"confidence": low, "accuracy": low}, {"confidence": 100, "accuracy": 100}]
    x = {
        "field": "confidence",
        "type": "quantitative",
        "title": "confidence (%)",
        "scale": {"zero": False},
        "axis": {"grid": False},
    }
    y = {"field": "accuracy", "type": "quantitative", "title": "right predictions (%)", "scale": {"zero": False}}
    tips = _tips(method="method", confidence="confidence (%)", accuracy="right (%)", images="predictions")
    layers = [
        {
            "mark": {"type": "line", "strokeDash": [4, 3], "color": GREYS[1]},
            "data": {"values": diagonal},
            "encoding": {"x": x, "y": y},
        },
        {
            "mark": {"type": "line", "point": {"size": 25}, "strokeWidth": 1.5},
            "encoding": {"x": x, "y": y, "color": _color(rows, block), "tooltip": tips},
        },
    ]
    return _panel(rows, layer=layers)


def confusion(rows: Rows, block: Block) -> VegaSpec:
    """Draw the confusion matrix of one method; on the page a list chooses which."""
    classes = list(dict.fromkeys(row["true"] for row in rows))
    best = _in_order(rows, block)
    axis = {"labelLimit": 120, "domain": False, "ticks": False, "grid": False}
    encoding = {
        "y": {"field": "true", "type": "nominal", "sort": classes, "title": "class", "axis": axis},
        "x": {
            "field": "predicted",
            "type": "nominal",
            "sort": classes,
            "title": "predicted",
            "axis": {**axis, "labelAngle": -40},
        },
        "tooltip": _tips(true="class", predicted="predicted", images="images, mean over seeds", share="share (%)"),
    }
    color = {
        "field": "share",
        "type": "quantitative",
        "legend": None,
        "scale": {"domain": [0, 100], "range": ["#FFFFFF", "#0072B2"]},
    }
    dark = {"condition": {"test": "datum.share > 55", "value": "#FFFFFF"}, "value": "#222222"}
    choice = {
        "name": "method",
        "value": best[0],
        "bind": {"input": "select", "options": best, "name": "method "},
    }
    layers = [
        {"mark": {"type": "rect", "stroke": "#DDDDDD"}, "encoding": {"color": color}},
        {
            "mark": {"type": "text", "fontSize": 10},
            "encoding": {"text": {"field": "images", "format": "~g"}, "color": dark},
        },
    ]
    filtered = [{"filter": "datum.method == method"}]
    return _panel(rows, params=[choice], transform=filtered, layer=layers, encoding=encoding, height=34 * len(classes))


def recalls(rows: Rows, block: Block) -> VegaSpec:
    """Draw the recall of each class of every method."""
    classes = list(dict.fromkeys(row["class"] for row in rows))
    x = {"field": "recall", "type": "quantitative", "title": "recall (%)", "scale": {"zero": False}}
    y = {"field": "class", "type": "nominal", "sort": classes, "title": None, "axis": {"labelLimit": 140, "grid": True}}
    mark = {"type": "point", "filled": True, "size": 60, "opacity": 0.85}
    tips = _tips(method="method", **{"class": "class"}, recall="recall (%)")
    encoding = {"x": x, "y": y, "color": _color(rows, block), "shape": _shape(rows, block), "tooltip": tips}
    return _panel(rows, mark=mark, encoding=encoding, height=max(60, 34 * len(classes)))


def searches(rows: Rows, block: Block) -> VegaSpec:
    """Draw the validation score of every trial over its learning rate; a ring marks the chosen one."""
    x = {
        "field": "lr",
        "type": "quantitative",
        "title": "learning rate",
        "scale": {"type": "log", "nice": False, "padding": 12},
        "axis": {"format": "~e", "tickCount": 6, "grid": False},
    }
    y = {**_score(), "title": "validation macro F1 (%)"}
    color, dash = _color(rows, block), {"field": "optimizer", "type": "nominal", "title": "optimizer"}
    tips = _tips(method="method", optimizer="optimizer", lr="learning rate", fields="fields", score="macro F1 (%)")
    layers = [
        {
            "mark": {"type": "line", "point": {"size": 25}, "strokeWidth": 1.3},
            "encoding": {
                "x": x,
                "y": y,
                "color": color,
                "strokeDash": dash,
                "detail": {"field": "search"},
                "tooltip": tips,
            },
        },
        {
            "mark": {"type": "point", "size": 110, "strokeWidth": 1.5},
            "transform": [{"filter": "datum.chosen"}],
            "encoding": {"x": x, "y": y, "color": color, "tooltip": tips},
        },
    ]
    return _panel(rows, layer=layers)


# --- shared ----------------------------------------------------------------------------------------------------------

BOUNDS: Mapping[str, str] = MappingProxyType({"low": "95% from", "high": "to"})


def _panel(rows: Rows | None = None, *, height: int = HEIGHT, **parts: Any) -> VegaSpec:  # noqa: ANN401 - of the specification
    data = {} if rows is None else {"data": {"values": rows}}
    return {"width": WIDTH, "height": height, **data, **parts}


def _score() -> VegaSpec:
    return {"field": "score", "type": "quantitative", "title": "macro F1 (%)", "scale": {"zero": False}}


def _methods(order: Sequence[str]) -> VegaSpec:
    axis = {"labelLimit": 180, "grid": True, "ticks": False, "domain": False}
    return {"field": "method", "type": "nominal", "sort": list(order), "title": None, "axis": axis}


def _in_order(rows: Rows, block: Block) -> list[str]:
    """Return the methods of the rows, the one with the highest macro F1 over its data sets first."""
    present = {row["method"] for row in rows}
    found = [row for row in block.rows if row.name in present]
    return [row.name for row in sorted(found, key=lambda row: -row.mean("macro_f1", list(row.replicates)))]


def _color(rows: Rows, block: Block) -> VegaSpec:
    """Return the color of each method, the same in all panels of a block; baselines are grey."""
    colors, greys = cycle(COLORS), cycle(GREYS)
    return _scale(rows, {row.name: next(greys if row.baseline else colors) for row in block.rows})


def _shape(rows: Rows, block: Block) -> VegaSpec:
    """Return the shape of each method, the same in all panels of a block."""
    return _scale(rows, dict(zip((row.name for row in block.rows), cycle(SHAPES), strict=False)))


def _scale(rows: Rows, every: Mapping[str, str]) -> VegaSpec:
    names = list(dict.fromkeys(row["method"] for row in rows))
    scale = {"domain": names, "range": [every[name] for name in names]}
    return {"field": "method", "type": "nominal", "title": None, "scale": scale}


def _tips(**titles: str) -> list[VegaSpec]:
    return [{"field": field, "title": title} for field, title in titles.items()]


def _front(rows: Rows) -> Rows:
    """Return the rows that no other beats in cost and score, by cost."""
    front: Rows = []
    for row in sorted(rows, key=lambda row: (row["value"], -row["score"])):
        if not front or row["score"] > front[-1]["score"]:
            front.append(row)
    return front
