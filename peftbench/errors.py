"""Errors that a user can correct.

    PeftbenchError
    +-- RequestError            an option or argument is invalid (exit code 2)
    |   +-- UnknownNameError    no plug-in of that name; suggests similar names
    |   +-- CatalogueError      an invalid TOML file of methods/ or datasets/
    +-- PluginError             a plug-in cannot be loaded or breaks its contract
    +-- DataError               invalid images or labels
    |   +-- MissingDataError    a data set is missing or incomplete on this machine
    |   +-- BrokenImagesError   images that cannot be decoded
    |   +-- SplitError          parts that overlap, or a class missing in train
    +-- WeightsError            pretrained weights that are missing, unsafe or of another network
    +-- DeltaError              a delta that is damaged or made for other weights
    +-- StoreError              the folder of results cannot be read or written
    +-- JobError                one job failed: it gets a failed record, and the study continues
        +-- DivergedError       the loss or the logits are no longer finite

Every message is one or two sentences: the problem, the value, the fix.
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

LISTED = 80  # names; a longer list is only counted


class PeftbenchError(Exception):
    """Base class: the command line prints its message without a traceback."""


class RequestError(PeftbenchError):
    """An option or argument is invalid."""


class UnknownNameError(RequestError):
    """No plug-in has this name."""

    def __init__(self, kind: str, name: str, known: Iterable[str]) -> None:
        names = sorted(known)
        spelled = {one.lower(): one for one in names}
        near = [spelled[match] for match in get_close_matches(name.lower(), spelled, n=3)]
        hint = f" Did you mean {' or '.join(near)}?" if near else ""
        listed = f": {', '.join(names)}" if len(names) <= LISTED else f" {len(names)}; `peftbench list` prints them"
        super().__init__(f"No {kind} is called {name!r}.{hint} There are{listed}.")


class CatalogueError(RequestError):
    """A TOML file of `methods/` or `datasets/` is invalid."""


class PluginError(PeftbenchError):
    """A plug-in cannot be loaded or breaks its contract."""


class DataError(PeftbenchError):
    """Images or labels are invalid."""


class MissingDataError(DataError):
    """A data set is missing or incomplete on this machine."""


class BrokenImagesError(DataError):
    """Images cannot be decoded."""


class SplitError(DataError):
    """Parts overlap, or a class has no training image."""


class WeightsError(PeftbenchError):
    """Pretrained weights are missing, unsafe to open or of another network."""


class DeltaError(PeftbenchError):
    """A delta is damaged, or was made for other weights."""


class StoreError(PeftbenchError):
    """The folder of results cannot be read or written."""


class JobError(PeftbenchError):
    """One job failed."""


class DivergedError(JobError):
    """The loss or the logits are no longer finite."""


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error, Python's or torch's, reports that memory could not be allocated."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":  # torch's, without its import
        return True
    first = next(iter(str(error).splitlines()), "")
    return isinstance(error, RuntimeError) and any(words in first for words in ("allocate memory", "enough memory"))
