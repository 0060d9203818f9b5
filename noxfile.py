"""The checks of a change. `nox` runs those of CI; `nox --list` shows the others."""

from __future__ import annotations

import os
import shutil
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory

import nox

nox.needs_version = ">=2025.5"
nox.options.default_venv_backend = "uv"
nox.options.reuse_venv = "yes"
nox.options.error_on_missing_interpreters = True

ROOT = Path(__file__).parent
PINNED = ("-c", "tests/constraints.txt")
ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}  # two workers on two cores; bits depend on threads
PARALLEL = ("-n", "2", "--dist", "worksteal")  # neighboring tests stay together and share their fixtures
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
MEMBERS = (
    "peftbench/backbones/mini.safetensors",
    *(f"peftbench/_data/{folder}/" for folder in ("methods", "datasets", "studies", "paper")),
)


@nox.session
def lint(session: nox.Session) -> None:
    """Check style and format, and that imports go down the layers only; the package itself is not installed."""
    session.install("--group", "lint", "--group", "layers", *PINNED)
    session.run("ruff", "check")
    session.run("ruff", "format", "--check")
    session.run("lint-imports", "--no-cache", env={"PYTHONPATH": str(ROOT)})


@nox.session
def types(session: nox.Session) -> None:
    """Run both type checkers on package, tests, tools and this file, side by side."""
    session.install("-e", ".", "--group", "types", *PINNED)
    with ThreadPoolExecutor() as pool:
        checks = [pool.submit(session.run, checker, silent=True) for checker in ("mypy", "pyright")]
    for check in checks:  # each one's output in one piece
        session.log(str(check.result()).strip())


@nox.session
def tests(session: nox.Session) -> None:
    """Run the tests, with shapes and types checked at run time. `nox -s tests -- -k lora` runs some of them."""
    session.install("-e", ".", "--group", "test", *PINNED)
    session.run("pytest", *PARALLEL, *session.posargs, env=ONE_THREAD)


@nox.session
def docs(session: nox.Session) -> None:
    """Build the documentation into site/ without a warning or a broken link; `nox -s docs -- --serve` serves it."""
    session.install("-e", ".", "--group", "docs", *PINNED)
    verb = ("serve",) if "--serve" in session.posargs else ("build", "--clean")
    session.run("mkdocs", *verb, "--strict", env={"NO_MKDOCS_2_WARNING": "1"})


@nox.session
def package(session: nox.Session) -> None:
    """Build the wheel, install it alone, and run the quick study in an empty folder with fewer steps."""
    wheel = build_wheel(session)
    assert_members(wheel)
    session.install(str(wheel), *PINNED)
    with TemporaryDirectory() as empty, session.chdir(empty):
        fresh = ONE_THREAD | {"PEFTBENCH_CACHE": f"{empty}/cache", "PEFTBENCH_DATA": f"{empty}/data"}
        session.run("peftbench", "run", "--steps", "12", env=fresh)
        session.run("peftbench", "report", "--out", "report", env=fresh)


def build_wheel(session: nox.Session) -> Path:
    """Build the wheel in an empty folder and return its path."""
    out = Path(session.create_tmp()) / "dist"
    session.run("uv", "build", "--wheel", "--clear", "--out-dir", str(out), str(ROOT), external=True)
    (wheel,) = out.glob("*.whl")
    return wheel


def assert_members(wheel: Path) -> None:
    """Require that the wheel holds all that runs without a download."""
    names = zipfile.ZipFile(wheel).namelist()
    absent = [member for member in MEMBERS if not any(name.startswith(member) for name in names)]
    assert not absent, f"{wheel.name} lacks {', '.join(absent)}"


@nox.session(default=False)
def bench(session: nox.Session) -> None:
    """Measure speed as ratios on an idle machine; the gates that decide, equality and memory, are in the tests, too."""
    session.install("-e", ".", *PINNED)
    session.run("peftbench", "bench", *session.posargs, env=ONE_THREAD)


@nox.session(default=False)
def page(session: nox.Session) -> None:
    """Open the page of a report in headless Chromium: `nox -s page -- --page reports/x/page.html` opens that one."""
    browser = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    if browser is None:
        session.error(f"No browser found; install one of {', '.join(BROWSERS)}.")
    session.install("-e", ".", "--group", "test", *PINNED)
    words = list(session.posargs)
    given = {"PEFTBENCH_TEST_PAGE": words.pop(words.index("--page") + 1)} if "--page" in words else {}
    words = [word for word in words if word != "--page"]
    env = ONE_THREAD | {"PEFTBENCH_TEST_BROWSER": browser} | given
    session.run("pytest", "tests/reports/test_page_in_browser.py", *words, env=env)


@nox.session(default=False)
def distil(session: nox.Session) -> None:
    """Train mini's weights again: `nox -s distil -- --teacher FILE --images FILE`."""
    session.install("-e", ".", *PINNED)
    session.run("python", "tools/distil.py", *session.posargs)


@nox.session(default=False, python=["3.11", "3.12", "3.13"])
def pythons(session: nox.Session) -> None:
    """Run the tests on every supported Python."""
    session.install("-e", ".", "--group", "test", *PINNED)
    session.run("pytest", *PARALLEL, *session.posargs, env=ONE_THREAD)


@nox.session(default=False)
def oldest(session: nox.Session) -> None:
    """Run the tests on the oldest versions that pyproject.toml allows."""
    session.install("-e", ".", "--group", "test", "--resolution", "lowest-direct")
    session.run("pytest", *PARALLEL, *session.posargs, env=ONE_THREAD)


@nox.session(name="compile", default=False)
def compiled(session: nox.Session) -> None:
    """Run the conformance rules on all plug-ins with torch.compile; the tests compile one method of each family."""
    session.install("-e", ".", *PINNED)
    session.run("peftbench", "check", "--all", "--compile", *session.posargs, env=ONE_THREAD)


@nox.session(default=False)
def crash(session: nox.Session) -> None:
    """Kill a study a hundred times at random moments; it must end with the bits of one that was not interrupted."""
    session.install("-e", ".", "--group", "test", *PINNED)
    session.run(
        "pytest",
        "tests/execution/test_mishaps.py",
        "-k",
        "again_and_again",
        env=ONE_THREAD | {"PEFTBENCH_TEST_CRASHES": "100"},
    )


@nox.session(default=False)
def slurm(session: nox.Session) -> None:
    """Run a study on a real Slurm of two nodes on this machine, as root; a node dies, a job is preempted."""
    if not all(shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin") for name in ("slurmctld", "munged")):
        if os.geteuid() or shutil.which("apt-get") is None:
            session.error("Slurm is not installed; install slurm-wlm and munge, and run this session as root.")
        session.run("apt-get", "install", "-y", "--no-install-recommends", "slurm-wlm", "munge", external=True)
    session.install("-e", ".", "--group", "test", *PINNED)
    env = ONE_THREAD | {"PEFTBENCH_TEST_SLURM": "1"}
    session.run("pytest", "tests/execution/test_slurm_cluster.py", *session.posargs, env=env)


@nox.session(default=False)
def ray(session: nox.Session) -> None:
    """Run a study on a real Ray cluster of three nodes on this machine, of which one is killed."""
    session.install("-e", ".[ray]", "--group", "test", *PINNED)
    env = ONE_THREAD | {"PEFTBENCH_TEST_RAY": "1"}
    words = ("python", "-m", "pytest", "tests/execution/test_ray_cluster.py", *session.posargs)
    if os.geteuid() == 0 and shutil.which("unshare"):  # only a loopback interface: no other process can connect
        alone = ("unshare", "-n", "sh", "-c", 'ip link set lo up && exec "$@"', "sh")
        session.run(*alone, *words, env=env, external=True)
    else:
        session.run(*words, env=env)


@nox.session(default=False)
def fuzz(session: nox.Session) -> None:
    """Fuzz studies, tables, catalogs, archives, images and stored files: 2,000 new examples per test, 20,000 images."""
    session.install("-e", ".", "--group", "test", *PINNED)
    files = (
        "test_fuzz.py",
        "test_fuzz_files.py",
        "results/test_damage.py",
        "data/test_corpus.py",
        "cli/test_command_lines.py",
    )
    many = {"PEFTBENCH_TEST_FUZZ": "2000", "PEFTBENCH_TEST_ODD_IMAGES": "20000"}
    session.run("pytest", *PARALLEL, *(f"tests/{file}" for file in files), *session.posargs, env=ONE_THREAD | many)


@nox.session(default=False)
def atheris(session: nox.Session) -> None:
    """Fuzz readers of files by coverage, a minute each: `nox -s atheris -- tar -max_total_time=600`."""
    session.install("-e", ".", "atheris", "--group", "test", *PINNED)
    options = ("-max_total_time=60", "-timeout=20", f"-artifact_prefix={session.create_tmp()}/")
    session.run("python", "-m", "tests.fuzz_atheris", *options, *session.posargs, env=ONE_THREAD)


@nox.session(default=False)
def calibration(session: nox.Session) -> None:
    """Simulate studies: false-positive rates, coverage and power of the comparison of methods (about an hour)."""
    session.install("-e", ".", *PINNED)
    out = ("--out", "reports/statistics/calibration.md")
    session.run("python", "tools/calibration.py", *out, *session.posargs, env=ONE_THREAD)


@nox.session(default=False)
def constraints(session: nox.Session) -> None:
    """Update the pinned versions: `nox -s constraints -- --upgrade`."""
    groups = [word for group in ("test", "lint", "layers", "types", "docs") for word in ("--group", group)]
    plain = ["--universal", "--python-version", "3.11", "--no-annotate", "--no-header", "--no-emit-index-url"]
    out = ["--output-file", "tests/constraints.txt"]
    session.run("uv", "pip", "compile", "pyproject.toml", *groups, *plain, *out, *session.posargs, external=True)
