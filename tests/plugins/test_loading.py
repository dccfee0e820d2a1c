"""A broken plugin is listed and left out whole; the others work."""

from __future__ import annotations

import importlib
import logging
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mlflow_ft import plugins
from mlflow_ft.errors import PluginError
from mlflow_ft.plugins import Plugins, offered
from mlflow_ft.registry import Registry
from tests.installed import GOOD, Install, info, providers

WATCHER = """
from mlflow_ft import hookimpl
from pathlib import Path

@hookimpl
def after_evaluate(scores):
    {body}
"""


def test_an_installed_plugin_is_found_with_its_version_and_hash(install: Install) -> None:
    install("ft_good", GOOD.format(name="good"))
    loaded = plugins.load({})
    plugin = info(loaded, "ft_good")
    assert (plugin.status, plugin.version, plugin.module, plugin.error) == ("active", "1.5", "ft_good", "")
    assert len(plugin.sha256) == 64
    assert plugin in loaded.active
    assert Registry(loaded).adapters.provider("good") == "ft_good"


BROKEN = {
    "an import error": ("import no_such_module", "ModuleNotFoundError: No module named 'no_such_module'"),
    "a syntax error": ("def (", "SyntaxError: "),
    "an exit": ("raise SystemExit(3)", "SystemExit: 3"),
    "a hook that raises": ("@hookimpl\ndef register_formats():\n    raise KeyError('x\\ny')", "KeyError: "),
    "a hook that exits": ("@hookimpl\ndef register_formats():\n    raise SystemExit", "SystemExit"),
    "a hook that returns nothing": ("@hookimpl\ndef register_formats():\n    pass", "TypeError: "),
    "a record of the wrong type": (
        "@hookimpl\ndef register_trainers():\n    return [Adapter(name='x', summary='x', configure=None)]",
        "TypeError: register_trainers returned Adapter(name='x', summary='x', configure=None",
    ),
    "a misspelt hook": ("@hookimpl\ndef register_format():\n    return []", "PluginValidationError: unknown hook"),
    "an unknown argument": ("@hookimpl\ndef before_train(jobs):\n    pass", "PluginValidationError: "),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_plugin_is_listed_and_left_out_whole_and_the_others_work(install: Install, case: str) -> None:
    source, error = BROKEN[case]
    # the name comes first in the alphabet, so that the good plugin is loaded after it
    install("ft_broken", f"{GOOD.format(name='of-the-broken')}\n{source}\n")
    install("ft_good", GOOD.format(name="good"))
    loaded = plugins.load({})
    plugin = info(loaded, "ft_broken")
    assert plugin.status == "broken"
    assert plugin.error.startswith(error)
    assert "\n" not in plugin.error
    assert plugin not in loaded.active
    assert "ft_broken" not in providers(loaded)
    callers = [getattr(loaded.hook, name) for name in vars(loaded.hook) if not name.startswith("_")]
    assert "ft_broken" not in {
        implementation.plugin_name for caller in callers for implementation in caller.get_hookimpls()
    }
    assert info(loaded, "ft_good").status == "active"
    registry = Registry(loaded)
    assert "good" in registry.adapters
    assert "of-the-broken" not in registry.adapters
    assert registry.trainers["qlora"].name == "qlora"


def test_strict_makes_a_broken_plugin_an_error_that_names_it(install: Install) -> None:
    install("ft_broken", "1 / 0")
    assert info(plugins.load({"MLFLOW_FT_STRICT": "0"}), "ft_broken").status == "broken"
    with pytest.raises(PluginError, match=r"plugin ft_broken 1\.5 is broken: ZeroDivisionError") as error:
        plugins.load({"MLFLOW_FT_STRICT": "1"})
    assert "unset MLFLOW_FT_STRICT" in error.value.hint


def test_a_choice_of_plugins_leaves_the_others_off_and_unimported(install: Install) -> None:
    install("ft_one", GOOD.format(name="one"))
    install("ft_two", GOOD.format(name="two"))
    loaded = plugins.load({"MLFLOW_FT_PLUGINS": " ft_two ,"})
    assert [info(loaded, name).status for name in ("ft_one", "ft_two")] == ["disabled", "active"]
    assert "ft_one" not in sys.modules
    assert "builtin.trainers" in providers(loaded)
    adapters = Registry(loaded).adapters
    assert "two" in adapters
    assert "one" not in adapters


def test_a_choice_that_is_not_installed_is_reported(install: Install) -> None:
    install("ft_one", GOOD.format(name="one"))
    with pytest.raises(PluginError, match="MLFLOW_FT_PLUGINS names ft_none, which is not installed") as error:
        plugins.load({"MLFLOW_FT_PLUGINS": "ft_one,ft_none"})
    assert "ft_one" in error.value.hint


def test_the_second_plugin_of_a_name_is_broken_and_the_first_stays(install: Install) -> None:
    install("ft_one", GOOD.format(name="one"), entry_point="same")
    install("ft_two", GOOD.format(name="two"), entry_point="same")
    loaded = plugins.load({})
    listed = sorted((plugin.status, plugin.module, plugin.error) for plugin in loaded.infos if plugin.name == "same")
    assert [status for status, _, _ in listed] == ["active", "broken"]
    assert listed[1][2] == "another plugin of this name is loaded already"
    kept = loaded.hook.register_adapters.get_hookimpls()
    assert listed[0][1] in {implementation.plugin.__name__ for implementation in kept}
    assert "same" in providers(loaded)


def test_a_plugin_cannot_take_the_place_of_a_built_in(install: Install) -> None:
    install("ft_one", GOOD.format(name="one"), entry_point="builtin.trainers")
    loaded = plugins.load({})
    assert [plugin.status for plugin in loaded.infos if plugin.name == "builtin.trainers"] == ["active", "broken"]
    assert "qlora" in Registry(loaded).trainers


def test_a_watcher_that_raises_is_logged_by_name_and_stops_no_run(
    install: Install, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("ft_a", "ft_c"):
        install(name, WATCHER.format(body=f"Path({str(tmp_path / name)!r} + '.seen').write_text(scores)"))
    install("ft_b", WATCHER.format(body="raise RuntimeError('ouch\\nand more')"))
    with caplog.at_level(logging.WARNING):
        plugins.load({"MLFLOW_FT_PLUGINS": "ft_a,ft_b,ft_c"}).watch("after_evaluate", job=None, scores="good")
    assert [(tmp_path / f"{name}.seen").read_text() for name in ("ft_a", "ft_c")] == ["good", "good"]
    assert [record.getMessage() for record in caplog.records] == [
        "plugin ft_b: after_evaluate raised RuntimeError: ouch"
    ]


def test_the_hash_is_of_the_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    package = tmp_path / "ft_hashed"
    (package / "inner").mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "inner" / "steps.py").write_text("LIMIT = 1\n")
    importlib.invalidate_caches()
    module = importlib.import_module("ft_hashed")

    def hashed() -> str:
        return Plugins().add(module, name="hashed").sha256

    first = hashed()
    assert first == hashed()
    (package / "inner" / "steps.py").write_text("LIMIT = 2\n")
    second = hashed()
    (package / "inner" / "steps.py").rename(package / "steps.py")
    assert len({first, second, hashed()}) == 3
    del sys.modules["ft_hashed"]


def test_a_plugin_in_a_zip_file_works_without_a_hash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import zipfile

    with zipfile.ZipFile(tmp_path / "all.zip", "w") as archive:
        archive.writestr("ft_zipped.py", GOOD.format(name="zipped"))
    monkeypatch.syspath_prepend(str(tmp_path / "all.zip"))
    plugin = Plugins().add(importlib.import_module("ft_zipped"), name="zipped")
    assert (plugin.status, plugin.sha256) == ("active", "")
    del sys.modules["ft_zipped"]


OFFER = """
[project]
name = "{name}"
version = "2.5"
entry-points.mlflow_ft.{name} = "{name}"
"""
Offer = Callable[..., Path]


@pytest.fixture
def offer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Offer]:
    """Put a plugin that is not installed into a checkout; returns the checkout's folder."""
    root = tmp_path / "checkout"
    before = set(sys.modules)
    monkeypatch.setattr(sys, "path", list(sys.path))

    def make(name: str, source: str, settings: str = OFFER) -> Path:
        folder = root / "plugins" / name
        (folder / name).mkdir(parents=True)
        (folder / name / "__init__.py").write_text(source)
        (folder / "pyproject.toml").write_text(settings.format(name=name))
        (root / "MLproject").touch()
        importlib.invalidate_caches()
        return root

    yield make
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(tmp_path)):
            del sys.modules[name]


def test_a_plugin_of_the_checkout_works_without_being_installed(offer: Offer) -> None:
    loaded = plugins.load({}, checkout=offer("ft_near", GOOD.format(name="near")))
    plugin = info(loaded, "ft_near")
    assert (plugin.status, plugin.version, plugin.module, plugin.error) == ("active", "2.5", "ft_near", "")
    assert len(plugin.sha256) == 64
    assert Registry(loaded).adapters.provider("near") == "ft_near"


def test_a_plugin_of_the_checkout_that_is_installed_is_loaded_once(offer: Offer, install: Install) -> None:
    install("ft_near", GOOD.format(name="near"))
    path = list(sys.path)
    loaded = plugins.load({}, checkout=offer("ft_near", "1 / 0"))
    plugin = info(loaded, "ft_near")
    assert (plugin.status, plugin.version) == ("active", "1.5")
    assert sys.path == path


def test_a_folder_without_a_project_file_is_not_a_checkout(offer: Offer) -> None:
    root = offer("ft_near", GOOD.format(name="near"))
    (root / "MLproject").unlink()
    assert "ft_near" not in {plugin.name for plugin in plugins.load({}, checkout=root).infos}


@pytest.mark.parametrize("settings", ["not toml", "[project]", "project = 1", "[project]\nentry-points = 3"])
def test_a_plugin_of_the_checkout_that_cannot_be_read_does_not_affect_the_others(offer: Offer, settings: str) -> None:
    offer("ft_bad", "", settings)
    root = offer("ft_near", GOOD.format(name="near"))
    offer("ft_raises", "1 / 0")
    loaded = plugins.load({}, checkout=root)
    told = {plugin.name: plugin for plugin in loaded.infos}
    assert told["ft_near"].status == "active"
    assert told["ft_raises"].error.startswith("ZeroDivisionError")
    assert settings == "[project]" or told["ft_bad"].status == "broken"


def test_plugins_of_the_checkout_are_chosen_like_others(offer: Offer) -> None:
    offer("ft_one", GOOD.format(name="one"))
    copied = OFFER + "[tool.mlflow-ft]\nload-from-checkout = false\n"
    root = offer("ft_two", GOOD.format(name="two"), copied)
    free = plugins.load({}, checkout=root)
    assert [info(free, name).status for name in ("ft_one", "ft_two")] == ["active", "disabled"]
    del sys.modules["ft_one"]
    chosen = plugins.load({"MLFLOW_FT_PLUGINS": "ft_two"}, checkout=root)
    assert [info(chosen, name).status for name in ("ft_one", "ft_two")] == ["disabled", "active"]
    assert "ft_one" not in sys.modules


def test_our_own_plugins_are_found_in_the_checkout(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (plugins, offered):
        monkeypatch.setattr(module, "installed", lambda: iter(()))
    plugin = info(plugins.load({}), "ppo")
    assert (plugin.status, plugin.module) == ("active", "mlflow_ft_ppo")
    assert info(plugins.load({}), "template").status == "disabled"
