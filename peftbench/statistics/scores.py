"""Confusion matrices and the scores that are functions of them, for metrics and intervals."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from peftbench.core.contract import Labels, Logits
from peftbench.errors import DataError, RequestError

Values: TypeAlias = NDArray[np.float64]


def confusions(logits: Logits, labels: Labels, groups: Sequence[int]) -> Values:
    """Return the confusion matrix of each group (groups, classes, classes), rows true, columns predicted.

    The predicted class has the largest logit, the first of equal ones. For multi-label data, labels (n, labels), there
    is one matrix per label (groups, labels, 2, 2), and a label is predicted if its logit is above 0. Raises DataError
    for shapes or labels that do not match.
    """
    if labels.ndim == 2:  # noqa: PLR2004 - one column per label
        return _label_tables(logits, labels, groups)
    if logits.ndim != 2 or logits.shape[0] != len(labels) or len(labels) != len(groups):  # noqa: PLR2004
        shapes = f"Logits {logits.shape}, labels {labels.shape} and {len(groups)} groups"
        raise DataError(f"{shapes} do not match; logits are (images, classes), with one label and one group per image.")
    classes = logits.shape[1]
    if labels.size and not 0 <= labels.min() <= labels.max() < classes:
        raise DataError(f"Labels from {labels.min()} to {labels.max()} do not match logits of {classes} classes.")
    if not labels.size:
        return np.zeros((0, classes, classes))
    names, group = np.unique(np.asarray(groups), return_inverse=True)
    cells = (group * classes + labels) * classes + logits.argmax(1)
    return np.bincount(cells, minlength=len(names) * classes**2).reshape(-1, classes, classes).astype(np.float64)


def _label_tables(logits: Logits, labels: Labels, groups: Sequence[int]) -> Values:
    if logits.shape != labels.shape or len(labels) != len(groups):
        shapes = f"Logits {logits.shape}, labels {labels.shape} and {len(groups)} groups"
        raise DataError(
            f"{shapes} do not match; multi-label logits and labels are (images, labels), with one group per image."
        )
    if not np.isin(labels, (0, 1)).all():
        raise DataError(f"Multi-label labels must be 0 or 1, got {labels.min()} to {labels.max()}.")
    names, group = np.unique(np.asarray(groups, np.int64), return_inverse=True)
    width = labels.shape[1]
    cells = ((group[:, None] * width + np.arange(width)) * 2 + labels) * 2 + (logits > 0)
    tables = np.bincount(cells.ravel(), minlength=len(names) * width * 4)
    return tables.reshape(-1, width, 2, 2).astype(np.float64)


def confusion(logits: Logits, labels: Labels) -> Values:
    """Return the confusion matrix of all images (1, classes, classes), rows true, columns predicted.

    For multi-label data one matrix per label (1, labels, 2, 2).
    """
    total: Values = confusions(logits, labels, [0] * len(labels)).sum(0, keepdims=True)
    return total


def recalls(tables: Values) -> Values:
    """Return the recall of each class (..., classes); nan for a class that does not occur."""
    return _ratio(_hits(tables), tables.sum(-1), np.nan)


def precisions(tables: Values) -> Values:
    """Return the precision of each class (..., classes); nan for a class that is never predicted."""
    return _ratio(_hits(tables), tables.sum(-2), np.nan)


def f1(tables: Values) -> Values:
    """Return F1 per class (..., classes): 0 if absent and never predicted, as in scikit-learn. nan without images."""
    found = _ratio(2 * _hits(tables), _counted(tables), 0.0)
    return np.where((tables.sum((-2, -1)) > 0)[..., None], found, np.nan)


def macro_f1(tables: Values) -> Values:
    """Return the mean of `f1` over all classes (...,); nan without images."""
    return np.asarray(f1(tables).mean(-1))


def weighted_f1(tables: Values) -> Values:
    """Return the mean F1 over classes weighted by their images (...,); nan without images."""
    present = tables.sum(-1)
    return _ratio(np.asarray((f1(tables) * present).sum(-1)), present.sum(-1), np.nan)


def accuracy(tables: Values) -> Values:
    """Return the share of correctly classified images (...,); nan without images."""
    return _ratio(_hits(tables).sum(-1), tables.sum((-2, -1)), np.nan)


def balanced_accuracy(tables: Values) -> Values:
    """Return the mean recall over the classes that occur (...,), as in scikit-learn; without images nan."""
    recall = recalls(tables)
    return _ratio(np.nansum(recall, -1), (~np.isnan(recall)).sum(-1).astype(np.float64), np.nan)


def _hits(tables: Values) -> Values:
    return np.asarray(np.diagonal(tables, axis1=-2, axis2=-1))


def _ratio(above: Values, below: Values, otherwise: float) -> Values:
    ratio: Values = np.divide(above, below, out=np.full(np.shape(below), otherwise), where=below > 0)
    return ratio


def _weighted_label_f1(tables: Values) -> Values:
    present = tables[..., 1, :].sum(-1)
    return _ratio(np.asarray((f1(tables)[..., 1] * present).sum(-1)), present.sum(-1), np.nan)


STATISTICS: Mapping[str, Callable[[Values], Values]] = MappingProxyType(  # of tables (..., classes, classes)
    {"macro_f1": macro_f1, "accuracy": accuracy, "balanced_accuracy": balanced_accuracy, "weighted_f1": weighted_f1}
)
LABEL_STATISTICS: Mapping[str, Callable[[Values], Values]] = MappingProxyType(  # multi-label: (..., labels, 2, 2)
    {
        "macro_f1": lambda tables: f1(tables)[..., 1].mean(-1),
        "weighted_f1": _weighted_label_f1,
        "accuracy": lambda tables: accuracy(tables).mean(-1),
        "balanced_accuracy": lambda tables: balanced_accuracy(tables).mean(-1),
    }
)


def of_resamples(metric: str, labels: Labels, whole: Values) -> Callable[[Values], Values]:
    """Return the statistic for resamples of `whole`: macro F1 leaves out classes that a resample happens to lack.

    Counting a missing rare class as F1 = 0 would bias the interval downwards, however good the predictions are.
    """
    plain = statistic(metric, labels)
    if metric != "macro_f1":
        return plain

    def shown(values: NDArray[Any]) -> NDArray[Any]:
        return values if labels.ndim == 1 else values[..., 1]

    ever = _counted(whole) > 0

    def macro_f1(tables: Values) -> Values:
        counted = _counted(tables)
        counts = shown((counted > 0) | ~ever).sum(-1).astype(np.float64)
        return _ratio(shown(_ratio(2 * _hits(tables), counted, 0.0)).sum(-1), counts, 0.0)

    return macro_f1


def _counted(tables: Values) -> Values:
    """Return how many images are of a class plus how many are predicted as it (..., classes)."""
    return np.asarray(tables.sum(-1) + tables.sum(-2))


def score(metric: str, logits: Logits, labels: Labels) -> float:
    """Return a statistic of the confusion matrix for labels (n,), or (n, labels) with equal weight of each label."""
    return statistic(metric, labels)(confusion(logits, labels)).item()


def statistic(metric: str, labels: Labels) -> Callable[[Values], Values]:
    """Return the function from matrices to scores (...,) for labels of this shape. Raises RequestError for others."""
    if metric not in STATISTICS:
        raise RequestError(f"No interval for the metric {metric!r}; choose one of {', '.join(STATISTICS)}.")
    return (STATISTICS if labels.ndim == 1 else LABEL_STATISTICS)[metric]
