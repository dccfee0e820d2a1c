"""Our settings in Axolotl's terms: each has an entry; what Axolotl cannot do is refused before anything is loaded."""

from __future__ import annotations

from pathlib import Path

import mlflow_ft_axolotl
import pytest
from mlflow_ft_axolotl.engine import mapping

from mlflow_ft import plugins
from mlflow_ft.cli.asked import asked
from mlflow_ft.engine.tools.by_tool import Work
from mlflow_ft.engine.tools.tool_settings import OURS, find


def config(*pairs, method="axolotl-lora"):
    return asked([method, *pairs], plugins.load({"MLFLOW_FT_PLUGINS": "axolotl"}))


def work(**values):
    settings = config().flat() | {
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
    plugin_contract(mlflow_ft_axolotl, without={"trainers": "they need an environment of their own: test_training.py"})


def test_every_setting_has_an_entry():
    assert [path for path in config().flat() if find(mapping.TABLE, path) is None] == []


def test_every_entry_is_about_a_setting_that_exists():
    paths = [*config().flat(), "plugins.x"]
    assert [entry.ours for entry in (*mapping.TABLE, *OURS) if not any(entry.covers(path) for path in paths)] == []


def test_the_defaults_of_both_methods_are_possible():
    for method in ("axolotl-lora", "axolotl-qlora"):
        assert mapping.refuses(config(method=method)) is None


@pytest.mark.parametrize(
    ("pairs", "reason"),
    [
        (("--adapter.kind", "ia3"), "adapter.kind ia3: only lora and dora are handed over"),
        (("--adapter.init_lora_weights", "pissa"), "adapter.init_lora_weights pissa: it moves a part of the base"),
        (("--model.add_tokens", "[<a>]"), "model.add_tokens ['<a>']: Axolotl reads the base model itself"),
        (("--training.log_checkpoints", "true"), "training.log_checkpoints true"),
        (("--training.early_stopping", "3"), "training.early_stopping 3"),
        (("--training.load_best", "true"), "training.load_best true"),
        (("--objective.options", "{micro_batch_size: 4}"), "objective.options micro_batch_size: it is filled from our"),
        (("--objective.options", "{sample_packing: true}"), "objective.options sample_packing"),
        (("--plugins.axolotl.python", "/nowhere/python"), "there is no interpreter /nowhere/python"),
    ],
)
def test_what_axolotl_cannot_do_is_refused_with_the_reason(pairs, reason):
    assert mapping.refuses(config(*pairs)).startswith(reason)


def test_what_axolotl_gets(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    settings = mapping.settings(
        work(**{"training.learning_rate": 3e-4, "adapter.r": 4}), {"lora_fan_in_fan_out": "false"}
    )
    assert settings["learning_rate"] == 3e-4
    assert (settings["max_steps"], settings["warmup_steps"], settings["micro_batch_size"]) == (100, 3, 8)
    assert settings["datasets"] == [{"path": "/work-of/rows", "ds_type": "parquet", "type": None, "split": "train"}]
    assert (settings["adapter"], settings["lora_model_dir"], settings["load_in_4bit"]) == (
        "lora",
        "/work-of/adapter",
        False,
    )
    assert (settings["lora_r"], settings["lora_alpha"]) == (4, 8)
    assert (settings["bf16"], settings["fp16"]) == (True, False)
    assert settings["lora_fan_in_fan_out"] is False
    assert {name for name in settings if name.endswith("_kernel")} == set(mapping.WITHOUT_GPU)
    assert "resume_from_checkpoint" not in settings
    assert set(settings) - set(mapping.WITHOUT_GPU) - {"lora_fan_in_fan_out"} <= mapping.TAKEN, (
        "a user could override it"
    )


def test_with_a_gpu_the_kernels_are_axolotls_own_choice(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    assert not [name for name in mapping.settings(work(), None) if name.endswith("_kernel")]


def test_a_quantised_base_is_quantised_as_ours(monkeypatch):
    settings = mapping.settings(work(**{"model.quantize": "nf4", "model.double_quant": False}), None)
    assert (settings["adapter"], settings["load_in_4bit"], settings["load_in_8bit"]) == ("qlora", True, False)
    assert settings["bnb_config_kwargs"] == {"bnb_4bit_use_double_quant": False}


def test_an_interrupted_training_continues_from_its_checkpoint():
    settings = mapping.settings(work(checkpoint=Path("/work-of/output/checkpoint-3")), None)
    assert settings["resume_from_checkpoint"] == "/work-of/output/checkpoint-3"
