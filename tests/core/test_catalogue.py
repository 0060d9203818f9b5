from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from peftbench.core import catalogue, catalogue_files
from peftbench.core.catalogue import DatasetEntry, MethodEntry, read_entry
from peftbench.errors import CatalogueError, UnknownNameError

METHOD = """
title = "A method"
family = "S"
trains = "something"
formula = "y = x"
paper = "Somebody, 2024"
merges = true
"""


def written(folder: Path, text: str) -> Path:
    file = folder / "thing.toml"
    file.write_text(text, encoding="utf-8")
    return file


@pytest.mark.parametrize("name", catalogue_files.method_names())
def test_every_method_file_is_valid(name: str) -> None:
    assert catalogue.method_entry(name).title


@pytest.mark.parametrize("name", catalogue_files.dataset_names())
def test_every_dataset_file_makes_a_card(name: str) -> None:
    members = catalogue.dataset_entry(name).members
    for card in [catalogue.dataset_card(name, member) for member in members or [""]]:
        assert len(card.classes) >= 2
        assert card.licence
        assert card.source


def test_the_first_methods_and_data_sets_are_there() -> None:
    assert {"majority", "linear", "full", "bitfit", "lora", "shpeft"} <= set(catalogue_files.method_names())
    assert {"covid_ct", "busi", "chest_xray"} <= set(catalogue_files.dataset_names())


def test_published_sizes_add_up() -> None:
    for name in catalogue_files.dataset_names():
        sizes = dict(catalogue.dataset_entry(name).sizes)
        total = sizes.pop("total", None)
        assert total is None or not sizes or sum(sizes.values()) == total


def test_numbers_and_words_of_an_official_recipe_stay_what_they_are() -> None:
    assert catalogue.method_entry("shpeft").official.lr == 1e-3
    assert set(catalogue.method_entry("full").official.lr_grid) == {1e-3, 1e-4, 5e-4, 5e-3}
    assert catalogue.method_entry("ft_att").official.fields == {"train_pos_embed": True}
    assert catalogue.method_entry("full").official.batch == 384


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (METHOD + 'colour = "red"', "key 'colour' must be left out: there is no such key"),
        (METHOD + "[official]\nrate = 1.0", "key 'official.rate' must be left out"),
        (METHOD.replace("merges = true", 'merges = "yes"'), "key 'merges' must be true or false, got yes"),
        (METHOD.replace('trains = "something"', ""), "key 'trains' must be given"),
        ("title = ", "is not valid TOML: Invalid value"),
    ],
)
def test_a_faulty_file_is_named_with_its_key(tmp_path: Path, text: str, message: str) -> None:
    file = written(tmp_path, text)
    with pytest.raises(CatalogueError, match=re.escape(str(file))) as caught:
        read_entry(file, MethodEntry)
    assert re.search(message, str(caught.value))


def test_a_file_that_is_no_text_is_named(tmp_path: Path) -> None:
    file = tmp_path / "thing.toml"
    file.write_bytes(b"title = '\xff'")
    with pytest.raises(CatalogueError, match="not valid TOML"):
        read_entry(file, DatasetEntry)


def test_an_unknown_name_answers_with_the_near_ones() -> None:
    with pytest.raises(UnknownNameError, match=r"No method is called 'shpft'. Did you mean shpeft"):
        catalogue.method_entry("shpft")
    with pytest.raises(UnknownNameError, match="No data set is called 'bussi'"):
        catalogue.dataset_entry("bussi")


def test_an_installed_wheel_reads_its_own_copies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "site-packages" / "peftbench"
    (package / "_data" / "methods").mkdir(parents=True)
    (package / "_data" / "methods" / "mine.toml").write_text(METHOD)
    monkeypatch.setattr(catalogue_files, "__file__", str(package / "core" / "catalogue_files.py"))
    assert catalogue_files.method_names() == ("mine",)


def test_a_package_without_its_catalogue_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalogue_files, "__file__", str(tmp_path / "peftbench" / "core" / "catalogue_files.py"))
    with pytest.raises(CatalogueError, match=r"catalogue folder .* is missing; install peftbench again"):
        catalogue_files.dataset_names()


def test_the_catalogue_costs_no_heavy_import() -> None:
    code = "import peftbench.core.catalogue, sys; print([m for m in ('torch', 'pandas', 'scipy') if m in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
