"""The contract of methods, for plug-ins: `from peftbench.method import Method`."""

from peftbench.models.method import Match, Method

Fit = Match  # its name in version 0.1.0

__all__ = ["Fit", "Match", "Method"]
