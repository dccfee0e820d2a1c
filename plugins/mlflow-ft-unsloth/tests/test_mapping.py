"""Our settings in Unsloth's terms: each has an entry; what Unsloth cannot do is refused before anything is loaded."""

from __future__ import annotations

from pathlib import Path

import mlflow_ft_unsloth
import pytest
from mlflow_ft_unsloth.engine import mapping

from mlflow_ft import plugins
from mlflow_ft.cli.asked import asked
from mlflow_ft.engine.tools.by_tool import Work
from mlflow_ft.engine.tools.tool_settings import OURS, find


def config(*pairs, method="unsloth-lora"):
    return asked([method, *pairs], plugins.load({"MLFLOW_FT_PLUGINS": "unsloth"}))


def work(**values):
    settings = config("--data", "rows.jsonl").flat() | {
        "training.max_steps": 100,
        "training.eval_steps": 25,
        "training.warmup_steps": 3,
        "training.per_device_train_batch_size": 8,
        "training.gradient_checkpointing": True,
        "training.optim": "adamw_torch_fused",
        "model.dtype": "bfloat16",
    }
    names = ("folder", "base", "rows", "held_out", "adapter", "tokenizer", "output")
    paths = {name: Path("/work-of", name) for name in names}
    return Work(**paths, checkpoint=values.pop("checkpoint", None), values=settings | values)


def test_contract(plugin_contract):
    plugin_contract(mlflow_ft_unsloth, without={"trainers": "they need a GPU"})


def test_every_setting_has_an_entry():
    assert [path for path in config().flat() if find(mapping.TABLE, path) is None] == []


def test_every_entry_is_about_a_setting_that_exists():
    paths = [*config().flat(), "plugins.x"]
    assert [entry.ours for entry in (*mapping.TABLE, *OURS) if not any(entry.covers(path) for path in paths)] == []


@pytest.fixture
def gpu(monkeypatch):
    """The table is asked as on a machine with a GPU."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)


def test_without_a_gpu_both_methods_are_refused_with_the_remedy(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    for method in ("unsloth-lora", "unsloth-qlora"):
        reason = mapping.refuses(config(method=method))
        assert reason.startswith("Unsloth needs a GPU")
        assert "train with the method lora or qlora" in reason


def test_no_run_is_opened_without_a_gpu(tiny_model, tiny_rows, fine_tune, monkeypatch):
    from mlflow import MlflowClient

    from mlflow_ft import FineTuneError

    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(FineTuneError, match="Unsloth needs a GPU"):
        fine_tune("unsloth-lora", model=tiny_model, data=tiny_rows)
    assert not MlflowClient().search_runs(["0"])


def test_the_defaults_of_both_methods_are_possible(gpu):
    for method in ("unsloth-lora", "unsloth-qlora"):
        assert mapping.refuses(config(method=method)) is None


@pytest.mark.parametrize(
    ("pairs", "reason"),
    [
        (("--adapter.kind", "ia3"), "adapter.kind ia3: only lora and dora are handed over"),
        (("--adapter.init_lora_weights", "pissa"), "adapter.init_lora_weights pissa: it moves a part of the base"),
        (("--model.dtype", "float32"), "model.dtype float32: Unsloth computes in 16 bits"),
        (("--model.double_quant", "false"), "model.double_quant false: Unsloth always quantises"),
        (("--model.attn_implementation", "eager"), "model.attn_implementation eager: Unsloth has its own attention"),
        (("--objective.options", "{learning_rate: 1}"), "objective.options learning_rate: it is filled from our"),
        (("--plugins.unsloth.python", "/nowhere/python"), "there is no interpreter /nowhere/python"),
    ],
)
def test_what_unsloth_cannot_do_is_refused_with_the_reason(gpu, pairs, reason):
    assert mapping.refuses(config(*pairs)).startswith(reason)


def test_what_unsloth_gets():
    settings = mapping.settings(work(**{"training.learning_rate": 3e-4}), {"adam_beta2": "0.98"})
    load, train = settings["load"], settings["train"]
    assert (load["model_name"], load["max_seq_length"], load["dtype"]) == ("/work-of/adapter", 1024, "bfloat16")
    assert (load["load_in_4bit"], load["load_in_8bit"], load["load_in_16bit"]) == (False, False, True)
    assert load["use_gradient_checkpointing"] == "unsloth"
    assert (train["learning_rate"], train["max_steps"], train["warmup_steps"]) == (3e-4, 100, 3)
    assert (train["bf16"], train["fp16"], train["adam_beta2"]) == (True, False, 0.98)
    assert settings["rows"] == {"train": "/work-of/rows", "eval": "/work-of/held_out"}
    assert settings["checkpoint"] is None
    assert set(train) - {"adam_beta2"} <= mapping.TAKEN, "a user could override it"


def test_the_arguments_for_the_trainer_are_fields_of_trls_config():
    import dataclasses

    from trl import SFTConfig

    assert set(mapping.settings(work(), None)["train"]) <= {field.name for field in dataclasses.fields(SFTConfig)}


def test_a_base_in_4_bits():
    load = mapping.settings(work(**{"model.quantize": "nf4"}), None)["load"]
    assert (load["load_in_4bit"], load["load_in_8bit"], load["load_in_16bit"]) == (True, False, False)
