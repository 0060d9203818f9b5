"""Everything that can go wrong in a way a user can mend.

    PeftbenchError
    +-- RequestError            what was asked for cannot be done as asked (exit code 2)
    |   +-- UnknownNameError    no plug-in of that name; says the near ones and the list
    |   +-- CatalogueError      a TOML file of methods/ or datasets/, or a study file, is not valid
    +-- PluginError             a plug-in cannot be loaded or breaks its contract
    +-- DataError               the images or labels
    |   +-- MissingDataError    a data set is not (wholly) on this machine
    |   +-- BrokenImagesError   images that do not open
    |   +-- SplitError          splits that overlap, or a class missing in train
    +-- WeightsError            pretrained weights that are missing, unsafe or of another network
    +-- DeltaError              a saved change that does not fit these weights
    +-- StoreError              the folder of results
    +-- JobError                one job failed; it becomes a failed record and the study goes on
        +-- DivergedError       the loss is no longer a number

Every message is one sentence or two: what is wrong, where, what to do.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches

LISTED = 60  # names; a longer list is only counted


class PeftbenchError(Exception):
    """The root: the command line prints its message and no traceback."""


class RequestError(PeftbenchError):
    """What was asked for cannot be done as asked."""


class UnknownNameError(RequestError):
    """No plug-in is called that."""

    def __init__(self, kind: str, name: str, known: Iterable[str]) -> None:
        names = sorted(known)
        spelled = {one.lower(): one for one in names}
        near = [spelled[match] for match in get_close_matches(name.lower(), spelled, n=3)]
        hint = f" Did you mean {' or '.join(near)}?" if near else ""
        listed = f": {', '.join(names)}" if len(names) <= LISTED else f" {len(names)}"
        super().__init__(f"No {kind} is called {name!r}.{hint} There are{listed}.")


class CatalogueError(RequestError):
    """A TOML file is not what it should be."""


class PluginError(PeftbenchError):
    """A plug-in cannot be loaded or breaks its contract."""


class DataError(PeftbenchError):
    """The images or their labels."""


class MissingDataError(DataError):
    """A data set is not on this machine."""


class BrokenImagesError(DataError):
    """Images that do not open."""


class SplitError(DataError):
    """Parts that overlap, or a class that training never sees."""


class WeightsError(PeftbenchError):
    """Pretrained weights that are missing, unsafe to open or of another network."""


class DeltaError(PeftbenchError):
    """A saved change that does not fit these weights."""


class StoreError(PeftbenchError):
    """The folder of results."""


class JobError(PeftbenchError):
    """One job failed."""


class DivergedError(JobError):
    """The loss is no longer a finite number."""


@contextmanager
def blaming(what: str) -> Iterator[None]:
    """Whatever a plug-in raises within becomes a PluginError that begins with `what`; our own errors pass."""
    try:
        yield
    except PeftbenchError:
        raise
    except Exception as error:
        raise PluginError(f"{what}: {type(error).__name__}: {error}") from error
