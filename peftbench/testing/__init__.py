"""Conformance rules for plug-ins, for any test runner and for `peftbench check`.

    def test_my_method():
        assert not failed(check_method(MyMethod))

Each rule is a small function; a finding holds the rule, the network it was tested on, and a message.
"""

from peftbench.testing.backbones import check_backbone
from peftbench.testing.datasets import check_dataset
from peftbench.testing.findings import Finding, failed
from peftbench.testing.methods import check_method
from peftbench.testing.metrics import check_metric
from peftbench.testing.reports import check_report

__all__ = ["Finding", "check_backbone", "check_dataset", "check_method", "check_metric", "check_report", "failed"]
