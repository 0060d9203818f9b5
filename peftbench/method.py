"""The method contract, for plug-ins: `from peftbench.method import Method`."""

from peftbench.models.method import Fit, Method

__all__ = ["Fit", "Method"]
