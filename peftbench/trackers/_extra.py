"""The sentence for an extra that is not installed."""

from __future__ import annotations

from importlib.util import find_spec

from peftbench.errors import RequestError


def refuse_without(package: str, extra: str) -> None:
    """Raise RequestError with the command that installs `package`. Imports nothing."""
    if find_spec(package) is None:
        raise RequestError(f"--tracker {extra} needs {package}; install it: pip install 'peftbench[{extra}]'.")
