"""A plugin that is wrong in any way is named, with the reason and the place, and the others work."""

from __future__ import annotations

import warnings
from types import ModuleType

import pluggy
import pytest

from mlflow_ft import hookspecs, plugins
from mlflow_ft.errors import PluginError
from mlflow_ft.plugins import Plugins
from mlflow_ft.registry import Registry
from tests.installed import GOOD, Install, info, providers

HOOK = "from mlflow_ft import hookimpl\n"


def test_two_that_clash_are_both_left_out_and_both_say_with_whom(install: Install) -> None:
    install("ft_one", GOOD.format(name="same"))
    install("ft_two", GOOD.format(name="same"))
    install("ft_well", GOOD.format(name="well"))
    loaded = plugins.load({})
    one, two = info(loaded, "ft_one"), info(loaded, "ft_two")
    assert (one.status, two.status) == ("clash", "clash")
    assert one.error.startswith("adapter 'same' is also registered by ft_two; ")
    assert two.error.startswith("adapter 'same' is also registered by ft_one; ")
    assert "MLFLOW_FT_PLUGINS" in one.error
    assert not {"ft_one", "ft_two"} & providers(loaded)
    adapters = Registry(loaded).adapters
    assert "well" in adapters
    assert "same" not in adapters
    with pytest.raises(PluginError, match="also registered by"):
        plugins.load({"MLFLOW_FT_STRICT": "1"})
    assert "same" in Registry(plugins.load({"MLFLOW_FT_PLUGINS": "ft_two"})).adapters


def test_a_built_in_stays_where_a_plugin_takes_its_name(install: Install) -> None:
    install("ft_one", GOOD.format(name="lora"))
    loaded = plugins.load({})
    assert info(loaded, "ft_one").status == "clash"
    assert "also registered by builtin.adapters" in info(loaded, "ft_one").error
    assert Registry(loaded).adapters.provider("lora") == "builtin.adapters"


def test_one_that_registers_a_name_twice_is_left_out(install: Install) -> None:
    install("ft_twice", GOOD.format(name="mine").replace("return [", "return 2 * ["))
    loaded = plugins.load({})
    assert info(loaded, "ft_twice").status == "clash"


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("x = 1\nimport no_such_module", "ModuleNotFoundError: No module named 'no_such_module' ({file} line 2)"),
        ("x = 1\ndef (", "({file} line 2)"),
        (HOOK + "@hookimpl\ndef register_format():\n    return []", "did you mean register_formats?"),
        (HOOK + "@hookimpl\ndef before_train(jobs):\n    pass", "jobs is not one of its arguments: job, data, model"),
        (HOOK + "@hookimpl\ndef before_train(job=None):\n    pass", "the parameter job has a default"),
        (HOOK + "@hookimpl(wrapper=True)\ndef after_evaluate():\n    yield", "after_evaluate is a wrapper"),
        (
            HOOK + "@hookimpl\ndef register_gates():\n    return [1 / 0]",
            "ZeroDivisionError: division by zero ({file} line 4)",
        ),
        ("MLFLOW_FT_API = 2", "made for version 2 of the plugin API; this mlflow-ft has 1: update mlflow-ft"),
        ("MLFLOW_FT_API = 0", "made for version 0 of the plugin API; this mlflow-ft has 1: update the plugin"),
        ("MLFLOW_FT_API = '1'", "made for version '1'"),
        (GOOD.format(name=" "), "register_adapters returned a record (Adapter) whose name is ' '"),
        (GOOD.format(name="x").replace('summary="of x"', "summary=None"), "whose summary is None"),
    ],
)
def test_the_reason_says_where_and_what_was_meant(install: Install, source: str, said: str) -> None:
    install("ft_wrong", source)
    install("ft_good", GOOD.format(name="good"))
    loaded = plugins.load({})
    wrong = info(loaded, "ft_wrong")
    assert wrong.status == "broken"
    assert said.format(file=install.folder / "ft_wrong.py") in wrong.error
    assert "\n" not in wrong.error
    assert info(loaded, "ft_good").status == "active"


def test_a_slow_import_is_timed_and_noted(install: Install) -> None:
    install("ft_slow", "import time; time.sleep(1.1)\n" + GOOD.format(name="slow"))
    install("ft_good", GOOD.format(name="good"))
    loaded = plugins.load({})
    slow, quick = info(loaded, "ft_slow"), info(loaded, "ft_good")
    assert slow.load_seconds > 1.1
    [note] = slow.notes
    assert "to import" in note
    assert quick.notes == ()


def test_what_its_import_prints_is_not_in_a_commands_output(
    install: Install, capsys: pytest.CaptureFixture[str]
) -> None:
    install("ft_banner", 'print("Will patch your computer")\n' + GOOD.format(name="quiet"))
    assert info(plugins.load({}), "ft_banner").status == "active"
    out, err = capsys.readouterr()
    assert (out, err) == ("", "Will patch your computer\n")


def test_what_it_provides_is_listed(install: Install) -> None:
    install("ft_good", GOOD.format(name="good") + "\n@hookimpl\ndef after_evaluate(job):\n    pass\n")
    good = info(plugins.load({}), "ft_good")
    assert good.provides == ("adapter good",)
    assert good.hooks == ("after_evaluate",)


@pytest.mark.parametrize("variable", [True, False])
def test_only_allowed_plugins_are_imported(install: Install, *, variable: bool) -> None:
    install("ft_one", GOOD.format(name="one"))
    install("ft_two", GOOD.format(name="two"))
    environ = {"MLFLOW_FT_PLUGINS_ALLOW": "ft_two"} if variable else {}
    loaded = plugins.load(environ, allow=None if variable else ["ft_two"])
    assert info(loaded, "ft_one").status == "disabled"
    assert info(loaded, "ft_one").error == f"not in {'MLFLOW_FT_PLUGINS_ALLOW' if variable else 'plugins.allow'}"
    assert info(loaded, "ft_two").status == "active"
    assert {"ft_one", "ft_two"} & set(install.imported()) == {"ft_two"}
    assert "qlora" in Registry(loaded).trainers


def test_both_lists_must_allow_it_and_an_empty_one_allows_none(install: Install) -> None:
    install("ft_one", GOOD.format(name="one"))
    assert info(plugins.load({"MLFLOW_FT_PLUGINS_ALLOW": "ft_one"}, allow=[]), "ft_one").status == "disabled"
    assert info(plugins.load({"MLFLOW_FT_PLUGINS_ALLOW": ""}, allow=["ft_one"]), "ft_one").status == "disabled"
    assert info(plugins.load({"MLFLOW_FT_PLUGINS_ALLOW": "ft_one"}, allow=["ft_one"]), "ft_one").status == "active"
    with pytest.raises(PluginError, match=r"MLFLOW_FT_PLUGINS names ft_one, which plugins\.allow does not allow"):
        plugins.load({"MLFLOW_FT_PLUGINS": "ft_one"}, allow=["ft_two"])


def test_a_hook_that_will_go_is_noted_and_still_works() -> None:
    older = ModuleType("older")
    old = ModuleType("specifications")
    vars(old).update({name: value for name, value in vars(hookspecs).items() if not name.startswith("__")})

    @pluggy.HookspecMarker(hookspecs.PROJECT)(warn_on_impl=DeprecationWarning("after_evaluate goes in 2.0: use x"))
    def after_evaluate(job: object, scores: object) -> None: ...

    old.after_evaluate = after_evaluate  # type: ignore[attr-defined]
    seen = []

    @hookspecs.hookimpl(specname="after_evaluate")
    def watch(job: object) -> None:
        seen.append(job)

    older.watch = watch  # type: ignore[attr-defined]
    loaded = Plugins(old)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        added = loaded.add(older, name="older")
    assert added.status == "active"
    assert added.notes == ("after_evaluate goes in 2.0: use x",)
    loaded.watch("after_evaluate", job="job", scores=None)
    assert seen == ["job"]
