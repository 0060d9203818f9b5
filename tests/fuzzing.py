"""What tests with drawn inputs share: how many examples, damaged files, and what a refusal looks like."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from peftbench.errors import PeftbenchError

FEW = 25
EXAMPLES = int(os.environ.get("PEFTBENCH_TEST_FUZZ", FEW))  # `nox -s fuzz` draws more, other ones each time

drawn = settings(
    max_examples=EXAMPLES,
    derandomize=EXAMPLES == FEW,
    database=None,
    suppress_health_check=(HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example),
)


def fresh(folder: Path) -> Path:
    """A new folder below, for one example."""
    made = folder / uuid.uuid4().hex
    made.mkdir()
    return made


@st.composite
def damage(draw: st.DrawFn, content: bytes) -> bytes:
    """The content with some bytes changed, cut off, added or put in."""
    changed = bytearray(content)
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(changed)))
        stop = draw(st.sampled_from((start + 1, start + 1, start, start + 8, len(changed))))
        changed[start:stop] = draw(st.binary(max_size=4))
    return bytes(changed)


@contextmanager
def or_refused(kind: type[PeftbenchError], *, printable: bool = True) -> Iterator[None]:
    """What is within holds, or is refused with an error of this kind that can be shown as it is: a line that ends."""
    try:
        yield
    except kind as error:
        text = str(error)
        if not text.endswith(".") or len(text) > 3000 or (printable and not text.isprintable()):
            raise AssertionError(f"no sentence: {text!r}") from error
