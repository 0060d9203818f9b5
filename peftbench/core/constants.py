"""Constants that several packages share."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, TypeAlias

Precision: TypeAlias = Literal["fp32", "bf16"]
PrecisionOption: TypeAlias = Literal["auto", "fp32", "bf16"]  # auto: what the hardware multiplies natively
Role: TypeAlias = Literal[
    "final", "trial", "fold"
]  # of a job: reported, a trial of tuning, or a fold of a cross-validation
Edge: TypeAlias = Literal["floor", "ceiling"]  # a budget below or above all sizes of a method
SELECTION_RULES = ("validation", "last", "oracle")  # how the reported step of a job is chosen
RANDOM_WEIGHTS = " (random weights)"  # addition to a label
PAPER_DATASETS = ("chaoyang", "covid_ct", "busi", "chest_xray", "oct", "limuc")  # D1 to D6 of the SH-PEFT paper
ALL_METHODS, PAPER_METHODS = METHOD_GROUPS = ("all", "paper")  # words of --methods for several methods
UNTRAINED = ("majority", "knn")  # methods without training, and so without a learning rate
BASELINES = ("majority", "knn", "linear")  # methods that every study runs in addition
KEPT = 0.95  # share of full fine-tuning's score that the paper finds kept by a tenth of the changes
TENTH = 0.1
HYBRID_SHARES = (0.05, 0.01, 0.001, 0.0005)  # of the weights, at which the most-moved ones of two models are compared
DEFAULT_STORE = Path("runs")
QUICK_METHODS = ("bitfit", "lora", "shpeft", "full")  # of the study without arguments
QUICK_DATASETS = ("phantom_ultrasound", "phantom_histology", "phantom_oct")
