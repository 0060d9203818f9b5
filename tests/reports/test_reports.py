"""Every format on one realistic study: well-formed, reproducible, and without names of patients."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from csv import DictReader
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from PIL import Image

from peftbench.core.contract import Report, Result
from peftbench.reports import _panels, csv, figure, html, latex, markdown
from peftbench.reports._charts import charts
from peftbench.results import summary
from peftbench.results.series import Rows
from peftbench.results.tables import tables
from peftbench.results.text import markdown_text, printable
from tests.records import Fake, study

FORMATS: dict[str, Report] = {
    "csv": csv.plugin,
    "figure": figure.plugin,
    "html": html.plugin,
    "latex": latex.plugin,
    "markdown": markdown.plugin,
}
DASHED = 'stroke-dasharray="5,3"'  # in an SVG: the line of a method that trains nothing in the backbone


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> list[Result]:
    return study(tmp_path_factory.mktemp("store"), ("busi", "phantom_ct"), (0,))


@pytest.fixture(scope="module")
def written(results: list[Result], tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Path]]:
    return {name: report.write(results, tmp_path_factory.mktemp(name)) for name, report in FORMATS.items()}


@pytest.fixture(params=FORMATS)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_a_report_returns_what_it_wrote(name: str, written: dict[str, list[Path]]) -> None:
    files = written[name]
    assert sorted(files) == sorted(file for file in files[0].parent.rglob("*") if file.is_file())
    assert FORMATS[name].suffix in {file.suffix for file in files}


def test_a_report_written_twice_is_the_same(
    name: str, written: dict[str, list[Path]], results: list[Result], tmp_path: Path
) -> None:
    def content(file: Path) -> bytes | int:
        return file.stat().st_size if file.suffix == ".pdf" else file.read_bytes()  # its objects may change places

    again = FORMATS[name].write(results, tmp_path)
    assert [content(file) for file in again] == [content(file) for file in written[name]]


def test_no_report_names_an_image(name: str, written: dict[str, list[Path]]) -> None:
    texts = [file.read_text(encoding="utf-8") for file in written[name] if file.suffix not in {".png", ".pdf"}]
    assert texts
    assert not any("patient_17" in text for text in texts)


def test_the_reason_of_a_failure_is_shown_without_the_name(written: dict[str, list[Path]]) -> None:
    assert "the last image was [name]" in written["html"][0].read_text(encoding="utf-8")


def test_no_figure_is_drawn_from_the_name_of_an_image(
    results: list[Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[str] = []

    def save(spec: dict[str, Any], stem: Path) -> list[Path]:
        given.append(json.dumps(spec, default=str))
        return [stem]

    monkeypatch.setattr(figure, "save", save)
    FORMATS["figure"].write(results, tmp_path)
    assert any("shpeft" in text for text in given)
    assert not any("patient_17" in text for text in given)


def test_a_store_with_nothing_but_failures_is_reported(name: str, tmp_path: Path) -> None:
    FORMATS[name].write([Fake(reason="out of memory").write(tmp_path / "store")], tmp_path)


# --- markdown ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def text(written: dict[str, list[Path]]) -> str:
    return written["markdown"][0].read_text()


def test_markdown_marks_the_first_tier(text: str) -> None:
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert any("**" in line and "shpeft" in line for line in rows)
    assert "<ins>" not in text


def test_markdown_tables_keep_their_columns(text: str) -> None:
    for section in text.split("## ")[1:]:
        rows = [line for line in section.splitlines() if line.startswith("|")]
        assert len({line.replace(r"\|", "").count("|") for line in rows}) == 1


def test_markdown_shows_names_as_they_are_written(text: str) -> None:
    assert r"my\_own\_method" in text
    assert markdown_text("a|b\n*c*") == r"a\|b \*c\*"


# --- latex ---------------------------------------------------------------------------------------------------------


def test_latex_escapes_what_it_would_read_as_its_own() -> None:
    assert latex.escaped("my_own 5% & #1 {x} ~^\\") == (
        r"my\_own 5\% \& \#1 \{x\} \textasciitilde{}\textasciicircum{}\textbackslash{}"
    )
    assert latex.escaped("10 ± 2 → 肺") == r"10 $\pm$ 2 ? ?"


def test_latex_uses_booktabs_and_no_rules_of_its_own(written: dict[str, list[Path]]) -> None:
    tables = written["latex"][0].read_text()
    assert tables.count(r"\toprule") == tables.count(r"\bottomrule") == tables.count(r"\begin{table}")
    assert r"\hline" not in tables


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="no pdflatex on this machine")
def test_latex_compiles(results: list[Result], tmp_path: Path) -> None:
    latex.plugin.write(results, tmp_path)
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "standalone.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, check=False)
    assert done.returncode == 0, done.stdout.decode("latin-1")[-2000:]
    assert b"Overfull" not in done.stdout


# --- csv -----------------------------------------------------------------------------------------------------------


class Tags(HTMLParser):
    """Open tags, the number of rows and pictures, and every address."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[str] = []
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)
        self.addresses += [value or "" for key, value in attrs if key in {"src", "href"}]
        if tag not in {"meta", "img"}:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_is_whole_and_fetches_nothing(written: dict[str, list[Path]], results: list[Result]) -> None:
    tags = Tags()
    tags.feed(written["html"][0].read_text(encoding="utf-8"))
    assert tags.open == []
    assert tags.seen.count("table") == len(tables(results))
    assert tags.seen.count("script") > 1
    assert all(address.startswith("#") for address in tags.addresses)
    assert written["html"][0].stat().st_size < 5_000_000


def test_the_page_shows_names_as_they_are_written(tmp_path: Path) -> None:
    results = [Fake(label="lora[r=4]<b>", reason="it said <script>").write(tmp_path / "store")]
    text = html.plugin.write(results, tmp_path)[0].read_text(encoding="utf-8")
    assert "it said &lt;script&gt;" in text
    assert "it said <script>" not in text


def test_csv_has_a_row_a_final_job_and_nothing_else(results: list[Result], tmp_path: Path) -> None:
    trial = Fake("lora", lr=7e-3, role="trial").write(tmp_path / "store")
    (file,) = csv.plugin.write([*results, trial], tmp_path)
    table = pd.read_csv(file)
    assert list(table["id"]) == [result.record.id for result in results]
    assert (table["status"] == "failed").sum() == 1


def test_csv_loses_no_digit(results: list[Result], written: dict[str, list[Path]]) -> None:
    with written["csv"][0].open(newline="") as file:
        rows = list(DictReader(file))
    for rule, choice in results[3].record.choices.items():
        assert float(rows[3][f"test/{rule}/macro_f1"]) == choice.test["macro_f1"]


# --- figure --------------------------------------------------------------------------------------------------------


def test_every_figure_is_a_drawing_a_page_and_a_picture(written: dict[str, list[Path]]) -> None:
    for svg, pdf, png in zip(*[iter(written["figure"])] * 3, strict=True):
        assert "<svg" in svg.read_text()[:200]
        assert pdf.read_bytes().startswith(b"%PDF")
        with Image.open(png) as image:
            assert image.width > 200 < image.height
    assert {file.stem for file in written["figure"]} >= {"figure", "tiers", "matrix", "seeds", "confusion", "recalls"}


@pytest.mark.parametrize(("least", "kind"), [(1.0, "log"), (50.0, "linear"), (0.0, "linear")])
def test_costs_of_several_orders_of_magnitude_have_a_logarithmic_axis(least: float, kind: str, tmp_path: Path) -> None:
    costs = {"lora": least, "bitfit": 100.0}
    (block,) = summary.summarize(Fake(method).write(tmp_path) for method in costs)
    rows: Rows = [{"method": method, "value": value, "score": 60.0, "title": "time"} for method, value in costs.items()]
    points = _panels.pareto(rows, block)["layer"][1]
    assert points["encoding"]["x"]["scale"]["type"] == kind


def test_settings_have_figures_of_their_own(tmp_path: Path) -> None:
    results = [Fake().write(tmp_path / "store"), Fake(backbone="clip_vit_b16").write(tmp_path / "store")]
    names = [file.name for file in figure.plugin.write(results, tmp_path) if file.parent == tmp_path]
    assert names == [f"figure_{number}.{kind}" for number in (1, 2) for kind in ("svg", "pdf", "png")]


def test_a_study_of_baselines_alone_has_level_lines(tmp_path: Path) -> None:
    fakes = [Fake("majority", trainable=0), Fake("linear", trainable=0)]
    svg = figure.plugin.write([fake.write(tmp_path / "store") for fake in fakes], tmp_path)[0]
    assert svg.read_text().count(DASHED) == len(fakes)


def test_trained_methods_alone_have_no_level_line(tmp_path: Path) -> None:
    svg = figure.plugin.write([Fake(name).write(tmp_path / "store") for name in ("lora", "ssf")], tmp_path)[0]
    assert DASHED not in svg.read_text()


@pytest.mark.parametrize("odd", ["</script><b>'", "[x](y) $1$ {{z}}", "\u202eabc"])
def test_odd_names_are_drawn_as_they_are(odd: str, tmp_path: Path) -> None:
    results = [Fake(label=odd).write(tmp_path / "store"), Fake("ssf").write(tmp_path / "store")]
    (page,) = html.plugin.write(results, tmp_path)
    specs = re.findall(r'<script type="application/json">(.*?)</script>', page.read_text())
    assert specs
    assert any(printable(odd) in json.dumps(json.loads(spec), ensure_ascii=False) for spec in specs)


def test_a_figure_shows_the_best_of_many_methods_and_says_so(tmp_path: Path) -> None:
    fakes = [Fake(label=f"lora[r={number}]", skill=number / 10, seed=number) for number in range(1, 46)]
    (block,) = summary.summarize([fake.write(tmp_path) for fake in fakes])
    found = {chart.name: chart for chart in charts(block)}
    assert "The 40 best of 45 methods" in found["tiers"].caption
    text = json.dumps(found["tiers"].whole)
    assert "lora[r=45]" in text
    assert "lora[r=1]" not in text


def test_the_page_begins_with_five_answers(written: dict[str, list[Path]]) -> None:
    (page,) = written["html"]
    questions = re.findall(r"<dt>(.*?)</dt>", page.read_text())
    assert questions[-5:] == [
        "Which method?",
        "How sure is that?",
        "At what cost?",
        "What failed or was left out?",
        "What leaks or overlaps?",
    ]
