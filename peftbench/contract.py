"""The other contracts, for plug-ins: data sets, backbones, metrics, reports and trackers."""

from peftbench.core.contract import (
    Backbone,
    BackboneCard,
    Dataset,
    DatasetCard,
    Metric,
    Part,
    Preprocessing,
    Presence,
    Report,
    Result,
    Splits,
    TrackedJob,
    Tracker,
    of_tasks,
)

Card = DatasetCard  # its name in version 0.1.0

__all__ = [
    "Backbone",
    "BackboneCard",
    "Card",
    "Dataset",
    "DatasetCard",
    "Metric",
    "Part",
    "Preprocessing",
    "Presence",
    "Report",
    "Result",
    "Splits",
    "TrackedJob",
    "Tracker",
    "of_tasks",
]
