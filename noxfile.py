"""What must hold before a change lands. `nox` runs what CI runs; `nox --list` names the rest."""

from __future__ import annotations

import zipfile
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
MEMBERS = ("peftbench/backbones/mini.safetensors", "peftbench/_data/methods/", "peftbench/_data/datasets/")


@nox.session
def lint(session: nox.Session) -> None:
    """Ruff: rules and format."""
    session.install("--group", "lint", *PINNED)
    session.run("ruff", "check")
    session.run("ruff", "format", "--check")


@nox.session
def layers(session: nox.Session) -> None:
    """Imports go down the layers only; the package is read, not run, so its dependencies stay out."""
    session.install("--group", "layers", *PINNED)
    session.run("lint-imports", "--no-cache", env={"PYTHONPATH": str(ROOT)})


@nox.session
def types(session: nox.Session) -> None:
    """The two type checkers over package, tests and this file."""
    session.install("-e", ".", "--group", "types", *PINNED)
    session.run("mypy")
    session.run("pyright")


@nox.session
def tests(session: nox.Session) -> None:
    """The test suite, with shapes and types checked at run time. `nox -s tests -- -k lora` runs a part of it."""
    session.install("-e", ".", "--group", "test", *PINNED)
    session.run("pytest", "-n", "2", *session.posargs, env=ONE_THREAD)


@nox.session
def docs(session: nox.Session) -> None:
    """Build the documentation into site/ without a warning or a broken link; `nox -s docs -- --serve` serves it."""
    session.install("-e", ".", "--group", "docs", *PINNED)
    verb = ("serve",) if "--serve" in session.posargs else ("build", "--clean")
    session.run("mkdocs", *verb, "--strict", env={"NO_MKDOCS_2_WARNING": "1"})


@nox.session
def package(session: nox.Session) -> None:
    """The wheel holds what it must and, installed on its own, runs the quick study in an empty folder."""
    wheel = build_wheel(session)
    assert_members(wheel)
    session.install(str(wheel), *PINNED)
    with TemporaryDirectory() as empty, session.chdir(empty):
        fresh = ONE_THREAD | {"PEFTBENCH_CACHE": f"{empty}/cache", "PEFTBENCH_DATA": f"{empty}/data"}
        session.run("peftbench", "run", env=fresh)
        session.run("peftbench", "report", "--out", "report", env=fresh)


def build_wheel(session: nox.Session) -> Path:
    """Build into a fresh folder; returns the one wheel there."""
    out = Path(session.create_tmp()) / "dist"
    session.run("uv", "build", "--wheel", "--clear", "--out-dir", str(out), str(ROOT), external=True)
    (wheel,) = out.glob("*.whl")
    return wheel


def assert_members(wheel: Path) -> None:
    """What runs with nothing downloaded must lie in the wheel."""
    names = zipfile.ZipFile(wheel).namelist()
    absent = [member for member in MEMBERS if not any(name.startswith(member) for name in names)]
    assert not absent, f"{wheel.name} lacks {', '.join(absent)}"


@nox.session
def bench(session: nox.Session) -> None:
    """The speed gates, as ratios: a time is printed and never fails; equality and memory may."""
    session.install("-e", ".", *PINNED)
    session.run("peftbench", "bench", *session.posargs, env=ONE_THREAD)


@nox.session(default=False)
def distil(session: nox.Session) -> None:
    """Remake mini's weights: `nox -s distil -- --teacher FILE --images FILE`."""
    session.install("-e", ".", *PINNED)
    session.run("python", "tools/distil.py", *session.posargs)


@nox.session(default=False, python=["3.11", "3.12", "3.13"])
def pythons(session: nox.Session) -> None:
    """The test suite on every Python that is supported."""
    session.install("-e", ".", "--group", "test", *PINNED)
    session.run("pytest", "-n", "2", *session.posargs, env=ONE_THREAD)


@nox.session(default=False)
def oldest(session: nox.Session) -> None:
    """The test suite on the oldest versions that pyproject.toml admits."""
    session.install("-e", ".", "--group", "test", "--resolution", "lowest-direct")
    session.run("pytest", "-n", "2", *session.posargs, env=ONE_THREAD)


@nox.session(name="compile", default=False)
def compiled(session: nox.Session) -> None:
    """The conformance rules on everything built in, torch.compile included; the test suite compiles one of a family."""
    session.install("-e", ".", *PINNED)
    session.run("peftbench", "check", "--all", "--compile", *session.posargs, env=ONE_THREAD)


@nox.session(default=False)
def crash(session: nox.Session) -> None:
    """A study killed a hundred times at random moments must end with the bits of one that nobody disturbed."""
    session.install("-e", ".", "--group", "test", *PINNED)
    session.run(
        "pytest",
        "tests/execution/test_mishaps.py",
        "-k",
        "again_and_again",
        env=ONE_THREAD | {"PEFTBENCH_TEST_CRASHES": "100"},
    )


@nox.session(default=False)
def fuzz(session: nox.Session) -> None:
    """Studies, tables, catalogues, archives, images and stored files of any bytes: 2,000 new examples a test."""
    session.install("-e", ".", "--group", "test", *PINNED)
    tests = ("tests/test_fuzz.py", "tests/test_fuzz_files.py", "tests/results/test_damage.py")
    session.run("pytest", "-n", "2", *tests, *session.posargs, env=ONE_THREAD | {"PEFTBENCH_TEST_FUZZ": "2000"})


@nox.session(default=False)
def atheris(session: nox.Session) -> None:
    """Readers of files on bytes that reach new lines, a minute each: `nox -s atheris -- tar -max_total_time=600`."""
    session.install("-e", ".", "atheris", "--group", "test", *PINNED)
    options = ("-max_total_time=60", "-timeout=20", f"-artifact_prefix={session.create_tmp()}/")
    session.run("python", "-m", "tests.fuzz_atheris", *options, *session.posargs, env=ONE_THREAD)


@nox.session(default=False)
def calibration(session: nox.Session) -> None:
    """False-positive rates, coverage and power of the comparison of methods, from simulated studies (20 minutes)."""
    session.install("-e", ".", *PINNED)
    out = ("--out", "reports/statistics/calibration.md")
    session.run("python", "tools/calibration.py", *out, *session.posargs, env=ONE_THREAD)


@nox.session(default=False)
def constraints(session: nox.Session) -> None:
    """Renew the pinned versions: `nox -s constraints -- --upgrade`."""
    groups = [word for group in ("test", "lint", "layers", "types", "docs") for word in ("--group", group)]
    plain = ["--universal", "--python-version", "3.11", "--no-annotate", "--no-header", "--no-emit-index-url"]
    out = ["--output-file", "tests/constraints.txt"]
    session.run("uv", "pip", "compile", "pyproject.toml", *groups, *plain, *out, *session.posargs, external=True)
