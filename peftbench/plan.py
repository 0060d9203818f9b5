"""What a method returns and what it can request, for plug-ins: `from peftbench.plan import Plan, Probe`."""

from peftbench.models.plan import Callback, Graft, Plan, Probe, Scores, Shared, Sizes, Tuned

__all__ = ["Callback", "Graft", "Plan", "Probe", "Scores", "Shared", "Sizes", "Tuned"]
