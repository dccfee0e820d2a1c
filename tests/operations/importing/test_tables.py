"""Every table is sound, and no key is dropped, whatever its value."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlflow_ft import plugins
from mlflow_ft.config import read_yaml, resolve
from mlflow_ft.config.explain import FIELDS
from mlflow_ft.operations.importing import table, tools, writing
from mlflow_ft.operations.importing.converters import CONVERSIONS
from mlflow_ft.operations.importing.draft import OPTIONS, Key
from mlflow_ft.operations.importing.reading import Read
from mlflow_ft.operations.importing.translating import Imported, translate
from mlflow_ft.registry import Registry

REGISTRY = Registry(plugins.load({}))
VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-2, 4096),
    st.floats(0, 2, allow_nan=False),
    st.sampled_from(["auto", "lora", "dpo", "1e-4", "x", "no", "epoch", "a,b", "./folder", "# odd: {[", "ünï"]),
    st.lists(st.sampled_from(["q_proj", "a", 1]), max_size=2),
)


def name_of(key: str) -> str:
    """A key that an entry of a table stands for."""
    return key.replace("[]*", "[0].path").replace("[].", "[0].").replace("*", "any")


def imported(tool: str, values: dict[str, Any]) -> Imported:
    keys = [Key(name=name, value=value, place="line 1") for name, value in values.items()]
    return translate(Read(keys=keys, folder=Path("nowhere")), table.load(tool), tools.rules_of(tool), REGISTRY)


@pytest.mark.parametrize("tool", tools.TOOLS)
def test_entries_name_settings_conversions_and_rules_that_exist(tool: str) -> None:
    rules = {rule.__name__ for rule in tools.rules_of(tool)}
    entries = table.load(tool).entries
    for key, entry in entries.items():
        assert not entry.to or entry.to in FIELDS or entry.to.startswith(tuple(f"{option}." for option in OPTIONS)), key
        assert entry.how in CONVERSIONS, key
        assert not entry.rule or entry.rule in rules, key
        assert not entry.of or entry.of in entries, key
        assert entry.kind not in ("refused", "not needed", "approximated") or entry.about, key


@pytest.mark.parametrize("tool", tools.TOOLS)
def test_a_tool_is_recognised_by_any_of_its_signs(tool: str) -> None:
    known = table.load(tool)
    assert known.signs
    tops = {key.partition(".")[0].partition("[")[0] for key in known.entries}
    assert set(known.signs) <= tops


@pytest.mark.parametrize("tool", tools.TOOLS)
@settings(max_examples=40)
@given(data=st.data())
def test_every_key_is_told_and_the_result_is_accepted(tool: str, data: st.DataObject, tmp_path_factory: Any) -> None:
    known = sorted(map(name_of, table.load(tool).entries))
    chosen = data.draw(st.lists(st.sampled_from([*known, "made.up", "zzz"]), max_size=12, unique=True))
    values = {name: data.draw(VALUES) for name in chosen}
    result = imported(tool, values)
    assert {told.key.name for told in result.told} == set(values)
    assert all(told.paths or told.note or told.status == "mapped" for told in result.told)
    file = tmp_path_factory.mktemp("ours") / "ours.yaml"
    file.write_text(writing.as_yaml(result, source="x"), encoding="utf-8")
    config = resolve(result.method, defaults=REGISTRY.trainers[result.method].defaults, file=read_yaml(file))
    assert config.method == result.method
    assert [*writing.report(result), writing.as_dict(result, source="x")]


@pytest.mark.parametrize(
    ("tool", "values", "refused"),
    [
        ("axolotl", {"batch_size": "auto"}, ["batch_size"]),
        ("axolotl", {"batch_size": 8, "micro_batch_size": 0}, ["micro_batch_size"]),
        ("axolotl", {"batch_size": 8, "micro_batch_size": 0.5}, ["micro_batch_size"]),
        ("llamafactory", {"lora_rank": "auto"}, ["lora_rank"]),
        ("llamafactory", {"lora_alpha": "inf"}, ["lora_alpha"]),
    ],
)
def test_what_is_not_a_count_is_refused(tool: str, values: dict[str, Any], refused: list[str]) -> None:
    told = {told.key.name: told.status for told in imported(tool, values).told}
    assert [name for name, status in told.items() if status == "refused"] == refused


@pytest.mark.parametrize(
    ("tool", "key", "off", "changes"),
    [
        ("axolotl", "chat_template_kwargs.enable_thinking", [], [False, True, 0]),
        ("trl", "chat_template_kwargs.enable_thinking", [], [False, True]),
        ("trl", "generation_kwargs.do_sample", [], [False]),
        ("axolotl", "peft_autocast_adapter_dtype", [True], [False]),
        ("trl", "accelerator_config.even_batches", [True], [False]),
        ("trl", "accelerator_config.split_batches", [False], [True]),
        ("axolotl", "sequence_parallel_degree", [1, 0, False], [2]),
        ("trl", "truncation_mode", ["keep_start", False], ["keep_end"]),
        ("trl", "dataset_kwargs.skip_prepare_dataset", [False], [True]),
    ],
)
def test_false_is_off_only_where_it_changes_nothing(tool: str, key: str, off: list[Any], changes: list[Any]) -> None:
    told = {repr(value): imported(tool, {key: value}).told[0] for value in (*off, *changes)}
    assert {told[repr(value)].status for value in off} <= {"not needed"}
    assert {told[repr(value)].status for value in changes} == {"refused"}
    assert "as here" not in told[repr(changes[0])].note


@pytest.mark.parametrize("tool", tools.TOOLS)
def test_keys_that_are_never_off_have_no_setting(tool: str) -> None:
    listed = [entry for entry in table.load(tool).entries.values() if entry.never_off]
    assert {entry.kind for entry in listed} <= {"refused", "approximated"}
    assert all(entry.default is None for entry in listed)


@pytest.mark.parametrize("tool", tools.TOOLS)
def test_a_made_up_key_is_unknown_in_every_section(tool: str) -> None:
    assert imported(tool, {"never_heard_of": 1}).told[0].status == "unknown"
