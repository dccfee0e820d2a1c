"""The messages, the table of all fields and the resolved YAML."""

from __future__ import annotations

import subprocess
import sys
from datetime import date
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, Literal, get_args, get_origin

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mlflow_ft.config import Config, describe, pairs, read_yaml, resolve, to_yaml
from mlflow_ft.config.explain import FIELDS, SECTIONS, locate, members, shown, unknown
from mlflow_ft.config.schema import PRIMARY
from mlflow_ft.config.synonyms import SYNONYMS

# ---- promises about the schema


@pytest.mark.parametrize("name", SECTIONS)
def test_a_section_is_small_and_every_field_is_explained(name: str) -> None:
    section = SECTIONS[name]
    # training has the two that end a training on evidence and the two for kernels beside the 18: each of them is named
    # as users know it, and moving another to a new section would break their configurations
    assert 0 < len(section.model_fields) <= (22 if name == "training" else 18)
    assert section.__doc__
    assert [leaf for leaf, field in section.model_fields.items() if not field.description] == []


def test_every_field_of_the_config_is_a_section_or_known_to_be_none() -> None:
    assert [name for name in Config.model_fields if name not in SECTIONS] == ["method", "plugin_options", "origins"]
    assert all(f"{section}.{leaf}" in FIELDS for section, leaf in PRIMARY.items())
    assert set(PRIMARY) <= set(SECTIONS)


def test_the_configuration_is_light_and_warns_of_nothing() -> None:
    code = "import sys, mlflow_ft.config; print(*{'torch', 'mlflow', 'transformers'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, "", "")


# ---- hints


@pytest.mark.parametrize(
    ("key", "hint"),
    [
        ("data.fromat", "did you mean data.format?"),
        ("adapter.rnak", "did you mean adapter.r?"),
        ("training.lr", "did you mean training.learning_rate?"),
        ("lr", "did you mean training.learning_rate?"),
        ("trainer.lr", "did you mean training.learning_rate?"),
        ("adaptor.r", "did you mean adapter.r?"),
        ("evalution.max_row", "did you mean evaluation.max_rows?"),
        ("date.revision", "did you mean data.revision?"),
        ("revison", "did you mean model.revision or data.revision?"),
        ("training.max_new_tokens", "did you mean evaluation.max_new_tokens?"),
        ("data.max_step", "did you mean training.max_steps?"),
        ("register.alias", "did you mean registry.alias?"),
        ("LR", "did you mean training.learning_rate?"),
        ("modle", "did you mean model.name?"),
        ("model.load_in_4bit", "did you mean model.quantize=nf4?"),
        (
            "evaluaton",
            (
                "evaluation has evaluators, max_rows, max_new_tokens, per_device_eval_batch_size, guards, on_worse, "
                "samples"
            ),
        ),
        ("register.zzz", "registry has model_name, alias, gates"),
        (
            "zzz",
            (
                "sections: run, model, data, checks, adapter, objective, rollout, training, evaluation, package, "
                "registry, launch, plugins"
            ),
        ),
    ],
)
def test_an_unknown_key_gets_the_nearest_known_one(key: str, hint: str) -> None:
    assert unknown(key) == ("unknown key", hint)


@pytest.mark.parametrize("synonym", SYNONYMS)
def test_a_synonym_is_not_a_key_and_its_hint_can_be_typed(synonym: str) -> None:
    assert locate(synonym) == []
    assert unknown(synonym)[1] == f"did you mean {SYNONYMS[synonym]}?"
    path, _, value = SYNONYMS[synonym].partition("=")
    assert path in FIELDS
    if value:
        assert resolve("m", defaults={}, command_line=pairs([f"--{path}={value}"])).flat()[path] == value


@given(st.text(max_size=20) | st.sampled_from(sorted(FIELDS)).map(lambda path: path[:-1]))
def test_every_key_that_is_not_one_has_a_hint(key: str) -> None:
    assert len(locate(key)) == 1 or all(unknown(key))


def test_a_long_value_is_cut() -> None:
    assert shown("x" * 61).endswith("x ...")
    assert len(shown("é" * 1000)) < 70
    assert shown("a\nb") == '"a\\nb"'
    assert shown([date(2024, 12, 24)]) == '["2024-12-24"]'


# ---- the table


def test_the_table_has_a_row_for_every_field_in_the_schemas_order() -> None:
    rows = {path: (kind, default, doc) for path, kind, default, doc in describe()}
    assert list(rows) == list(FIELDS)
    assert rows["adapter.r"] == ("a whole number of at least 1", "16", "Rank of the update.")
    assert rows["model.quantize"][:2] == ("one of none, int8, nf4", "none")
    assert rows["run.output_dir"][:2] == ("a path", "outputs")
    assert rows["adapter.target_modules"][:2] == ("text or a list of names", "all-linear")
    assert rows["data.max_rows"][:2] == ("a whole number of at least 2 or none", "none")


def test_every_default_of_the_table_can_be_typed_and_is_the_default() -> None:
    arguments = [f"--{path}={default}" for path, _, default, _ in describe()]
    assert resolve("m", defaults={}, command_line=pairs(arguments)).flat() == resolve("m", defaults={}).flat()


# ---- the resolved YAML

NASTY = [
    "none",
    "null",
    "~",
    "true",
    "1e-4",
    "0123",
    "[a]",
    "a: b",
    "# x",
    "'",
    '"',
    "",
    " ",
    "-",
    "=",
    "a\nb",
    "a\x85",
]
TEXT = st.sampled_from([*NASTY, "\ufeff", "\u2028", "{% for m in messages %}\n  {{ m }}\n{% endfor %}"]) | st.text()


SHARES = {
    *("adapter.lora_dropout", "checks.near_duplicate", "checks.overlap"),
    *("rollout.top_p", "objective.label_smoothing", "package.min_top1"),
}


def values_of(path: str) -> st.SearchStrategy[Any]:
    return st.one_of(*[_values_of_type(path, kind) for kind in members(FIELDS[path])])


TEXTS = {
    "adapter.target_modules": st.sampled_from(["all-linear", "q_proj", r".*\.[qv]_proj", "#|'"]),
    "registry.alias": st.sampled_from(["", "candidate", "for-tests_2"]),
    "registry.model_name": TEXT.filter(lambda text: bool(text.strip()) and not set(text) & set("/:")),
    "training.save_steps": st.sampled_from(["5min", "0.5 min", "90 minutes"]),
}
"""For settings that do not take any text."""


def _values_of_type(path: str, kind: Any) -> st.SearchStrategy[Any]:
    if get_origin(kind) is Annotated:
        kind = get_args(kind)[0]
    if path == "launch.main_process_port" and kind is int:
        return st.integers(0, 65535)
    if path == "run.also_report_to" and kind is not NoneType:
        return st.lists(st.sampled_from(["wandb", "tensorboard"]), max_size=2)
    if path in TEXTS and kind is str:
        return TEXTS[path]
    if get_origin(kind) is Literal:
        return st.sampled_from(get_args(kind))
    if get_origin(kind) is list and get_args(kind)[0] is not str:
        of_numbers = st.integers(0, 10**9) if get_args(kind)[0] is int else st.floats(1e-300, 1e300)
        return st.lists(of_numbers, min_size=path.startswith("adapter."), max_size=3)
    if get_origin(kind) is list:
        return st.lists(TEXT, min_size=path == "data.path", max_size=3)
    if get_origin(kind) is dict:
        of = TEXT if get_args(kind)[1] is str else st.floats(1e-300, 1e300)
        return st.dictionaries(TEXT, of, min_size=path == "data.path", max_size=3)
    return {
        NoneType: st.none(),
        bool: st.booleans(),
        date: st.dates(date(1000, 1, 1)),
        int: st.integers(8, 10**20),
        float: st.floats(1e-9, 0.5, exclude_max=True) if path in SHARES else st.floats(1e-300, 1e300),
        str: TEXT.filter(bool) if path == "data.path" else TEXT,
        Path: TEXT.filter(lambda text: "\0" not in text),
    }[kind]


SOME_VALUES = st.fixed_dictionaries({}, optional={path: values_of(path) for path in FIELDS})


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(values=SOME_VALUES, others=SOME_VALUES)
def test_the_yaml_of_a_config_reads_back_as_that_config(
    tmp_path: Path, values: dict[str, Any], others: dict[str, Any]
) -> None:
    config = resolve("weird\n# method", defaults=values)
    path = tmp_path / "config.yaml"
    path.write_text(to_yaml(config), encoding="utf-8")
    again = resolve(config.method, defaults=others, file=read_yaml(path))
    assert again.model_copy(update={"origins": {}}) == config.model_copy(update={"origins": {}})
    assert all(place.startswith("config.yaml line ") for place in again.origins.values())
    assert yaml.safe_load(to_yaml(config))["model"]["name"] == config.model.name  # for other readers of the artifact


def test_the_yaml_is_for_reading() -> None:
    command_line = pairs(
        [
            "--chat_template",
            f"{'long: ' * 40}",
            "--target_modules",
            "[q, v]",
            "--model.revision",
            "none",
            "--data",
            "a\n b",
        ]
    )
    text = to_yaml(resolve("qlora", defaults={"model.quantize": "nf4"}, command_line=command_line))
    assert text.startswith("method: qlora  # asked for\n\nrun:\n  name: null\n")
    for line in (
        "  revision: null  # --model.revision (command line)",
        "  quantize: nf4  # method qlora",
        "  double_quant: true",
        '  path: "a\\n b"  # --data (command line)',
        "  target_modules: [q, v]  # --target_modules (command line)",
        "  kind: none",
        f'  chat_template: "{"long: " * 40}"  # --chat_template (command line)',
    ):
        assert line in text.splitlines()
    assert [line[:-1] for line in text.splitlines() if line.endswith(":")] == list(SECTIONS)


def test_an_origin_cannot_break_out_of_its_comment() -> None:
    config = resolve("m", defaults={}).model_copy(update={"origins": {"run.seed": "x\nevil: 1\u2028\x07"}})
    assert "  seed: 42  # x?evil: 1??" in to_yaml(config).split("\n")
