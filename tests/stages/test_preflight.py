"""Before a run: everything that can be checked is, all problems are reported at once, and nothing is left behind."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from mlflow_ft import plugins
from mlflow_ft.cli.asked import asked
from mlflow_ft.errors import ConfigError, FineTuneError
from mlflow_ft.plugins import Plugins
from mlflow_ft.progress import Progress
from mlflow_ft.registry import Registry
from mlflow_ft.stages import preflight
from mlflow_ft.stages.preflight.examination import Examination
from mlflow_ft.values.inspected import Inspected


@pytest.fixture
def place(tmp_path: Path, tiny_rows: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A new store in an empty folder."""
    folder = tmp_path / "work"
    folder.mkdir()
    for name in ("MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_ID", "MLFLOW_EXPERIMENT_NAME", "MLFLOW_REGISTRY_URI"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder}/mlflow.db")
    monkeypatch.chdir(folder)
    return folder


def examine(*arguments: object, loaded: Plugins | None = None) -> Examination:
    loaded = loaded or plugins.load({})
    config = asked([*map(str, arguments)], loaded)
    return preflight.examine(config, plugins=loaded, registry=Registry(loaded))


def outcome(*arguments: object, loaded: Plugins | None = None) -> dict[str, Inspected]:
    return {entry.check: entry for entry in examine(*arguments, loaded=loaded).inspected}


def test_all_is_well_and_nothing_is_left_behind(place: Path, tiny_model: Path, tiny_rows: Path) -> None:
    found = outcome("lora", "--model", tiny_model, "--data", tiny_rows)
    assert {entry.state for entry in found.values()} == {"ok"}
    assert list(found) == [
        *("settings", "tracking store", "artifact store", "registry", "base model", "embeddings", "architecture"),
        "weights",
        *("tokenizer", "data", "device", "dtype", "attention", "memory", "output folder", "disk", "plugins"),
    ]
    assert found["data"].detail == f"{tiny_rows} in the format messages"
    assert list(place.iterdir()) == []


def test_problems_of_every_kind_are_reported_in_one_error(
    place: Path, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(tiny_model, tmp_path / "cut")
    with (tmp_path / "cut" / "model.safetensors").open("r+b") as file:
        file.truncate(100_000)
    (place / "outputs").write_text("not a folder")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:////nowhere/mlflow.db")
    monkeypatch.setenv("MLFLOW_REGISTRY_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_FT_PLUGINS", "")
    (place / "my.yaml").write_text("data:\n  path: rowz.jsonl\nevaluation:\n  evaluators: [lozz]\n")
    arguments = ["--model", tmp_path / "cut", "--config", "my.yaml", "--adapter.kind", "lorra"]
    arguments += ["--model.dtype", "float16", "--model.attn_implementation", "sdpaa", "--model.quantize", "nf4"]
    examination = examine("lora", *arguments)
    refused = examination.refused
    assert isinstance(refused, ConfigError)
    assert refused.message == "9 problems; no run was opened"
    lines = str(refused).splitlines()[1:]
    assert len(lines) == 9
    for begin, message, hint in (
        ("--adapter.kind (command line)  ", "unknown adapter 'lorra'", "did you mean lora?"),
        ("my.yaml line 4  evaluation.evaluators  ", "unknown evaluator 'lozz'", "loss"),
        ("tracking store  ", "no folder /nowhere", "MLFLOW_TRACKING_URI"),
        ("registry  ", "no registry server answers at http://127.0.0.1:9", "MLFLOW_REGISTRY_URI"),
        ("--model (command line)  ", "model.safetensors  is cut short", "download the model again"),
        ("my.yaml line 2  data.path  ", "'rowz.jsonl' does not exist", "looked in"),
        ("--model.dtype (command line)  ", "a CPU cannot train in it", "float32"),
        ("--model.attn_implementation (command line)  ", "transformers has no 'sdpaa'", "eager"),
        ("run.output_dir (default)  ", "cannot write under the output folder", "choose another --run.output_dir"),
    ):
        (line,) = [line for line in lines if line.startswith(f"  {begin}")]
        assert message in line
        assert hint in line
    assert sorted(file.name for file in place.iterdir()) == ["my.yaml", "outputs"]


def test_one_problem_is_reported_as_it_is(place: Path, tiny_model: Path) -> None:
    examination = examine("lora", "--model", tiny_model, "--data", "rowz.jsonl")
    assert isinstance(examination.refused, FineTuneError)
    assert examination.refused.message == "the data file 'rowz.jsonl' does not exist"


def test_one_wrong_name_does_not_hide_other_problems(place: Path, tiny_model: Path, tiny_rows: Path) -> None:
    """The rows are judged, and the disk is looked at, unless the name that they need is wrong itself."""
    arguments = ("--model", tiny_model, "--data", tiny_rows, "--evaluators", "lozz")
    found = outcome("dpo", *arguments)
    assert found["evaluation.evaluators"].state == "problem"
    assert "dpo learns from preferences" in found["data"].detail
    assert "disk" in found
    assert not {"settings", "disk"} & set(outcome("dpo", *arguments, "--adapter.kind", "lorra"))
    assert "data" not in outcome("dpo", *arguments, "--data.format", "odd")


def test_mlflow_is_not_asked_twice_if_it_does_not_answer(
    place: Path, tiny_rows: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    examination = examine("lora", "--data", "runs:/abc/rows.jsonl", "--model", "models:/mine@champion")
    assert [entry.check for entry in examination.inspected if entry.state == "problem"] == ["tracking store"]


def changed(tiny_model: Path, folder: Path, **settings: Any) -> Path:
    """The tiny model with other settings in its config.json."""
    shutil.copytree(tiny_model, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | settings))
    return folder


def test_embeddings_of_another_size_than_the_configuration(
    place: Path, tiny_model: Path, tiny_rows: Path, tmp_path: Path
) -> None:
    model = changed(tiny_model, tmp_path / "odd", vocab_size=500)
    found = outcome("lora", "--model", model, "--data", tiny_rows)
    assert found["embeddings"].state == "problem"
    assert "embed_tokens.weight has 512 rows, but config.json says vocab_size 500" in found["embeddings"].detail


def test_tokens_without_an_embedding(place: Path, tiny_model: Path, tiny_rows: Path, tmp_path: Path) -> None:
    size = len(json.loads((tiny_model / "tokenizer.json").read_text())["model"]["vocab"])
    model = changed(tiny_model, tmp_path / "small", vocab_size=size - 1)
    weights = load_file(model / "model.safetensors")
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        weights[name] = weights[name][: size - 1].clone()
    save_file(weights, model / "model.safetensors", {"format": "pt"})
    found = outcome("lora", "--model", model, "--data", tiny_rows)
    assert found["embeddings"].detail == f"{size - 1} rows"
    assert found["tokenizer"].state == "warning"
    assert f"(id {size - 1})" in found["tokenizer"].detail
    assert "--model.add_tokens" in found["tokenizer"].remedy


def test_a_tokenizer_without_a_template_opens_no_run(
    place: Path, tiny_model: Path, tiny_rows: Path, tmp_path: Path
) -> None:
    shutil.copytree(tiny_model, tmp_path / "untemplated")
    (tmp_path / "untemplated" / "chat_template.jinja").unlink()
    found = outcome("lora", "--model", tmp_path / "untemplated", "--data", tiny_rows)
    assert "without a chat template" in found["tokenizer"].detail


def test_a_model_of_the_hub_that_is_here_in_part(
    place: Path, tiny_model: Path, tiny_rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the network, what is missing cannot be fetched."""
    cached = tmp_path / "hub" / "models--owner--name"
    (cached / "refs").mkdir(parents=True)
    (cached / "refs" / "main").write_text("0" * 40)
    folder = changed(tiny_model, cached / "snapshots" / ("0" * 40))
    names = {"model.norm.weight": "model-00002-of-00002.safetensors"}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    arguments = ("lora", "--model", "owner/name", "--data", tiny_rows)
    assert "model-00002-of-00002.safetensors  is missing" in outcome(*arguments)["base model"].detail
    monkeypatch.setattr("mlflow_ft.engine.hub.fetches", lambda _: True)
    assert outcome(*arguments)["base model"].state == "ok"


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU can do it")
def test_answers_are_sampled_by_what_can_run_here(place: Path, tiny_model: Path, tiny_rows: Path) -> None:
    given = ("grpo", "--model", tiny_model, "--data", tiny_rows, "--rollout.reward_funcs", "exact-answer")
    assert "rollout" not in outcome(*given)
    found = outcome(*given, "--rollout.engine", "vllm")["rollout"]
    assert found.state == "problem"
    assert "vllm needs a GPU" in found.detail


def test_preparing_data_needs_a_tokenizer_and_no_weights(
    place: Path, tiny_model: Path, tiny_rows: Path, tmp_path: Path
) -> None:
    model = changed(tiny_model, tmp_path / "tokenizer")
    (model / "model.safetensors").write_text("not weights")
    loaded = plugins.load({})
    config = asked(["--model", str(model), "--data", str(tiny_rows)], loaded, method="prepare")

    def found() -> dict[str, str]:
        examination = preflight.examine(config, plugins=loaded, registry=Registry(loaded))
        return {entry.check: entry.state for entry in examination.inspected}

    names = [
        "settings",
        "tracking store",
        "artifact store",
        "base model",
        "tokenizer",
        "data",
        "output folder",
        "plugins",
    ]
    assert found() == dict.fromkeys(names, "ok")
    (model / "chat_template.jinja").unlink()
    assert found()["tokenizer"] == "problem"


def test_weights_to_start_from_that_are_cut_short(
    place: Path, tiny_model: Path, tiny_rows: Path, tmp_path: Path
) -> None:
    shutil.copytree(tiny_model, tmp_path / "cut")
    with (tmp_path / "cut" / "model.safetensors").open("r+b") as file:
        file.truncate(100_000)
    found = outcome("lora", "--model.init_from", tmp_path / "cut", "--data", tiny_rows)
    assert "is cut short" in found["model.init_from"].detail


def test_too_little_disk_space(place: Path, tmp_path: Path, tiny_model: Path, tiny_rows: Path) -> None:
    """The index says how much will be fetched."""
    folder = changed(tiny_model, tmp_path / "huge")
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(
        f'{{"metadata": {{"total_size": {2**50}}}, "weight_map": {{}}}}'
    )
    examination = Examination(asked(["full", "--model", str(folder)], plugins.load({})))
    from mlflow_ft.stages.preflight import machine
    from mlflow_ft.values import BaseModel

    base = BaseModel(name="huge", path=folder, name_or_path="huge", revision="", origin="")
    machine.check_room(examination, Registry(plugins.load({})), base, None)
    (found,) = examination.inspected
    assert found.state == "problem"
    assert "GiB are free" in found.detail


def broken_plugins(name: str = "unwell", *, chosen: bool) -> Plugins:
    module = ModuleType(name)
    module.register_formats = lambda: ["not a format"]  # type: ignore[attr-defined]  # a module made here
    from mlflow_ft import hookimpl

    module.register_formats = hookimpl(module.register_formats)  # type: ignore[attr-defined]  # as above
    loaded = plugins.load({})
    assert loaded.add(module, name=name).status == "broken"
    loaded.chosen = (name,) if chosen else ()
    return loaded


def test_a_broken_plugin_is_a_warning_unless_it_is_needed(place: Path, tiny_model: Path, tiny_rows: Path) -> None:
    arguments = ("lora", "--model", tiny_model, "--data", tiny_rows)
    assert outcome(*arguments, loaded=broken_plugins(chosen=False))["plugins"].state == "warning"
    wanted = outcome(*arguments, loaded=broken_plugins(chosen=True))["plugins"]
    assert wanted.state == "problem"
    assert "MLFLOW_FT_PLUGINS" in wanted.remedy
    named = outcome(*arguments, "--adapter.kind", "mine", loaded=broken_plugins(chosen=False))["adapter.kind"]
    assert "or it belongs to the plugin unwell, which is broken: TypeError" in named.remedy


def test_a_run_says_its_warnings(
    place: Path, tiny_model: Path, tiny_rows: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mlflow_ft.engine.capabilities.GPU_FILES", ("/",))
    loaded = plugins.load({})
    config = asked(["lora", "--model", str(tiny_model), "--data", str(tiny_rows)], loaded)
    preflight.check(config, plugins=loaded, registry=Registry(loaded), progress=Progress())
    assert "warning: training will run on the CPU, although this machine has a GPU (/)" in capsys.readouterr().err


def test_data_commands_need_no_store(
    place: Path, tiny_model: Path, tiny_rows: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    loaded = plugins.load({})
    config = asked(["--model", str(tiny_model), "--data", str(tiny_rows)], loaded, method="prepare")
    preflight.check_inputs(config, plugins=loaded, registry=Registry(loaded))
