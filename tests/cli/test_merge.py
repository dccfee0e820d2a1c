"""mlflow-ft merge: from wherever the adapter is, to a folder that is whole or not there."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import mlflow
import pytest
import torch
from mlflow import MlflowClient
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from mlflow_ft.testing import make_tiny_model
from mlflow_ft.tracking import verify_manifest, write_manifest
from tests.cli.conftest import Run
from tests.rarely import some_always

pytestmark = pytest.mark.filterwarnings("ignore:.*:UserWarning", "ignore:.*:FutureWarning")
NF4 = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True}


@pytest.fixture(scope="session")
def adapter(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter made by plain PEFT."""
    return make_adapter(tiny_model, tmp_path_factory.mktemp("adapter"))


def make_adapter(base: Path, folder: Path, *, seed: int = 0, **settings: Any) -> Path:
    torch.manual_seed(seed)
    model: Any = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    usual = {"r": 4, "target_modules": "all-linear", "init_lora_weights": False, "task_type": "CAUSAL_LM"}
    get_peft_model(model, LoraConfig(**(usual | settings))).save_pretrained(folder)
    return folder


def recorded(adapter: Path, folder: Path, **facts: Any) -> Path:
    """A copy of an adapter with a record of its base, as our own have it."""
    shutil.copytree(adapter, folder)
    (folder / "base.json").write_text(json.dumps({"kind": "lora", "task": "generate", "dtype": "float32"} | facts))
    return folder


def test_a_folder_with_all_that_serving_needs(run: Run, adapter: Path, tiny_model: Path, tmp_path: Path) -> None:
    result = run("merge", "--adapter", adapter, "--out", tmp_path / "merged", "--json")
    assert result.code == 0, result.err
    record = json.loads(result.out)
    assert (record["way"], record["already"], record["into"]) == ("stream", False, "original")
    verify_manifest(tmp_path / "merged")
    tokenizer: Any = AutoTokenizer.from_pretrained(tmp_path / "merged")
    assert tokenizer.chat_template == AutoTokenizer.from_pretrained(tiny_model).chat_template
    settings = json.loads((tmp_path / "merged" / "generation_config.json").read_text())
    assert settings["eos_token_id"] == [tokenizer.convert_tokens_to_ids("<|im_end|>")]
    model: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert model.dtype == torch.float32
    assert {file.name for file in tmp_path.iterdir()} == {"merged"}, "only the merge is left"

    again = run("merge", "--adapter", adapter, "--out", tmp_path / "merged")
    assert again.code == 0
    assert "already done" in again.err
    other = run("merge", "--adapter", adapter, "--out", tmp_path / "merged", "--dtype", "bfloat16")
    assert other.code == 2
    assert "has other content" in other.err
    (tmp_path / "merged" / "config.json").write_text("{}")
    assert run("merge", "--adapter", adapter, "--out", tmp_path / "merged").code == 1


def test_every_end_token_of_adapter_base_and_tokenizer(
    run: Run, adapter: Path, tiny_model: Path, tmp_path: Path
) -> None:
    shutil.copytree(tiny_model, tmp_path / "base")
    (tmp_path / "base" / "generation_config.json").write_text('{"eos_token_id": [7], "do_sample": true, "top_k": 5}')
    own = shutil.copytree(adapter, tmp_path / "adapter")
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tiny_model / file, own / file)
    (own / "chat_template.jinja").write_text("{{ 'trained' }}")
    (own / "generation_config.json").write_text('{"eos_token_id": 9, "pad_token_id": 1}')
    result = run("merge", "--adapter", own, "--base", tmp_path / "base", "--out", tmp_path / "merged")
    assert result.code == 0, result.err
    settings = json.loads((tmp_path / "merged" / "generation_config.json").read_text())
    assert settings["eos_token_id"] == [9, 7, 3]
    assert (settings["pad_token_id"], settings["top_k"]) == (1, 5)
    assert (tmp_path / "merged" / "chat_template.jinja").read_text() == "{{ 'trained' }}"


def test_another_base_than_the_recorded_one_is_refused(run: Run, adapter: Path, tmp_path: Path) -> None:
    other = make_tiny_model(tmp_path / "other", seed=5)
    own = recorded(adapter, tmp_path / "own", name_or_path="its-base", revision="sha256:0123")
    result = run("merge", "--adapter", own, "--base", other, "--out", tmp_path / "merged")
    assert result.code == 2
    assert "was trained on other weights" in result.err
    assert "its-base" in result.err
    assert not (tmp_path / "merged").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "no output folder given"),
        (["--out", "x"], "no adapter was named"),
        (["--out", "x", "--adapter", "nowhere"], "neither a folder nor an MLflow URI"),
        (["--out", "x", "--adapter", "models:/nothing@champion"], "nothing"),
        (["--out", "x", "--adapter", "MODEL"], "whole model"),
        (["--out", "x", "--adapter", "ADAPTER", "--dtype", "int3"], "int3"),
        (["--out", "x", "--adapter", "ADAPTER", "--into", "place"], "place"),
        (["--out", "x", "--adapter", "ADAPTER", "--quantize", "fp4"], "fp4"),
        (["--out", "x", "--adapter", "ADAPTER", "--max_shard_size", "much"], "much"),
        (["--out", "x", "--adapter", "ADAPTER,ADAPTER"], "no weights"),
        (["--out", "x", "--adapter", "ADAPTER,ADAPTER", "--weights", "1"], "1 weights"),
        (["--out", "x", "--adapter", "ADAPTER,ADAPTER", "--weights", "a,b"], "'a'"),
        (["--out", "x", "--adapter", "ADAPTER,ADAPTER", "--weights=nan,1"], "the weight nan"),
        (["--out", "x", "--adapter", "ADAPTER,ADAPTER", "--weights", "1,1", "--combination", "linear"], "linear"),
        (["--out", "x", "--adapter", "ADAPTER", "--base", "nowhere/at-all"], "nowhere/at-all"),
    ],
)
def test_impossible_merges_are_reported(
    client: MlflowClient, run: Run, adapter: Path, tiny_model: Path, tmp_path: Path, arguments: list[str], words: str
) -> None:
    given = [argument.replace("ADAPTER", str(adapter)).replace("MODEL", str(tiny_model)) for argument in arguments]
    result = run("merge", *given)
    assert result.code == 2
    assert words in result.err
    assert "Traceback" not in result.err
    assert not list(tmp_path.glob("x*"))


def test_dequantised_or_original(run: Run, adapter: Path, tiny_model: Path, tmp_path: Path) -> None:
    own = recorded(adapter, tmp_path / "own", name_or_path=str(tiny_model), quantization=NF4)
    weights = {}
    for into in ("dequantised", "original"):
        result = run("merge", "--adapter", own, "--into", into, "--out", tmp_path / into, "--json")
        assert json.loads(result.out)["into"] == into
        weights[into] = load_file(tmp_path / into / "model.safetensors")
    plain = run("merge", "--adapter", adapter, "--out", tmp_path / "plain")
    assert plain.code == 0
    name = "model.layers.0.mlp.up_proj.weight"
    assert torch.equal(weights["original"][name], load_file(tmp_path / "plain" / "model.safetensors")[name])
    error = (weights["dequantised"][name] - weights["original"][name]).abs().max()
    assert 1e-4 < error < 0.1, "4 bits round, but not so far"
    assert torch.equal(weights["original"]["lm_head.weight"], weights["dequantised"]["lm_head.weight"])


def test_the_loss_of_each_is_reported(
    run: Run, adapter: Path, tiny_model: Path, tiny_rows: Path, tmp_path: Path
) -> None:
    own = recorded(adapter, tmp_path / "own", name_or_path=str(tiny_model), quantization=NF4)
    result = run("merge", "--adapter", own, "--data", tiny_rows, "--out", tmp_path / "merged", "--json")
    assert result.code == 0, result.err
    losses = json.loads(result.out)["loss"]
    assert set(losses) == {"trained", "dequantised", "original"}
    assert losses["dequantised"] == pytest.approx(losses["trained"], rel=1e-5)
    assert abs(losses["original"] - losses["trained"]) > 10 * abs(losses["dequantised"] - losses["trained"])
    assert not list(tmp_path.glob("*.other*"))
    assert not list(tmp_path.glob("*.partial*"))


def test_several_become_one(run: Run, adapter: Path, tiny_model: Path, tmp_path: Path) -> None:
    second = make_adapter(tiny_model, tmp_path / "second", seed=1, r=2, use_rslora=True, target_modules=["q_proj"])
    for name, more in (("both", [f"{adapter},{second}", "--weights", "0.5,-2"]), ("one", [adapter]), ("two", [second])):
        assert run("merge", "--adapter", *more, "--out", tmp_path / name).code == 0
    base, both, first, second_merged = (
        load_file(folder / "model.safetensors")
        for folder in (tiny_model, tmp_path / "both", tmp_path / "one", tmp_path / "two")
    )
    for name, weight in base.items():
        wanted = weight + 0.5 * (first[name] - weight) - 2 * (second_merged[name] - weight)
        torch.testing.assert_close(both[name], wanted, rtol=1e-5, atol=1e-5, msg=name)
    assert not torch.equal(
        second_merged["model.layers.0.self_attn.q_proj.weight"], base["model.layers.0.self_attn.q_proj.weight"]
    )


def test_adapters_of_two_bases_are_refused(run: Run, adapter: Path, tmp_path: Path) -> None:
    other = make_tiny_model(tmp_path / "other", seed=5)
    second = make_adapter(other, tmp_path / "second")
    result = run("merge", "--adapter", f"{adapter},{second}", "--weights", "1,1", "--out", tmp_path / "merged")
    assert result.code == 2
    assert "different bases" in result.err


def test_merging_with_peft_is_reported(run: Run, tiny_model: Path, tmp_path: Path) -> None:
    own = make_adapter(tiny_model, tmp_path / "own", init_lora_weights="olora")
    result = run("merge", "--adapter", own, "--out", tmp_path / "merged")
    assert result.code == 0, result.err
    assert "the whole model was loaded into memory: it began as olora" in result.err
    verify_manifest(tmp_path / "merged")


def test_a_merge_that_is_refused_leaves_nothing(run: Run, adapter: Path, tmp_path: Path) -> None:
    own = shutil.copytree(adapter, tmp_path / "own")
    weights = load_file(own / "adapter_model.safetensors")
    name = next(key for key in weights if "lora_B" in key)
    save_file(
        {key: weight.clone() for key, weight in weights.items()} | {name: torch.full_like(weights[name], torch.inf)},
        own / "adapter_model.safetensors",
    )
    result = run("merge", "--adapter", own, "--out", tmp_path / "merged")
    assert result.code == 2
    assert "NaN or infinite" in result.err
    assert {file.name for file in tmp_path.iterdir()} == {"own"}


def test_a_changed_logged_adapter_is_refused(run: Run, adapter: Path, tmp_path: Path) -> None:
    own = shutil.copytree(adapter, tmp_path / "own")
    write_manifest(own)
    (own / "adapter_model.safetensors").write_bytes(b"changed")
    assert run("merge", "--adapter", own, "--out", tmp_path / "merged").code == 1


KILLED = """
import os, signal, sys
from pathlib import Path
from mlflow_ft.engine.merging import companions, journal_files, tensor_files
from mlflow_ft import tracking
place, count = sys.argv.pop(1), [0]
def kill_in(owner, name, when):
    inner = getattr(owner, name)
    def outer(*args, **more):
        count[0] += 1
        if count[0] == when: os.kill(os.getpid(), signal.SIGKILL)
        return inner(*args, **more)
    setattr(owner, name, outer)
{"shard": lambda: kill_in(tensor_files.os, "fsync", 3),
 "journal": lambda: kill_in(journal_files.Journal, "add", 2),
 "companions": lambda: kill_in(companions, "copy", 1),
 "manifest": lambda: kill_in(tracking, "write_manifest", 1),
 "rename": lambda: kill_in(Path, "rename", 1)}[place]()
from mlflow_ft import cli
cli.main()
"""


def test_a_name_that_mlflow_would_refuse_is_refused_before_the_merge(run: Run, adapter: Path, tmp_path: Path) -> None:
    result = run("merge", "--adapter", adapter, "--out", tmp_path / "merged", "--register", "org/name")
    assert result.code == 2
    assert "--register org/name: a registered model has a name without / and :" in result.err
    assert not (tmp_path / "merged").exists()


@pytest.mark.slow
@pytest.mark.parametrize("by", some_always(["mlflow run", "a user"], "mlflow run"))
def test_a_stopped_merge_that_registers_is_a_killed_run_and_goes_on(
    client: MlflowClient, run: Run, adapter: Path, tmp_path: Path, by: str
) -> None:
    arguments = ["merge", "--adapter", str(adapter), "--out", str(tmp_path / "merged"), "--max_shard_size", "200KB"]
    environ = os.environ | {"OMP_NUM_THREADS": "1"}
    if by == "mlflow run":
        environ["MLFLOW_RUN_ID"] = client.create_run("0").info.run_id
    else:
        arguments += ["--register", "stopped"]
    program = KILLED.replace("SIGKILL", "SIGTERM")
    completed = subprocess.run([sys.executable, "-c", program, "companions", *arguments], env=environ, timeout=120)
    assert completed.returncode == 128 + signal.SIGTERM
    [stopped] = client.search_runs(["0"], max_results=1)
    assert (stopped.info.status, stopped.data.tags["mlflow_ft.stage"]) == ("KILLED", "merge")
    assert environ.get("MLFLOW_RUN_ID", stopped.info.run_id) == stopped.info.run_id
    result = run(*arguments, "--json")
    assert result.code == 0, result.err
    assert json.loads(result.out)["resumed"] == 4
    if by == "a user":
        assert client.get_run(json.loads(result.out)["run_id"]).info.status == "FINISHED"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("place", "kept"),
    some_always([("shard", 1), ("journal", 1), ("companions", 4), ("manifest", 4), ("rename", 4)], ("journal", 1)),
)
def test_a_killed_merge_leaves_no_model_and_resumes(
    run: Run, adapter: Path, tmp_path: Path, place: str, kept: int
) -> None:
    arguments = ["merge", "--adapter", str(adapter), "--out", str(tmp_path / "merged"), "--max_shard_size", "200KB"]
    command = [sys.executable, "-c", KILLED, place, *arguments]
    completed = subprocess.run(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, timeout=120)
    assert completed.returncode == -signal.SIGKILL, completed.stderr
    assert not (tmp_path / "merged").exists()
    result = run(*arguments, "--json")
    assert result.code == 0, result.err
    record = json.loads(result.out)
    assert (record["shards"], record["resumed"]) == (4, kept)
    assert {file.name for file in tmp_path.iterdir()} == {"merged"}
    verify_manifest(tmp_path / "merged")
    assert run("merge", "--adapter", adapter, "--out", tmp_path / "straight").code == 0
    straight = load_file(tmp_path / "straight" / "model.safetensors")
    pieces = [load_file(file) for file in sorted((tmp_path / "merged").glob("*.safetensors"))]
    assert {name for piece in pieces for name in piece} == set(straight)
    assert all(torch.equal(weight, straight[name]) for piece in pieces for name, weight in piece.items())


def test_two_at_once_do_not_write_one_folder(run: Run, adapter: Path, tmp_path: Path) -> None:
    from mlflow_ft.errors import RefusedError
    from mlflow_ft.operations import whole_folder

    with whole_folder.writing(tmp_path / "out", "key") as folder:
        (folder / "file").write_text("x")
        with pytest.raises(RefusedError, match="another process"), whole_folder.writing(tmp_path / "out", "key"):
            pass
    assert (tmp_path / "out" / "file").is_file()


@pytest.mark.slow
def test_from_a_run_a_version_and_a_logged_model(
    client: MlflowClient, run: Run, tiny_model: Path, tmp_path: Path
) -> None:
    """What the run itself packaged as merged, from its adapter wherever MLflow has it."""
    from mlflow_ft.testing import make_rows, write_jsonl

    rows = write_jsonl(tmp_path / "rows.jsonl", make_rows(24))
    settings = {
        "max_steps": 2,
        "learning_rate": 1e-2,
        "max_new_tokens": 4,
        "evaluation.max_rows": 2,
        "package.round_trip": "false",
    }
    settings |= {"model": tiny_model, "data": rows, "registry.model_name": "merging", "quantize": "nf4"}
    result = run("train", "lora", *(f"--{key}={value}" for key, value in settings.items()), "--json")
    assert result.code == 0, result.err
    run_id = json.loads(result.out)["run_id"]
    model_id = client.get_model_version("merging-adapter", "1").tags["mlflow_ft.model_id"]
    packaged = next((tmp_path / "outputs").glob("*/package/merged/model.safetensors"))
    for number, uri in enumerate((f"runs:/{run_id}", "models:/merging-adapter@candidate", f"models:/{model_id}")):
        result = run("merge", "--adapter", uri, "--out", tmp_path / str(number))
        assert result.code == 0, result.err
        actual = load_file(tmp_path / str(number) / "model.safetensors")
        wanted = load_file(packaged)
        assert set(actual) == set(wanted)
        assert all(torch.equal(actual[name], weight) for name, weight in wanted.items())
        settings_of = json.loads((tmp_path / str(number) / "generation_config.json").read_text())
        assert (
            settings_of["eos_token_id"]
            == json.loads((packaged.parent / "generation_config.json").read_text())["eos_token_id"]
        )

    result = run(
        *(
            "merge",
            "--adapter",
            "models:/merging-adapter/1",
            "--out",
            tmp_path / "3",
            "--register",
            "merging-2",
            "--json",
        )
    )
    assert result.code == 0, result.err
    kept = json.loads(result.out)
    version, adapter = client.get_model_version("merging-2", "1"), client.get_model_version("merging-adapter", "1")
    assert Path(kept["folder"]).is_dir()
    assert version.tags["mlflow_ft.adapter_version"] == "models:/merging-adapter/1"
    for name in ("run_id", "method", "base_model", "base_revision", "data_digest", "data_fingerprint"):
        assert version.tags[f"mlflow_ft.{name}"] == adapter.tags[f"mlflow_ft.{name}"]
    assert float(version.tags["mlflow_ft.parity.kl_mean"]) == pytest.approx(kept["parity"]["kl_mean"], rel=1e-4)
    assert kept["parity"]["kl_mean"] < 1e-6
    assert client.get_model_version_by_alias("merging-2", "candidate").version == version.version
    assert client.get_run(kept["run_id"]).info.status == "FINISHED"
    answer = mlflow.pyfunc.load_model("models:/merging-2/1").predict({"messages": [{"role": "user", "content": "red"}]})
    assert answer["object"] == "chat.completion"

    # a merge does not make a model a candidate that was refused for being worse than its base
    for number, (uri, mark) in enumerate(
        (
            ("models:/merging-adapter/1", partial(client.set_model_version_tag, "merging-adapter", "1")),
            (f"runs:/{run_id}", partial(client.set_tag, run_id)),
        )
    ):
        mark("mlflow_ft.refused", "worse than its base")
        result = run("merge", "--adapter", uri, "--out", tmp_path / f"5-{number}", "--register", "merging-4")
        assert result.code == 0, result.err
        assert "without an alias: the adapter is worse than its base" in result.err
    assert client.get_registered_model("merging-4").aliases == {}

    arguments = ("merge", "--adapter", f"runs:/{run_id}", "--into", "original", "--out", tmp_path / "4")
    result = run(*arguments, "--register", "merging-3", "--max_kl", "1e-9")
    assert result.code == 1
    assert "is not the model that was trained" in result.err
    assert "Look at the run's table parity/merged.json" in result.err
    [failed] = client.search_runs(["0"], max_results=1)
    assert (failed.info.status, failed.data.tags["mlflow_ft.stage"]) == ("FAILED", "register")
    assert [file.path for file in client.list_artifacts(failed.info.run_id, "parity")] == ["parity/merged.json"]
    assert failed.data.metrics["parity/merged/kl_mean"] > 1e-9
    assert not client.search_registered_models(filter_string="name = 'merging-3'")
