from __future__ import annotations

from types import ModuleType

import pytest

from mlflow_ft import Adapter, ConfigError, PluginError, hookimpl, plugins
from mlflow_ft.registry import Registry, suggest


def plugin(name: str, *adapters: str) -> ModuleType:
    module = ModuleType(name)

    @hookimpl
    def register_adapters() -> list[Adapter]:
        return [Adapter(name=name, summary=name, configure=lambda job, model: None) for name in adapters]

    module.register_adapters = register_adapters  # type: ignore[attr-defined]
    return module


def test_a_clash_names_both_plugins_and_the_way_out() -> None:
    loaded = plugins.load({})
    loaded.add(plugin("first", "mine"), name="first")
    loaded.add(plugin("second", "mine"), name="second")
    with pytest.raises(PluginError, match="two plugins register adapter 'mine': first and second") as error:
        Registry(loaded)
    assert "MLFLOW_FT_PLUGINS" in error.value.hint


def test_a_clash_with_a_built_in_is_one_too() -> None:
    loaded = plugins.load({})
    loaded.add(plugin("first", "lora"), name="first")
    with pytest.raises(PluginError, match=r"'lora': builtin\.adapters and first"):
        Registry(loaded)


def test_one_name_may_occur_in_two_kinds() -> None:
    loaded = plugins.load({})
    loaded.add(plugin("first", "qlora"), name="first")
    registry = Registry(loaded)
    assert registry.adapters.provider("qlora") == "first"
    assert registry.trainers.provider("qlora") == "builtin.trainers"


def test_an_unknown_name_gets_the_nearest_one_else_all_of_them() -> None:
    trainers = Registry(plugins.load({"MLFLOW_FT_PLUGINS": ""})).trainers
    with pytest.raises(ConfigError, match=r"unknown method 'qlroa'\n  did you mean qlora\?"):
        trainers["qlroa"]
    with pytest.raises(ConfigError, match=r"known: .*full.*lora.*qlora"):
        trainers["xyz"]
    assert suggest("", ["b", "a"]) == "known: a, b"


def test_a_catalogue_is_listed_in_the_order_of_registration() -> None:
    names = [trainer.name for trainer in Registry(plugins.load({})).trainers]
    assert names[:4] == ["sft", "full", "lora", "qlora"]
