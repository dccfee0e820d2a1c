"""A training goes on from what was trained before: an adapter or a whole model, in a folder or in MLflow."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from mlflow_ft import plugins
from mlflow_ft.cli.asked import asked
from mlflow_ft.engine.judging import parity
from mlflow_ft.engine.models import loading
from mlflow_ft.engine.tokens import tokenizers
from mlflow_ft.engine.training import trainable
from mlflow_ft.errors import ConfigError, FineTuneError, ModelError
from mlflow_ft.progress import Progress
from mlflow_ft.stages import init_from
from mlflow_ft.tracking import write_manifest
from tests.engine.conftest import Bench, lay

QUICK = {"learning_rate": 1e-2}
Run = Callable[..., Any]


def bench(folder: Path, method: str, *, model: Path, **settings: Any) -> Bench:
    """A bench whose base is found as a run finds it."""
    trained = lay(folder, method, model=model, **QUICK, **settings)
    base = init_from.find(trained.job.config, Progress(quiet=True))
    data = replace(trained.data, tokenizer=tokenizers.load(trained.job.config, base))
    return Bench(job=trained.job, data=data, base=base)


def find(method: str, **settings: Any) -> Any:
    pairs = [f"--{name}={value}" for name, value in settings.items()]
    return init_from.find(asked([method, *pairs], plugins.load({"MLFLOW_FT_PLUGINS": ""})), Progress(quiet=True))


@pytest.fixture
def adapter(tiny_model: Path, tmp_path: Path) -> Callable[..., Path]:
    """`adapter("dora")`: the folder that a short training left."""

    def make(kind: str, **settings: Any) -> Path:
        first = lay(tmp_path / f"{kind}-first", "lora", model=tiny_model, **{"adapter.kind": kind}, **QUICK, **settings)
        folder = first.train().adapter
        assert folder is not None
        return folder

    return make


GO_ON = ("lora", "dora", "ia3", "vera", "oft", "fourierft", "trainable-tokens", "prompt", "prefix", "adaption-prompt")


@pytest.mark.parametrize("kind", GO_ON)
def test_a_training_begins_where_the_adapter_was(
    adapter: Callable[..., Path], tiny_model: Path, tmp_path: Path, kind: str
) -> None:
    more = {"adapter.trainable_token_indices": "[2, 3]"} if kind == "trainable-tokens" else {}
    folder = adapter(kind, **more)
    second = bench(tmp_path / "second", "lora", model=tiny_model, **{"adapter.kind": kind, "init_from": folder}, **more)
    model = trainable.prepare(second.job, second.data, second.base)
    reference = folder.parent / "reference.safetensors"
    assert model.trainable > 0
    assert parity.compare(model.module.eval(), reference)["kl_max"] < 1e-9
    trained = second.train()
    saved = load_file(trained.folder / "adapter" / "adapter_model.safetensors")
    first = load_file(folder / "adapter_model.safetensors")
    assert {name: weight.shape for name, weight in saved.items()} == {name: w.shape for name, w in first.items()}
    assert any(not weight.equal(first[name]) for name, weight in saved.items())
    own = trained.folder / "reference.safetensors"
    assert parity.compare(loading.load_trained(second.job, second.data, trained), own)["kl_max"] < 1e-9


def test_new_tokens_are_still_there(adapter: Callable[..., Path], tiny_model: Path, tmp_path: Path) -> None:
    folder = adapter("lora", **{"model.add_tokens": "[<a>, <b>]"})
    again = {"adapter.kind": "lora", "init_from": folder}
    second = bench(tmp_path / "second", "lora", model=tiny_model, **again)
    assert {"<a>", "<b>"} < set(second.data.tokenizer.get_vocab())
    module = trainable.prepare(second.job, second.data, second.base).module.eval()
    assert parity.compare(module, folder.parent / "reference.safetensors")["kl_max"] < 1e-9
    bench(tmp_path / "third", "lora", model=tiny_model, **again, **{"model.add_tokens": "[<a>, <b>]"})
    with pytest.raises(ConfigError, match="'<c>' cannot be added to an adapter"):
        bench(tmp_path / "fourth", "lora", model=tiny_model, **again, **{"model.add_tokens": "[<c>]"})


def test_a_whole_model_is_the_base_and_its_folder_the_name(tiny_model: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_model, tmp_path / "mine")
    base = find("lora", init_from=tmp_path / "mine")
    assert (base.name, base.name_or_path, base.start) == ("mine", str(tmp_path / "mine"), None)
    assert base.revision.startswith("sha256:")


def test_an_adapter_that_peft_wrote_by_itself(tiny_model: Path, tmp_path: Path) -> None:
    base = AutoModelForCausalLM.from_pretrained(tiny_model)
    get_peft_model(base, LoraConfig(r=4, task_type="CAUSAL_LM")).save_pretrained(tmp_path / "theirs")
    base = find("lora", init_from=tmp_path / "theirs")
    assert (base.path, base.start) == (tiny_model, tmp_path / "theirs")
    assert base.tokenizer == tiny_model  # theirs has none


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("\ufeff{}", "cannot be read: .*BOM"),
        ("", "cannot be read"),
        ("[]", "it has no peft_type"),
        ('{"fine_tune_type": "lora", "lora_parameters": {"rank": 8, "scale": 20.0}}', "it has no peft_type"),
    ],
    ids=["mark", "empty", "list", "mlx"],
)
def test_a_config_that_is_not_pefts_is_named(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "adapter_config.json").write_text(text, encoding="utf-8")
    with pytest.raises(ModelError, match=words):
        init_from.read(str(tmp_path))


def nameless(folder: Path) -> None:
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"base_model_name_or_path": None}))


@pytest.mark.parametrize(
    ("kind", "settings", "words"),
    [
        ("prompt", {"adapter.kind": "lora"}, "--adapter.kind prompt"),
        ("dora", {"adapter.kind": "lora"}, "--adapter.kind dora"),
        ("lora", {"adapter.kind": "none"}, "trains all weights"),
        ("lora", {"adapter.kind": "lora", "adapter.r": 5}, "adapter.r is 5"),
        ("lora", {"adapter.kind": "lora", "adapter.use_rslora": "true"}, "use_rslora"),
        ("ptuning", {"adapter.kind": "ptuning"}, "not the network"),
        ("adalora", {"adapter.kind": "adalora"}, "ranks were fixed"),
    ],
)
def test_what_does_not_go_on_is_refused(
    adapter: Callable[..., Path], kind: str, settings: dict[str, Any], words: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        find("lora", init_from=adapter(kind), **settings)
    assert words in str(caught.value)
    assert caught.value.hint


def test_a_prefix_from_a_network_does_not_go_on(adapter: Callable[..., Path]) -> None:
    folder = adapter("prefix", **{"adapter.options": "prefix_projection=true,encoder_hidden_size=16"})
    with pytest.raises(ConfigError, match="not the network"):
        find("prefix", init_from=folder)


def test_nothing_there(adapter: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="neither a folder nor an MLflow URI"):
        find("lora", init_from=tmp_path / "gone")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match="neither an adapter nor a model"):
        find("lora", init_from=tmp_path / "empty")
    folder = adapter("lora")
    nameless(folder)
    with pytest.raises(ModelError, match="does not name its base model"):
        find("lora", init_from=folder)


@pytest.mark.slow
def test_registered_versions(fine_tune: Run, tiny_model: Path, tiny_rows: Path) -> None:
    """lora -> its adapter, its merged model -> a prompt on that -> that prompt, all by their names in the registry."""
    import mlflow

    common = {"data": tiny_rows, **QUICK}
    fine_tune("lora", model=tiny_model, **common, **{"registry.model_name": "first"})
    second = fine_tune("lora", **common, init_from="models:/first-adapter@candidate", **{"adapter.r": 16})
    assert [(version.name, version.version) for version in second.versions] == [
        ("tiny-lora", 1),
        ("tiny-lora-adapter", 1),
    ]
    tags = mlflow.get_run(second.run_id).data.tags
    assert tags["mlflow_ft.base_model"] == str(tiny_model)
    assert "models:/first-adapter/1" in tags["mlflow_ft.base_origin"]

    third = fine_tune("prompt", **common, init_from="models:/first@candidate")
    assert [version.name for version in third.versions] == ["first-prompt-adapter"]
    assert mlflow.get_run(third.run_id).data.tags["mlflow_ft.base_model"] == "models:/first/1"
    question = {"messages": [{"role": "user", "content": "red green blue"}], "max_tokens": 4}
    chat = mlflow.pyfunc.load_model("models:/first-prompt-adapter@candidate")
    assert chat.predict(question)["choices"][0]["message"]["role"] == "assistant"
    fourth = fine_tune("prompt", **common, init_from="models:/first-prompt-adapter@candidate")
    assert mlflow.get_run(fourth.run_id).data.tags["mlflow_ft.base_model"] == "models:/first/1"


@pytest.mark.slow
def test_another_base_than_the_adapters_own_is_refused(
    fine_tune: Run, tiny_model: Path, tiny_rows: Path, tmp_path: Path
) -> None:
    from mlflow_ft.testing import make_tiny_model

    outcome = fine_tune("lora", model=tiny_model, data=tiny_rows)
    other = make_tiny_model(tmp_path / "other", seed=5)
    packaged = Path(outcome.folder) / "package" / "adapter"
    with pytest.raises(FineTuneError, match="trained on other weights"):
        find("lora", model=other, init_from=packaged)
    (packaged / "adapter_model.safetensors").write_bytes(b"other")
    with pytest.raises(FineTuneError):
        find("lora", init_from=packaged)


def test_the_highest_adapter_is_meant_and_several_are_not_guessed(adapter: Callable[..., Path], tmp_path: Path) -> None:
    folder = adapter("lora")
    for name in ("checkpoint-9", "checkpoint-10"):
        shutil.copytree(folder, tmp_path / "out" / name)
    with pytest.raises(ModelError, match="2 adapters and none above them: checkpoint-9, checkpoint-10") as caught:
        init_from.read(str(tmp_path / "out"))
    assert caught.value.hint.endswith("/out/checkpoint-10")
    shutil.copytree(folder, tmp_path / "out", dirs_exist_ok=True)
    assert init_from.read(str(tmp_path / "out")).folder == tmp_path / "out"
    shutil.rmtree(tmp_path / "out" / "checkpoint-9")
    (tmp_path / "one").mkdir()
    (tmp_path / "out" / "checkpoint-10").rename(tmp_path / "one" / "checkpoint-10")
    assert init_from.read(str(tmp_path / "one")).folder == tmp_path / "one" / "checkpoint-10"


def test_a_whole_model_is_meant_whatever_lies_below_it(
    adapter: Callable[..., Path], tiny_model: Path, tmp_path: Path
) -> None:
    shutil.copytree(tiny_model, tmp_path / "whole")
    shutil.copytree(adapter("lora"), tmp_path / "whole" / "ref")
    start = init_from.read(str(tmp_path / "whole"))
    assert (start.folder, start.base) == (tmp_path / "whole", None)
    for name in ("a", "b"):
        shutil.copytree(tiny_model, tmp_path / "two" / name)
    with pytest.raises(ModelError, match="2 models and none above them: a, b"):
        init_from.read(str(tmp_path / "two"))


def test_a_base_that_the_adapter_names_and_is_not_here(adapter: Callable[..., Path]) -> None:
    folder = adapter("lora")
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"base_model_name_or_path": "/home/me/llama"}))
    with pytest.raises(ModelError, match=r"names '/home/me/llama' as its base model, which cannot be found") as caught:
        find("lora", init_from=folder)
    assert "--model" in caught.value.hint


def test_of_a_runs_folder_what_it_packaged_is_meant(adapter: Callable[..., Path], tmp_path: Path) -> None:
    for stage in ("train", "package"):
        shutil.copytree(
            adapter("lora") if stage == "train" else tmp_path / "train/adapter", tmp_path / stage / "adapter"
        )
    write_manifest(tmp_path / "package" / "adapter")
    (tmp_path / "lora-first").rename(tmp_path.parent / f"{tmp_path.name}-first")
    assert init_from.read(str(tmp_path)).folder == tmp_path / "package" / "adapter"
