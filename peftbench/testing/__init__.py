"""The rules that every plug-in must keep, for any test runner and for `peftbench check`.

    def test_my_method():
        assert not failed(check_method(MyMethod))

Each rule is a small function; a finding names the rule, the network or part it looked at, and what it saw.
"""

from peftbench.testing.findings import Finding, failed
from peftbench.testing.methods import check_method

__all__ = ["Finding", "check_method", "failed"]
