"""Names to plug-ins: built-in ones by their files, those of other packages by entry points."""

from __future__ import annotations

import sys
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path
from typing import Any

import pytest

from peftbench.core import registry as module
from peftbench.core.registry import FOLDERS, Registry, registry
from peftbench.errors import PluginError, RequestError, UnknownNameError
from peftbench.methods.lora import LoRA


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """Pretend that packages with these entry points were installed: name -> content of a module."""
    monkeypatch.syspath_prepend(tmp_path)
    points: list[EntryPoint] = []

    def one(name: str, content: str, group: str = "peftbench.methods") -> str:
        stem = f"plugin_{tmp_path.name}_{len(points)}".replace("-", "_")
        (tmp_path / f"{stem}.py").write_text(content)
        points.append(EntryPoint(name, f"{stem}:plugin", group))
        return stem

    monkeypatch.setattr(module, "_points", lambda group, _path: EntryPoints(points).select(group=group))
    return one


# --- built-in --------------------------------------------------------------------------------------------------------


def test_our_names_are_the_stems_of_the_files() -> None:
    assert {"bitfit", "full", "linear", "lora", "majority", "shpeft"} <= set(registry("methods").names())
    assert {"mini", "clip_vit_b16", "timm", "open_clip"} <= set(registry("backbones").names())
    assert not [name for folder in FOLDERS for name in registry(folder).names() if name.startswith("_")]


def test_names_are_sorted() -> None:
    for folder in FOLDERS:
        assert list(registry(folder).names()) == sorted(registry(folder).names())


def test_a_name_gives_the_plugin_of_its_file() -> None:
    assert registry("methods").get("lora") is LoRA


# --- unknown ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("folder", "name", "message"),
    [
        ("methods", "lorra", r"No method is called 'lorra'\. Did you mean lora[^?]*\? There are: .*bitfit.*\."),
        ("methods", "SHPEFT", r"No method is called 'SHPEFT'\. Did you mean shpeft[^?]*\?"),
        ("datasets", "bussi", r"No data set is called 'bussi'\. Did you mean busi"),
        ("backbones", "xyz", r"No backbone is called 'xyz'\. There are: augreg_in21k_b16, "),
        ("methods", "__init__", r"No method is called '__init__'"),
        ("datasets", "_files", r"No data set is called '_files'"),
    ],
)
def test_an_unknown_name_answers_with_near_ones_and_the_list(folder: str, name: str, message: str) -> None:
    with pytest.raises(UnknownNameError, match=message):
        registry(folder).get(name)


# --- entry points ----------------------------------------------------------------------------------------------------


def test_an_installed_plugin_is_found_like_a_built_in_one(install: Any) -> None:
    install("theirs", "from peftbench.methods.bitfit import plugin")
    assert "theirs" in registry("methods").names()
    assert issubclass(registry("methods").get("theirs"), registry("methods").get("bitfit"))
    assert registry("methods").get("lora") is LoRA


def test_a_plugin_is_of_its_own_group_only(install: Any) -> None:
    install("theirs", "plugin = 42", group="peftbench.metrics")
    assert "theirs" not in registry("methods").names()
    assert "theirs" in registry("metrics").names()


def test_listing_imports_no_plugin(install: Any) -> None:
    stem = install("theirs", "raise RuntimeError")
    assert "theirs" in registry("methods").names()
    assert stem not in sys.modules


def test_two_installed_plugins_of_one_name_are_both_named(install: Any) -> None:
    first, second = install("theirs", "plugin = 1"), install("theirs", "plugin = 2")
    with pytest.raises(PluginError, match=f"Two plug-ins call a method 'theirs': {first}:plugin and {second}:plugin"):
        registry("methods").names()


def test_a_built_in_name_cannot_be_taken(install: Any) -> None:
    stem = install("lora", "plugin = 1")
    with pytest.raises(PluginError, match=f"'lora': peftbench itself and {stem}:plugin; uninstall one"):
        registry("methods").get("lora")


@pytest.mark.parametrize(
    ("content", "error"),
    [
        ("import nowhere_to_be_found", "ModuleNotFoundError: No module named 'nowhere_to_be_found'"),
        ("1 / 0", "ZeroDivisionError"),
        ("plugins = 1", "AttributeError"),
        ("import sys\nsys.exit(0)", "SystemExit: 0"),
        ("def", "SyntaxError"),
    ],
)
def test_a_plugin_that_fails_to_import_is_named_and_the_rest_go_on(install: Any, content: str, error: str) -> None:
    stem = install("theirs", content)
    with pytest.raises(PluginError, match=rf"The method 'theirs' \({stem}:plugin\) cannot be loaded: {error}"):
        registry("methods").get("theirs")
    assert registry("methods").get("lora") is LoRA


def test_a_plugins_own_sentence_is_not_wrapped(install: Any) -> None:
    install("theirs", "from peftbench.errors import RequestError\nraise RequestError('Install this first.')")
    with pytest.raises(Exception, match=r"^Install this first\.$"):
        registry("methods").get("theirs")


def test_a_built_in_module_that_lacks_a_plugin_attribute_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Registry, "built_in", lambda _: frozenset({"__init__"}))
    with pytest.raises(PluginError, match="cannot be loaded"):
        registry("methods").get("__init__")


@pytest.mark.parametrize(
    ("folder", "kind", "lacks"),
    [
        ("methods", "method", "plan"),
        ("datasets", "data set", "load"),
        ("backbones", "backbone", "network"),
        ("metrics", "metric", "__call__"),
        ("reports", "report", "suffix"),
    ],
)
def test_a_plugin_that_is_something_else_is_named(install: Any, folder: str, kind: str, lacks: str) -> None:
    stem = install("theirs", "plugin = 42", group=f"peftbench.{folder}")
    with pytest.raises(PluginError, match=rf"The {kind} 'theirs' \({stem}:plugin\) has no '{lacks}'"):
        registry(folder).get("theirs")


# --- the guard -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [KeyError("x"), SystemExit(0), RecursionError(), AssertionError("no")])
def test_whatever_a_plugin_raises_is_named(install: Any, error: BaseException) -> None:
    stem = install("theirs", "plugin = 1", group="peftbench.metrics")
    with (
        pytest.raises(PluginError, match=rf"^The metric 'theirs' \({stem}:plugin\) failed: {type(error).__name__}:"),
        registry("metrics").calling("theirs"),
    ):
        raise error


@pytest.mark.parametrize(
    "error", [RequestError("Own."), MemoryError(), OSError(28, "No space left on device"), KeyboardInterrupt()]
)
def test_what_is_not_the_plugins_fault_passes(error: BaseException) -> None:
    with pytest.raises(type(error)), registry("metrics").calling("auc"):
        raise error
