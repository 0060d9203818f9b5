"""A small file is read as it was written, or not at all."""

from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from peftbench.storage import checked_json

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(value=JSON)
def test_what_was_written_is_read(value: Any, tmp_path_factory: pytest.TempPathFactory) -> None:
    file = tmp_path_factory.mktemp("checked") / "new" / "a.json"
    checked_json.write(file, value, "place")
    assert checked_json.read(file, "place") == value
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert [path.name for path in file.parent.iterdir()] == ["a.json"]


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", "5", '{"value": {"rate": 0}}', '{"digest": "a", "value": {"rate": 0}}', '{"digest": null}']
)
def test_what_was_not_written_is_not_read(text: str, tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    file.write_text(text)
    with pytest.raises(ValueError, match=r"Expecting value|was modified after it was written"):
        checked_json.read(file)


def test_another_value_or_place_is_not_read(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    checked_json.write(file, {"rate": 3}, "here")
    with pytest.raises(ValueError, match="was modified after it was written"):
        checked_json.read(file, "there")
    stated = json.loads(file.read_text())
    file.write_text(json.dumps({**stated, "value": {"rate": 0}}))
    with pytest.raises(ValueError, match="was modified after it was written"):
        checked_json.read(file, "here")
