"""The other contracts, for plug-ins: data sets, backbones, metrics and reports."""

from peftbench.core.contract import (
    Backbone,
    BackboneCard,
    Card,
    Dataset,
    Metric,
    Part,
    Preprocessing,
    Presence,
    Report,
    Result,
    Splits,
    of_tasks,
)

__all__ = [
    "Backbone",
    "BackboneCard",
    "Card",
    "Dataset",
    "Metric",
    "Part",
    "Preprocessing",
    "Presence",
    "Report",
    "Result",
    "Splits",
    "of_tasks",
]
