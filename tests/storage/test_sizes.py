"""Sizes as people write and read them."""

from __future__ import annotations

import pytest

from peftbench.errors import RequestError
from peftbench.storage.sizes import format_size, parse_size


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("50G", 50 * 10**9),
        ("50GB", 50 * 10**9),
        ("500M", 500 * 10**6),
        ("20GiB", 20 * 2**30),
        ("1.5 MB", 1_500_000),
        ("20", 20),
        ("2k", 2000),
    ],
)
def test_a_size_is_read_in_its_unit(text: str, size: int) -> None:
    assert parse_size(text, "--cache-limit") == size


@pytest.mark.parametrize("text", ["", "much", "-1G", "1 X"])
def test_another_text_is_refused_with_the_name_of_the_flag(text: str) -> None:
    with pytest.raises(RequestError, match=r"--cache-limit: cannot read the size .*, such as 50G\."):
        parse_size(text, "--cache-limit")


def test_a_size_is_shown_in_the_unit_that_fits() -> None:
    assert [format_size(n) for n in (12, 12_300, 431_000_000, 1_540_000_000)] == [
        "12 Bytes",
        "12.3 kB",
        "431.0 MB",
        "1.5 GB",
    ]
