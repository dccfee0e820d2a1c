"""LLaMA-Factory's configurations become ours."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mlflow_ft.errors import ConfigError
from tests.operations.importing.conftest import Import

SMALL = """
model_name_or_path: some/model
stage: sft
finetuning_type: lora
template: qwen
dataset: talks
dataset_dir: {folder}
"""


def data_folder(tmp_path: Path, **entries: object) -> Path:
    folder = tmp_path / "data"
    folder.mkdir(exist_ok=True)
    (folder / "dataset_info.json").write_text(json.dumps(entries))
    return folder


def test_its_defaults_are_written_where_ours_differ(imports: Import, tmp_path: Path) -> None:
    folder = data_folder(tmp_path, talks={"file_name": "talks.json"})
    result = imports(SMALL.format(folder=folder))
    expected = {
        "adapter.r": 8,
        "adapter.lora_alpha": 16,
        "adapter.lora_dropout": 0.0,
        "adapter.target_modules": "all-linear",
        "training.learning_rate": 5e-5,
        "training.lr_scheduler_type": "linear",
        "training.warmup_steps": 0.0,
        "training.num_train_epochs": 3.0,
        "training.per_device_train_batch_size": 8,
        "training.optim": "adamw_torch",
        "training.gradient_checkpointing": True,
        "data.max_length": 2048,
        "data.test_size": 1.0,
        "data.path": str(folder / "talks.json"),
        "data.format": "alpaca",
    }
    assert {path: result.flat[path] for path in expected} == expected
    assert "learning_rate: 5.0e-05  # LLaMA-Factory's default for learning_rate" in result.text
    assert result.config.method == "lora"
    assert result.status["template"] == "approximated"


def test_alpha_follows_the_rank_and_a_given_one_wins(imports: Import) -> None:
    assert imports("stage: sft\ntemplate: qwen\nlora_rank: 32\n").flat["adapter.lora_alpha"] == 64
    assert imports("stage: sft\ntemplate: qwen\nlora_rank: 32\nlora_alpha: 8\n").flat["adapter.lora_alpha"] == 8


@pytest.mark.parametrize(
    ("text", "method", "settings"),
    [
        ("finetuning_type: full", "full", {"adapter.kind": "none"}),
        ("quantization_bit: 4", "qlora", {"model.quantize": "nf4", "model.double_quant": True}),
        ("quantization_bit: 8", "lora", {"model.quantize": "int8"}),
        ("stage: rm", "reward", {"adapter.kind": "lora"}),
        ("stage: dpo\npref_loss: ipo\npref_beta: 0.3", "dpo", {"objective.loss_type": "ipo", "objective.beta": 0.3}),
        ("stage: dpo\npref_loss: orpo", "orpo", {"objective.beta": 0.1}),
        ("stage: dpo\npref_loss: simpo\nsimpo_gamma: 1.5", "simpo", {"objective.beta": 0.1}),
        ("stage: kto\nkto_rejected_weight: 2", "kto", {"objective.undesirable_weight": 2.0, "objective.beta": 0.1}),
        ("stage: pt", "sft", {"objective.packing": True}),
        ("finetuning_type: oft\noft_block_size: 16", "sft", {"adapter.options": {"oft_block_size": "16"}}),
        ("disable_shuffling: true", "lora", {"objective.options": {"train_sampling_strategy": "sequential"}}),
        ("mask_history: true", "lora", {"data.turns": "last"}),
        ("deepspeed: cfg/ds_z3_config.json", "lora", {"launch.strategy": "deepspeed-zero3"}),
        ("flash_attn: fa2", "lora", {"model.attn_implementation": "flash_attention_2"}),
        ("warmup_ratio: 0.1", "lora", {"training.warmup_steps": 0.1}),
        ("eval_strategy: epoch\nnum_train_epochs: 4", "lora", {"training.eval_steps": 0.25}),
        ("neftune_noise_alpha: 5", "lora", {"objective.options": {"neftune_noise_alpha": "5"}}),
    ],
)
def test_keys_that_belong_together(imports: Import, text: str, method: str, settings: dict[str, object]) -> None:
    result = imports(f"template: qwen\n{text}\n")
    assert result.config.method == method
    assert {path: result.flat[path] for path in settings} == settings
    assert {status for key, status in result.status.items() if key != "template"} <= {"mapped", "approximated"}


@pytest.mark.parametrize(
    "text",
    ["use_galore: true\ngalore_rank: 8", "train_on_prompt: true", "finetuning_type: freeze", "loraplus_lr_ratio: 16"],
)
def test_what_has_no_counterpart_is_refused(imports: Import, text: str) -> None:
    result = imports(f"template: qwen\n{text}\n")
    keys = [line.partition(":")[0] for line in text.splitlines()]
    assert {result.status[key] for key in keys} == {"refused"}
    assert f"# refused: {keys[0]}" in result.text
    off = imports("template: qwen\nuse_galore: false\ngalore_rank: 8\ntrain_on_prompt: false\n")
    assert {off.status[key] for key in ("use_galore", "galore_rank", "train_on_prompt")} == {"not needed"}


@pytest.mark.parametrize(
    ("value", "status", "note"),
    [
        ("true", "not needed", "empty ones, too"),
        ("false", "approximated", "thoughts are removed there, and empty ones are not learned there"),
        ("", "approximated", "empty ones are not learned there"),
    ],
)
def test_thoughts(imports: Import, value: str, status: str, note: str) -> None:
    result = imports(f"template: qwen3\nstage: sft\nenable_thinking: {value}\n")
    assert (result.status["enable_thinking"], note in result.note["enable_thinking"]) == (status, True)
    assert ("removed" in result.note["enable_thinking"]) == (value == "false")


def test_unknown_keys_have_a_hint(imports: Import) -> None:
    result = imports("template: qwen\nlora_rnak: 4\nlr: 3\nnever_heard_of: 1\n")
    assert {result.status[key] for key in ("lora_rnak", "lr", "never_heard_of")} == {"unknown"}
    assert result.note["lora_rnak"] == "did you mean lora_rank?"
    assert result.note["lr"] == "did you mean learning_rate?"


def test_entries_of_dataset_info(imports: Import, tmp_path: Path) -> None:
    folder = data_folder(
        tmp_path,
        pairs={
            "file_name": "pairs.json",
            "ranking": True,
            "columns": {"prompt": "ask", "chosen": "good", "rejected": "bad"},
        },
        chat={
            "hf_hub_url": "who/chat",
            "subset": "small",
            "split": "dev",
            "formatting": "sharegpt",
            "columns": {"messages": "turns"},
            "tags": {"role_tag": "by", "content_tag": "said", "user_tag": "user", "assistant_tag": "assistant"},
        },
        odd={"file_name": "odd.json", "formatting": "sharegpt", "tags": {"assistant_tag": "oracle"}},
        pictures={"file_name": "p.json", "columns": {"prompt": "instruction", "images": "images"}},
        elsewhere={"ms_hub_url": "who/elsewhere"},
    )
    head = f"template: qwen\ndataset_dir: {folder}\n"
    pairs = imports(f"{head}stage: dpo\ndataset: pairs\n")
    assert pairs.flat["data.format"] == "preference"
    assert pairs.flat["data.columns"] == {"chosen": "good", "rejected": "bad", "prompt": "ask"}
    chat = imports(f"{head}dataset: chat\n")
    assert (chat.flat["data.path"], chat.flat["data.subset"], chat.flat["data.split"]) == ("who/chat", "small", "dev")
    assert chat.flat["data.columns"] == {"conversations": "turns", "role": "by", "content": "said"}
    for name, word in (("odd", "oracle"), ("pictures", "images"), ("elsewhere", "ms_hub_url"), ("missing", "missing")):
        refused = imports(f"{head}dataset: {name}\n")
        assert refused.status["dataset"] == "refused"
        assert word in refused.note["dataset"]


def test_several_sets_and_a_mixture(imports: Import, tmp_path: Path) -> None:
    folder = data_folder(tmp_path, a={"file_name": "a.json"}, b={"file_name": "b.json"})
    head = f"template: qwen\ndataset_dir: {folder}\ndataset: a, b\n"
    paths = [str(folder / "a.json"), str(folder / "b.json")]
    assert imports(head).flat["data.path"] == paths
    mixed = imports(f"{head}mix_strategy: interleave_under\ninterleave_probs: 0.7,0.3\neval_dataset: b\n")
    assert mixed.flat["data.path"] == {paths[0]: 0.7, paths[1]: 0.3}
    assert mixed.flat["data.eval_path"] == paths[1]


def test_without_dataset_info_the_demo_is_not_trained_instead(imports: Import) -> None:
    result = imports("template: qwen\ndataset: talks\ndataset_dir: nowhere\n")
    assert result.status["dataset"] == "refused"
    assert result.flat["data.path"] == "talks"
    with pytest.raises(ConfigError, match="does not exist"):
        imports("template: qwen\ndataset: talks\n", dataset_info="nowhere.json")


def test_a_command_in_a_script(imports: Import) -> None:
    script = (
        "#!/bin/bash\nMODEL=some/model\nexport CUDA_VISIBLE_DEVICES=0\n"
        "llamafactory-cli train --model_name_or_path ${MODEL} --stage sft \\\n  --bf16 --lora_rank=4 2>&1 | tee log\n"
    )
    result = imports(script, name="train.sh")
    assert (result.flat["model.name"], result.flat["model.dtype"]) == ("some/model", "bfloat16")
    assert result.flat["adapter.r"] == 4
    assert set(result.status.values()) == {"mapped"}
