"""The layers: what a key may be, what a value may be, who wins, and that every problem is told at once."""

from __future__ import annotations

import re
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from mlflow.exceptions import MlflowException
from mlflow.utils.validation import _validate_model_alias_name, _validate_model_alias_name_reserved
from pydantic import field_validator, model_validator

from mlflow_ft.config import Config, Given, load, pairs, read_yaml, resolve
from mlflow_ft.config.explain import SECTIONS
from mlflow_ft.config.schema import AdapterSection
from mlflow_ft.errors import ConfigError

on_disk = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])


def typed(*arguments: str) -> Config:
    return resolve("lora", defaults={}, command_line=pairs(arguments))


def written(folder: Path, text: str, *, name: str = "qlora.yaml") -> list[Given]:
    path = folder / name
    path.write_bytes(text.encode())
    return read_yaml(path)


def told(error: pytest.ExceptionInfo[ConfigError]) -> list[str]:
    return [str(problem) for problem in error.value.problems]


# ---- pairs


def test_pairs_take_both_spellings_and_values_that_begin_with_a_dash() -> None:
    given_ = pairs(["--adapter.r", "8", "--max-steps", "-1", "--lr=--x=y", "--model=", "--data", ""])
    assert [(value.key, value.value, value.place) for value in given_] == [
        ("adapter.r", "8", "--adapter.r (command line)"),
        ("max_steps", "-1", "--max-steps (command line)"),
        ("lr", "--x=y", "--lr (command line)"),
    ]


def test_pairs_tell_every_bad_token_at_once() -> None:
    with pytest.raises(ConfigError) as error:
        pairs(["stray", "--use_rslora", "--adapter.r", "8", "--=3", "--seed"])
    assert told(error) == [
        '"stray"  is not --key value or --key=value',
        (
            '"8"  is not --key value or --key=value; '
            'a switch needs a value too: "--use_rslora --adapter.r" was read as key and value'
        ),
        '"--=3"  is not --key value or --key=value',
        "--seed  has no value; write --seed VALUE or --seed=VALUE",
    ]


@given(st.lists(st.sampled_from(["--", "-", "", "=", "--a", "--model", "--r=2", "-1"]) | st.text(max_size=5)))
def test_any_tokens_make_pairs_or_a_config_error(tokens: list[str]) -> None:
    with suppress(ConfigError):
        assert all(value.key and value.value for value in pairs(tokens))


# ---- keys


@pytest.mark.parametrize("key", ["training.learning_rate", "training.learning-rate", "learning_rate", "learning-rate"])
def test_a_full_path_or_a_unique_leaf_is_a_key(key: str) -> None:
    assert typed(f"--{key}", "1e-4").training.learning_rate == 1e-4


def test_a_section_alone_is_its_primary_field(tmp_path: Path) -> None:
    config = typed("--model", "X", "--data", "Y")
    assert (config.model.name, config.data.path) == ("X", "Y")
    config = resolve("lora", defaults={}, file=written(tmp_path, "model: X\ndata:\n  path: Y\n"))
    assert (config.model.name, config.data.path) == ("X", "Y")


def test_keys_that_cannot_be_used_are_reported_together() -> None:
    with pytest.raises(ConfigError) as error:
        typed("--revision", "main", "--adapter", "lora", "--data.fromat", "x", "--origins", "x")
    assert told(error) == [
        "--revision (command line)  ambiguous key; write model.revision or data.revision",
        (
            "--adapter (command line)  a section, not a field; "
            "adapter has kind, r, lora_alpha, lora_dropout, target_modules, target_parameters, layers_to_transform, "
            "use_rslora, use_dora, fused, "
            "init_lora_weights, modules_to_save, trainable_token_indices, num_virtual_tokens, init_text, options"
        ),
        "--data.fromat (command line)  unknown key; did you mean data.format?",
        (
            "--origins (command line)  unknown key; "
            "sections: run, model, data, checks, adapter, objective, rollout, training, evaluation, package, "
            "registry, launch, plugins"
        ),
    ]


# ---- values


@pytest.mark.parametrize(
    ("path", "text", "value"),
    [
        ("training.learning_rate", "1e-4", 1e-4),
        ("training.max_steps", "-1", -1),
        ("run.seed", "010", 10),
        ("adapter.use_rslora", "true", True),
        ("adapter.use_rslora", "yes", True),
        ("adapter.use_rslora", "off", False),
        ("training.gradient_checkpointing", "None", None),
        ("data.max_rows", "null", None),
        ("model.revision", "none", None),
        ("model.revision", "0123", "0123"),
        ("model.revision", "1e5", "1e5"),
        ("model.revision", "2024-13-45", "2024-13-45"),
        ("model.revision", "2024-12-24", "2024-12-24"),
        ("model.name", "123", "123"),
        ("data.path", "true", "true"),
        ("data.path", "=", "="),
        ("adapter.kind", "none", "none"),
        ("model.quantize", "none", "none"),
        ("run.output_dir", "2024", Path("2024")),
        ("evaluation.evaluators", "loss", ["loss"]),
        ("evaluation.evaluators", "[loss, exact]", ["loss", "exact"]),
        ("evaluation.evaluators", "[1, yes]", ["1", "yes"]),
        ("evaluation.evaluators", "[]", []),
        ("adapter.target_modules", "[q_proj, 'v_proj']", ["q_proj", "v_proj"]),
        ("adapter.target_modules", "q_proj,v_proj", ["q_proj", "v_proj"]),
        ("adapter.target_modules", "layers.(1|2).q_proj,", "layers.(1|2).q_proj,"),
        ("adapter.target_modules", "q_proj", ["q_proj"]),
        ("adapter.target_modules", "self_attn.q_proj", ["self_attn.q_proj"]),
        ("adapter.target_modules", "ALL_LINEAR", "all-linear"),
        ("objective.loss_type", "bco_pair, sft", ["bco_pair", "sft"]),
        ("data.path", "a,b.jsonl", "a,b.jsonl"),
        ("registry.model_name", "a,b", "a,b"),
        ("data.path", "[a.jsonl, b c.csv]", ["a.jsonl", "b c.csv"]),
        ("data.path", "{a.jsonl: 0.7, b.jsonl: 3}", {"a.jsonl": 0.7, "b.jsonl": 3.0}),
        ("data.columns", "{instruction: frage, output: 007}", {"instruction": "frage", "output": "007"}),
        ("data.columns", "none", None),
    ],
)
def test_command_line_and_unquoted_yaml_mean_the_same(tmp_path: Path, path: str, text: str, value: Any) -> None:
    from_file = resolve("lora", defaults={}, file=written(tmp_path, f"{path}: {text}\n"))
    expected = str(value) if isinstance(value, Path) else value
    assert typed(f"--{path}", text).flat()[path] == from_file.flat()[path] == expected


def test_columns_are_pairs_on_the_command_line_and_a_mapping_in_yaml(tmp_path: Path) -> None:
    wanted = {"instruction": "frage", "output": "antwort"}
    assert typed("--data.columns", "instruction=frage, output = antwort").data.columns == wanted
    file = "data:\n  columns:\n    instruction: frage\n    output: antwort\n"
    assert resolve("lora", defaults={}, file=written(tmp_path, file)).data.columns == wanted


def test_the_sources_and_their_weights() -> None:
    assert typed("--data", "a.jsonl").data.sources == {"a.jsonl": None}
    assert typed("--data", "[a.jsonl, b.jsonl]").data.sources == {"a.jsonl": None, "b.jsonl": None}
    assert typed("--data", "{a.jsonl: 2, b.jsonl: 1}").data.sources == {"a.jsonl": 2.0, "b.jsonl": 1.0}


@pytest.mark.parametrize(
    ("key", "text", "message"),
    [
        ("data", "{a: 0, b: 1}", "a weight must be above 0"),
        ("data", "{a: b}", "is not text or a list of names or a mapping"),
        ("data", "[]", "names no source"),
        ("data.columns", "instruction", '"instruction" is not a mapping {a: b, c: d} or none'),
        ("data.columns", "instruction=", '"instruction=" is not a mapping {a: b, c: d} or none'),
        ("data.columns", "a=b=c,{", '"a=b=c,{" is not a mapping {a: b, c: d} or none'),
        ("data.columns", "{a: {b: c}}", "a takes the name of one column"),
        ("data.columns", "{a: b", '"{a: b" is not a mapping {a: b, c: d} or none'),
        ("data.columns", "{a: b, a: c}", "is not a mapping {a: b, c: d} or none"),
    ],
)
def test_a_mapping_that_is_none_is_refused(key: str, text: str, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        typed(f"--{key}", text)
    assert message in told(error)[0]


def test_merge_keys_and_anchors_are_read(tmp_path: Path) -> None:
    """stategraph/stategraph#1029: `<<: *anchor`, as other readers of YAML take it."""
    text = (
        "x-usual: &usual\n  learning_rate: 1e-4\n  max_steps: 2\n"
        "x-more: &more {max_steps: 9, logging_steps: 7}\n"
        "training:\n  <<: [*usual, *more]\n  learning_rate: 3e-5\n"
    )
    config = resolve("lora", defaults={}, file=written(tmp_path, text))
    assert (config.training.learning_rate, config.training.max_steps, config.training.logging_steps) == (3e-5, 2, 7)
    assert config.origins["training.max_steps"] == "qlora.yaml line 3"
    for wrong in ("training:\n  <<: 3\n", "x-a: &a [1]\ntraining:\n  <<: *a\n", "x-a: &a {<<: *a}\n"):
        with pytest.raises(ConfigError):
            resolve("lora", defaults={}, file=written(tmp_path, wrong + "adapter: {rr: 1}\n"))


def test_where_command_line_and_yaml_differ(tmp_path: Path) -> None:
    assert typed("--evaluators", "a,b").evaluation.evaluators == ["a", "b"]
    assert typed("--target_modules", "[qv]_proj[0-9]").adapter.target_modules == "[qv]_proj[0-9]"
    file = 'model: {revision: "none"}\nadapter: {target_modules: "[a]"}\nrun: {name: "", experiment: ~}\n'
    config = resolve("lora", defaults={"run.experiment": "x"}, file=written(tmp_path, file))
    assert (config.model.revision, config.adapter.target_modules) == ("none", "[a]")
    assert (config.run.name, config.run.experiment) == ("", None)


@pytest.mark.parametrize(
    ("path", "text", "message"),
    [
        ("training.learning_rate", "fast", '"fast" is not a number above 0'),
        ("training.learning_rate", "nan", '"nan" is not a number above 0'),
        ("data.test_size", "inf", '"inf" is not a number above 0'),
        ("training.warmup_steps", "1e999", '"1e999" is not a number of at least 0'),
        ("adapter.r", "0", '"0" is not a whole number of at least 1'),
        ("adapter.r", "true", '"true" is not a whole number of at least 1'),
        ("adapter.r", "1.5", '"1.5" is not a whole number of at least 1'),
        ("adapter.r", "none", '"none" is not a whole number of at least 1'),
        ("data.max_rows", "1", '"1" is not a whole number of at least 2 or none'),
        ("adapter.lora_dropout", "1", '"1" is not a number of at least 0 and below 1'),
        ("adapter.use_rslora", "maybe", '"maybe" is not true or false'),
        ("training.gradient_checkpointing", "2", '"2" is not true or false or selective, or none'),
        ("training.batching", "packed", '"packed" is not one of auto, tokens, by_length, padded; did you mean padded?'),
        ("training.per_device_train_batch_size", "many", '"many" is not a whole number or auto'),
        ("model.quantize", "NF5", '"NF5" is not one of none, int8, nf4; did you mean nf4?'),
    ],
)
def test_a_refused_value_says_what_is_allowed(tmp_path: Path, path: str, text: str, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        typed(f"--{path}", text)
    assert told(error) == [f"--{path} (command line)  {message}"]
    with pytest.raises(ConfigError) as error:
        resolve("lora", defaults={}, file=written(tmp_path, f"\n{path}: {text}\n"))
    unquoted = re.sub(r'^"(\S+)"', r"\1", message)
    assert told(error)[0].replace('"', "").replace("NaN", "nan") == f"qlora.yaml line 2  {path}  {unquoted}"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("adapter: {r: {a: 1}}", "adapter.r  a mapping is not a whole number of at least 1"),
        ("adapter: {r: [1]}", "adapter.r  [1] is not a whole number of at least 1"),
        ("model: [a, b]", 'model  ["a", "b"] is not text'),
        ("model: {name: null}", "model.name  null is not text"),
        ("evaluation: {evaluators: [a, [b]]}", 'evaluation.evaluators  ["a", {}] is not a list of names or none'),
        ("data: {test_size: .inf}", "data.test_size  Infinity is not a number above 0"),
    ],
)
def test_a_yaml_value_of_the_wrong_shape_is_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        resolve("lora", defaults={}, file=written(tmp_path, text))
    assert told(error) == [f"qlora.yaml line 1  {message}"]


def test_values_given_from_code_obey_the_same_rules() -> None:
    config = resolve("lora", defaults={"adapter.r": 8, "adapter.target_modules": ["a"], "model.revision": 1234})
    assert (config.adapter.r, config.adapter.target_modules, config.model.revision) == (8, ["a"], "1234")
    with pytest.raises(ConfigError) as error:
        resolve("lora", defaults={"adapter.r": True, "training.learning_rate": float("nan")})
    assert told(error) == [
        "method lora  adapter.r  true is not a whole number of at least 1",
        "method lora  training.learning_rate  NaN is not a number above 0",
    ]


@given(st.text(min_size=1).filter(lambda text: "\0" not in text))
@example("none")
@example("[a]")
def test_text_on_the_command_line_stays_as_it_is(text: str) -> None:
    assert typed("--model", text).model.name == text
    assert typed(f"--data.format={text}").data.format == text


@given(st.floats(min_value=1e-300, allow_nan=False, allow_infinity=False), st.integers(-(10**30), 10**30))
def test_numbers_on_the_command_line_keep_every_digit(number: float, whole: int) -> None:
    config = typed("--learning_rate", repr(number), "--seed", str(whole))
    assert (config.training.learning_rate, config.run.seed) == (number, whole)


# ---- layers


def test_each_layer_wins_over_the_one_before_and_leaves_its_origin(tmp_path: Path) -> None:
    file = written(tmp_path, "method: qlora\nadapter:\n  # rank\n  r: 32\n  lora_alpha: 64\ntraining: {}\ndata:\n")
    defaults = {"adapter.r": 8, "adapter.lora_alpha": 8, "model.quantize": "nf4"}
    config = resolve("qlora", defaults=defaults, file=file, command_line=pairs(["--lora_alpha", "16"]))
    assert (config.adapter.r, config.adapter.lora_alpha, config.model.quantize) == (32, 16, "nf4")
    assert config.adapter.lora_dropout == 0
    assert config.origins == {
        "method": "qlora.yaml line 1",
        "adapter.r": "qlora.yaml line 4",
        "adapter.lora_alpha": "--lora_alpha (command line)",
        "model.quantize": "method qlora",
    }


def test_null_in_a_higher_layer_takes_a_value_back(tmp_path: Path) -> None:
    config = resolve("m", defaults={"adapter.lora_alpha": 8}, file=written(tmp_path, "lora_alpha: null\n"))
    assert config.adapter.lora_alpha is None
    assert config.origins["adapter.lora_alpha"] == "qlora.yaml line 1"


def test_the_problems_of_all_layers_are_reported_together_even_where_a_higher_layer_wins(tmp_path: Path) -> None:
    file = written(tmp_path, "adapter:\n  rnak: 8\ntraining:\n  lr: fast\n  max_steps: many\n")
    command_line = pairs(["--data.fromat", "x", "--max_steps", "1"])
    with pytest.raises(ConfigError) as error:
        resolve("qlora", defaults={"adapter.nope_nope": 1}, file=file, command_line=command_line)
    assert str(error.value).splitlines() == [
        "5 problems in the configuration",
        (
            "  method qlora  adapter.nope_nope  unknown key; "
            "adapter has kind, r, lora_alpha, lora_dropout, target_modules, target_parameters, layers_to_transform, "
            "use_rslora, use_dora, fused, "
            "init_lora_weights, modules_to_save, trainable_token_indices, num_virtual_tokens, init_text, options"
        ),
        "  qlora.yaml line 2  adapter.rnak  unknown key; did you mean adapter.r?",
        "  qlora.yaml line 4  training.lr  unknown key; did you mean training.learning_rate?",
        '  qlora.yaml line 5  training.max_steps  "many" is not a whole number',
        "  --data.fromat (command line)  unknown key; did you mean data.format?",
    ]


def test_one_field_given_twice_in_a_layer_must_be_given_one_value() -> None:
    assert typed("--r", "8", "--adapter.r", "8", "--learning_rate", "1e-4", "--learning-rate", "0.0001").adapter.r == 8
    with pytest.raises(ConfigError) as error:
        typed("--r", "8", "--adapter.r", "16")
    assert told(error) == [
        "--adapter.r (command line)  adapter.r is already 8, from --r (command line); keep one of them"
    ]


def test_the_method_is_settled_by_the_caller(tmp_path: Path) -> None:
    config = resolve("dpo", defaults={}, file=written(tmp_path, "method: qlora\n"))
    assert (config.method, config.origins) == ("dpo", {"method": "asked for"})
    assert typed("--method", "lora").origins == {"method": "--method (command line)"}
    with pytest.raises(ConfigError) as error:
        typed("--method", "dpo")
    assert told(error) == ['--method (command line)  both "dpo" and lora were given; name one method']


def test_what_a_validator_says_of_several_fields_has_the_places_of_the_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    class Strict(Config):
        @model_validator(mode="after")
        def _never(self) -> Strict:
            raise ValueError("cannot be had together")

    monkeypatch.setattr(load, "Config", Strict)
    with pytest.raises(ConfigError) as error:
        typed("--r", "8")
    assert told(error) == ["configuration  cannot be had together"]


def test_what_a_section_says_of_several_fields_waits_until_all_are_there(monkeypatch: pytest.MonkeyPatch) -> None:
    class Strict(AdapterSection):
        @model_validator(mode="after")
        def _never(self) -> Strict:
            raise ValueError("r alone is not enough")

    monkeypatch.setitem(cast("dict[str, object]", SECTIONS), "adapter", Strict)
    assert typed("--r", "7").adapter.r == 7


def test_what_a_validator_says_of_one_field_is_reported_in_its_own_words(monkeypatch: pytest.MonkeyPatch) -> None:
    class Strict(AdapterSection):
        @field_validator("r")
        @classmethod
        def _even(cls, r: int) -> int:
            if r % 2:
                raise ValueError("a rank must be even")
            return r

    monkeypatch.setitem(cast("dict[str, object]", SECTIONS), "adapter", Strict)
    with pytest.raises(ConfigError) as error:
        typed("--r", "7")
    assert told(error) == ['--r (command line)  "7": a rank must be even']


# ---- files


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [1\nb: 2\n", "line 2: not YAML"),
        ("adapter:\n\tr: 8\n", "line 2: not YAML.*\n.*spaces, not with tabs"),
        ("a: 1\nb: \x07\n", "line 2: not YAML.*\n.*control characters"),
        ("a: !!python/object:os.system x\n", "line 1: not YAML.*\n.*remove the tag"),
        ("a: 1\n---\nb: 2\n", "line 2: not YAML"),
        ("- a\n- b\n", "line 1  is not a mapping of keys to values; write `section:`"),
        ("just text", "line 1  is not a mapping"),
        ("? [a]\n: 1\n", "line 1  a key must be text"),
        ("adapter:\n  r: 8\n  r: 9\n", "line 3  adapter.r is already given at qlora.yaml line 2; keep one"),
        ("run: {}\nrun: {}\n", "line 2  run is already given at qlora.yaml line 1"),
        ("a: &a [*a]\nb: " + "[" * 3000, "nested too deeply"),
    ],
)
def test_a_file_that_cannot_be_read_says_where_and_what_to_do(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as error:
        written(tmp_path, text)
    assert "qlora.yaml" in str(error.value)
    assert error.value.hint or all(problem.hint for problem in error.value.problems)


def test_a_file_that_is_not_there_or_is_not_text(tmp_path: Path) -> None:
    for path in (tmp_path / "none.yaml", tmp_path):
        with pytest.raises(ConfigError, match=rf"cannot read {re.escape(str(path))}: (No such|Is a dir)") as error:
            read_yaml(path)
        assert error.value.hint
    (tmp_path / "latin.yaml").write_bytes(b"a: 1\nb: \xe9\n")
    with pytest.raises(ConfigError, match=r"latin\.yaml line 2: not UTF-8"):
        read_yaml(tmp_path / "latin.yaml")


def test_an_empty_file_gives_nothing_and_a_byte_order_mark_is_not_a_key(tmp_path: Path) -> None:
    assert written(tmp_path, "") == written(tmp_path, "# nothing\n") == written(tmp_path, "data:\n") == []
    assert [value.key for value in written(tmp_path, "\ufeffmodel: X\r\n")] == ["model"]


@on_disk
@given(st.text(alphabet="ab:-[]{}&*!|>'\"#%@`,?=<~.0123 \n\tr", max_size=40).map(str.encode) | st.binary(max_size=20))
@example(b"a: &a\n  b: *a\n")
@example(b"adapter: &a\n  <<: *a\n  r: =\n")
@example(b"a: 2024-99-99\n")
def test_any_bytes_are_read_or_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "any.yaml"
    path.write_bytes(content)
    with suppress(ConfigError):
        assert isinstance(resolve("m", defaults={}, file=read_yaml(path)), Config)


@pytest.mark.parametrize("alias", ["v1", "V23", "latest", "Latest", "my alias", "a/b", "ä" * 256])
def test_an_alias_that_mlflow_would_refuse_is_refused_at_once(alias: str) -> None:
    with pytest.raises(ConfigError, match="alias"):
        resolve("qlora", defaults={}, command_line=pairs(["--registry.alias", alias]))
    with pytest.raises(MlflowException, match="alias"):
        _validate_model_alias_name(alias)
        _validate_model_alias_name_reserved(alias)


@pytest.mark.parametrize("name", ["org/name", "a:b", " "])
def test_a_name_that_mlflow_would_refuse_is_refused_at_once(name: str) -> None:
    with pytest.raises(ConfigError, match="a registered model has a name without / and :"):
        resolve("qlora", defaults={}, command_line=pairs([f"--registry.model_name={name}"]))


@pytest.mark.parametrize("steps", ["0", "-5"])
def test_a_training_without_steps_is_refused(steps: str) -> None:
    with pytest.raises(ConfigError, match="at least 1, or -1"):
        resolve("qlora", defaults={}, command_line=pairs([f"--max_steps={steps}"]))


def test_a_training_gives_no_version_the_alias_of_the_champion() -> None:
    with pytest.raises(ConfigError, match="training does not make a champion"):
        resolve("qlora", defaults={}, command_line=pairs(["--registry.alias", "Champion"]))
    assert resolve("qlora", defaults={}, command_line=pairs(["--alias", "staging"])).registry.alias == "staging"


@pytest.mark.parametrize(
    "given",
    [
        "fan_in_fan_out=true,rank_pattern={q_proj: 8, v_proj: 4}",
        "{fan_in_fan_out: true, rank_pattern: {q_proj: 8, v_proj: 4}}",
    ],
)
def test_an_option_may_be_a_mapping_itself(tmp_path: Path, given: str) -> None:
    wanted = {"fan_in_fan_out": "true", "rank_pattern": "{q_proj: 8, v_proj: 4}"}
    assert typed("--adapter.options", given).adapter.options == wanted
    lines = "adapter:\n  options:\n    fan_in_fan_out: true\n    rank_pattern:\n      q_proj: 8\n      v_proj: 4\n"
    config = resolve("lora", defaults={}, file=written(tmp_path, lines))
    assert config.adapter.options == wanted


def test_an_option_may_be_a_list() -> None:
    assert typed("--objective.options", "loss_weights=[0.5, 1],ld_alpha=1e-3").objective.options == {
        "loss_weights": "[0.5, 1]",
        "ld_alpha": "1e-3",
    }


def test_a_share_is_no_split() -> None:
    with pytest.raises(ConfigError, match=r"the share of rows to hold out is data\.test_size"):
        resolve("sft", defaults={}, command_line=pairs(["--data.split=0.1"]))
    for name in ("train", "2020", "1"):
        assert resolve("sft", defaults={}, command_line=pairs([f"--data.split={name}"])).data.split == name


@pytest.mark.parametrize(
    ("setting", "reason"),
    [
        ("--target_modules=(q_proj", "or a regular expression: missing )"),
        ("--target_modules=*", "or a regular expression: nothing to repeat"),
        ("--layers_to_transform=[-1]", "write numbers of 0 or more"),
        ("--trainable_token_indices=[]", "write numbers of 0 or more"),
    ],
)
def test_layers_and_tokens_that_cannot_be_are_refused(setting: str, reason: str) -> None:
    with pytest.raises(ConfigError) as error:
        typed(setting)
    assert reason in told(error)[0]
