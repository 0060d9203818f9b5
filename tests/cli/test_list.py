"""The listing reads files without checking them; what it prints must be what the checked entries hold."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from peftbench.cli import list as listing
from peftbench.core import catalogue, catalogue_files
from peftbench.core.registry import registry
from peftbench.core.syntax import PATHS
from peftbench.data import availability


def test_a_method_is_listed_as_its_checked_entry_has_it(tmp_path: Path) -> None:
    rows = listing._rows("methods", tmp_path)
    assert set(rows) >= set(registry("methods").built_in())
    for name in catalogue_files.method_names():
        entry = catalogue.method_entry(name)
        facts = (entry.family, entry.knob, entry.merges, entry.trains, entry.paper)
        assert tuple(rows[name].values()) == facts


def test_the_shipped_studies_are_listed(tmp_path: Path) -> None:
    rows = listing._rows("studies", tmp_path)
    assert set(rows) == {"quick", "paper-table1", "paper-fig4", "paper-table4", "paper-table5"}
    assert rows["paper-table1"]["backbone"] == "clip_vit_b16"
    assert all(row["what"] and row["recipe"] for row in rows.values())


def test_a_data_set_is_listed_as_its_checked_entry_has_it(tmp_path: Path) -> None:
    rows = listing._rows("datasets", tmp_path)
    entries = {name: catalogue.dataset_entry(name) for name in catalogue_files.dataset_names()}
    for name, entry in entries.items():
        assert (rows[name]["modality"], rows[name]["licence"]) == (entry.modality, entry.licence)
        assert rows[name]["how to get"] == entry.how_to_get
    single = {name: len(entry.classes) or "as found" for name, entry in entries.items() if not entry.members}
    assert single == {name: rows[name]["classes"] for name in single}


@pytest.mark.parametrize("with_folder", [False, True])
def test_presence_is_the_same_whether_the_plug_in_is_imported_or_not(with_folder: bool, tmp_path: Path) -> None:  # noqa: FBT001
    for name in catalogue_files.dataset_names() if with_folder else ():
        (tmp_path / name).mkdir()
    rows = listing._rows("datasets", tmp_path)
    assert {name: row["here"] for name, row in rows.items()} == {
        name: availability.describe_presence(name, tmp_path) for name in rows
    }


def test_the_argument_of_a_data_set_is_the_field_of_its_plug_in() -> None:
    assert {name: availability.usage(name) for name in PATHS} == {name: f"{name}:PATH" for name in PATHS}


@pytest.mark.parametrize(("kind", "names"), [("executors", {"local", "slurm", "ray"}), ("trackers", {"tensorboard"})])
def test_executors_and_trackers_are_listed_with_what_they_do(
    kind: str, names: set[str], capsys: pytest.CaptureFixture[str]
) -> None:
    listing.show_list(kind, None, as_json=True)
    found = json.loads(capsys.readouterr().out)
    assert names <= found.keys()
    assert all(row["what"] and row["source"] == "built in" for row in found.values())
