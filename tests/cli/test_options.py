"""Options that several verbs share: each is a field of a study, and a verb gets them as one object."""

from __future__ import annotations

from dataclasses import fields
from typing import Annotated

import typer
from typer.testing import CliRunner

from peftbench.cli.measure import MeasureOptions
from peftbench.cli.options import StoreOption, StudyOptions, grouped
from peftbench.core.spec import Study


def test_every_field_of_a_study_has_an_option() -> None:
    assert {field.name for field in fields(StudyOptions)} == {field.name for field in fields(Study)}


def test_what_is_measured_is_described_as_a_study() -> None:
    assert {field.name for field in fields(MeasureOptions)} < {field.name for field in fields(Study)}


def test_a_command_gets_its_options_as_an_object() -> None:
    seen: list[tuple[StudyOptions, str]] = []

    @grouped
    def verb(options: StudyOptions, name: Annotated[str, typer.Argument()], store: StoreOption) -> None:
        seen.append((options, f"{name} {store}"))

    app = typer.Typer()
    app.command()(verb)
    words = ["x", "--methods", "lora", "--methods", "ssf", "--no-baselines", "--store", "here"]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    assert seen == [(StudyOptions(methods=["lora", "ssf"], baselines=False), "x here")]
