"""A user's own `methods/NAME.toml`: a named variant of a method, run by its name."""

from __future__ import annotations

from pathlib import Path

import pytest

from peftbench import study as studies_of
from peftbench.asked import named
from peftbench.errors import CatalogueError, RequestError
from peftbench.listing import facts
from peftbench.methods.lora import LoRA
from tests import studies


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a variant."""
    (tmp_path / "methods").mkdir()
    (tmp_path / "methods" / "small_lora.toml").write_text('base = "lora"\nr = 2\nsites = ["qkv", "proj"]\n')
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_variant_is_its_base_with_its_fields(here: Path) -> None:
    assert here.is_dir()
    assert named("small_lora", "standard").method == LoRA(r=2, sites=("qkv", "proj"))
    assert named("small_lora[r=4]", "standard").method == LoRA(r=4, sites=("qkv", "proj"))


def test_it_is_the_same_job_under_another_name(here: Path) -> None:
    images = studies.draw(here / "images", 8)
    (job,) = studies.jobs(studies.small(images, methods=("small_lora",)), studies.places(here))
    (plain,) = studies.jobs(studies.small(images, methods=("lora[r=2,sites=qkv+proj]",)), studies.places(here))
    assert (job.label, plain.label) == ("small_lora", "lora[r=2,sites=qkv+proj]")
    assert job.id == plain.id
    both = studies.small(images, methods=("small_lora", "lora[r=2,sites=qkv+proj]"))
    assert len(studies_of.resolve(both, studies.places(here)).drafts) == 1


def test_it_is_listed_and_shown(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert studies.call(["list", "methods", "--json"], monkeypatch) == 0
    assert '"small_lora"' in capsys.readouterr().out
    assert facts("method", "small_lora")["variant of"] == "lora[r=2,sites=qkv+proj]"
    assert here.is_dir()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("r = 2", "key 'base' must name the method"),
        ("base = 3", "key 'base' must name the method"),
        ("base =", "not valid"),
    ],
)
def test_a_faulty_file_is_named(here: Path, text: str, message: str) -> None:
    (here / "methods" / "odd.toml").write_text(text)
    with pytest.raises(CatalogueError, match=rf"odd\.toml.*{message}"):
        named("odd", "standard")


def test_a_field_that_the_base_does_not_have_is_refused(here: Path) -> None:
    (here / "methods" / "odd.toml").write_text('base = "lora"\nrank = 2')
    with pytest.raises(RequestError, match="odd has no field 'rank'"):
        named("odd", "standard")


def test_a_name_of_ours_is_taken(here: Path) -> None:
    (here / "methods" / "bitfit.toml").write_text('base = "lora"')
    with pytest.raises(CatalogueError, match="peftbench has a method 'bitfit' of its own"):
        named("small_lora", "standard")
