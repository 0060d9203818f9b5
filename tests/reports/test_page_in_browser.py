"""The page in a real browser, headless: every figure is drawn, nothing is fetched and the console stays empty.

Opt-in (`nox -s page`), as it needs Chromium: PEFTBENCH_TEST_BROWSER is its command. PEFTBENCH_TEST_PAGE names a page to
open in place of one of made-up jobs, and PEFTBENCH_TEST_SCREENSHOTS a folder to leave screenshots of three widths in.
"""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

from peftbench.reports import html
from tests.records import study

BROWSER = os.environ.get("PEFTBENCH_TEST_BROWSER", "")
PAGE = os.environ.get("PEFTBENCH_TEST_PAGE", "")
SCREENSHOTS = os.environ.get("PEFTBENCH_TEST_SCREENSHOTS", "")
FLAGS = (
    "--headless",
    "--no-sandbox",  # of a container
    "--disable-gpu",
    "--hide-scrollbars",
    "--enable-logging=stderr",
    "--virtual-time-budget=20000",
    "--host-resolver-rules=MAP * ~NOTFOUND",  # a request would be an error in the console
)

pytestmark = pytest.mark.skipif(not BROWSER, reason="no browser: PEFTBENCH_TEST_BROWSER names one; nox -s page sets it")


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if PAGE:
        return Path(PAGE).resolve()
    folder = tmp_path_factory.mktemp("page")
    return html.plugin.write(study(folder / "store", ("busi", "phantom_ct"), (0, 1, 2)), folder)[0]


def browse(page: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    command = [BROWSER, *FLAGS, *flags, page.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)


@pytest.mark.parametrize("width", [1280, 768, 375])
def test_every_figure_is_drawn_and_the_console_is_empty(width: int, page: Path, tmp_path: Path) -> None:
    folder = Path(SCREENSHOTS) if SCREENSHOTS else tmp_path
    shown = browse(page, f"--window-size={width},900", "--dump-dom")
    assert "CONSOLE" not in shown.stderr
    charts = shown.stdout.count('<script type="application/json">')
    assert charts > 0
    assert len(re.findall(r'<svg[^>]*class="marks"', shown.stdout)) == charts
    assert shown.stdout.count("<button") > 0  # heads of tables that sort
    picture = folder / f"page_{width}.png"
    browse(page, f"--window-size={width},6000", f"--screenshot={picture}")
    assert picture.stat().st_size


def test_the_page_is_no_wider_than_a_phone(page: Path, tmp_path: Path) -> None:
    """Wide tables and figures scroll in their own box."""
    probe = tmp_path / "probe.html"
    script = "<script>addEventListener('load',()=>{document.title='W'+document.documentElement.scrollWidth})</script>"
    probe.write_text(page.read_text(encoding="utf-8").replace("</head>", f"{script}</head>", 1), encoding="utf-8")
    title = re.search(r"<title>W(\d+)</title>", browse(probe, "--window-size=500,900", "--dump-dom").stdout)
    assert title
    assert int(title.group(1)) <= 500
