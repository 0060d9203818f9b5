"""All that a method's package needs to test: the rules of the contract."""

from peftbench_example import QueryBitFit

from peftbench.testing import check_method, failed


def test_it_keeps_every_rule() -> None:
    """On three networks; a failure names the rule and what was seen."""
    for method in (QueryBitFit(), QueryBitFit(mlp=False)):
        assert failed(check_method(method)) == []
