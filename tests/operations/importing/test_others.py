"""The configurations of torchtune and TRL, and the arguments of Unsloth's script, become ours."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from mlflow_ft.operations.importing import table, tools
from mlflow_ft.operations.importing.draft import Key
from mlflow_ft.operations.importing.reading import Read
from mlflow_ft.operations.importing.translating import translate
from mlflow_ft.registry import Registry
from tests.operations.importing.conftest import Import

TUNE = """
output_dir: /tmp/out
model:
  _component_: torchtune.models.llama3_2.{builder}
  lora_attn_modules: [q_proj, output_proj]
  apply_lora_to_mlp: true
  lora_rank: 4
  lora_alpha: 8
tokenizer: {{_component_: torchtune.models.llama3.llama3_tokenizer, path: x, max_seq_len: 300}}
checkpointer:
  _component_: torchtune.training.FullModelHFCheckpointer
  checkpoint_dir: /models/small
  checkpoint_files: [a]
dataset:
  _component_: torchtune.datasets.instruct_dataset
  source: json
  data_files: q.jsonl
  column_map: {{input: ask}}
optimizer: {{_component_: torch.optim.AdamW, lr: 3e-4, fused: true}}
lr_scheduler: {{_component_: torchtune.training.lr_schedulers.get_cosine_schedule_with_warmup, num_warmup_steps: 10}}
loss: {{_component_: torchtune.modules.loss.CEWithChunkedOutputLoss}}
metric_logger: {{_component_: torchtune.training.metric_logging.DiskLogger, log_dir: "${{output_dir}}/logs"}}
epochs: 2
batch_size: 2
max_steps_per_epoch: 5
"""


def test_torchtune(imports: Import) -> None:
    result = imports(TUNE.format(builder="lora_llama3_2_1b"))
    expected = {
        "method": "lora",
        "model.name": "/models/small",
        "adapter.r": 4,
        "adapter.target_modules": ["q_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
        "data.path": "q.jsonl",
        "data.columns": {"instruction": "ask", "response": "output"},
        "data.max_length": 300,
        "training.learning_rate": 3e-4,
        "training.lr_scheduler_type": "cosine",
        "training.warmup_steps": 10.0,
        "training.weight_decay": 0.01,
        "training.max_steps": 10,
        "training.optim": "adamw_torch",
    }
    assert {path: result.flat[path] for path in expected} == expected
    assert set(result.status.values()) <= {"mapped", "approximated", "not needed"}
    logs = next(told for told in result.imported.told if told.key.name == "metric_logger.log_dir")
    assert logs.key.value == "/tmp/out/logs"


def test_torchtune_in_four_bits_and_by_preferences(imports: Import) -> None:
    assert imports(TUNE.format(builder="qlora_llama3_2_1b")).flat["model.quantize"] == "nf4"
    full = imports(TUNE.format(builder="llama3_2_1b"))
    assert (full.config.method, full.flat["adapter.kind"]) == ("full", "none")
    text = TUNE.format(builder="lora_llama3_2_1b").replace(
        "modules.loss.CEWithChunkedOutputLoss", "rlhf.loss.DPOLoss, beta: 0.2"
    )
    result = imports(text)
    assert (result.config.method, result.flat["objective.beta"]) == ("dpo", 0.2)


def test_torchtune_refuses_a_teacher(imports: Import) -> None:
    text = (
        TUNE.format(builder="lora_llama3_2_1b")
        + "kd_ratio: 0.5\nteacher_model: {_component_: torchtune.models.big}\nkd_ratoi: 1\n"
    )
    result = imports(text)
    assert {key for key, status in result.status.items() if status == "refused"} == {
        "kd_ratio",
        "teacher_model._component_",
    }
    assert result.note["kd_ratoi"] == "did you mean kd_ratio?"


def test_torchtune_on_one_machine_without_division(imports: Import) -> None:
    alone = "tensor_parallel_plan: {_component_: plan}\ntensor_parallel_dim: 1\ncontext_parallel_dim: 1\n"
    alone += "data_parallel_replicate_dim: 1\ndata_parallel_shard_dim: -1\n"
    result = imports(TUNE.format(builder="llama3_2_1b") + alone + "shuffle: true\n")
    assert {result.status[line.partition(":")[0]] for line in alone.splitlines()[1:]} == {"not needed"}
    assert (result.status["tensor_parallel_plan._component_"], result.status["shuffle"]) == ("not needed", "not needed")
    divided = imports(TUNE.format(builder="llama3_2_1b") + alone.replace("dim: 1", "dim: 2") + "shuffle: false\n")
    keys = ("tensor_parallel_plan._component_", "tensor_parallel_dim", "context_parallel_dim")
    assert {divided.status[key] for key in keys} == {"refused"}
    assert divided.flat["objective.options"] == {"train_sampling_strategy": "sequential"}


def test_torchtune_puts_words_around_alpaca(imports: Import) -> None:
    text = TUNE.format(builder="llama3_2_1b").replace("datasets.instruct_dataset", "datasets.alpaca_dataset")
    result = imports(text.replace("  column_map: {input: ask}\n", "  train_on_input: false\n"))
    assert result.status["dataset._component_"] == "approximated"
    assert "Alpaca's words" in result.note["dataset._component_"]


PPO = """
policy_model: {_component_: torchtune.models.mistral.mistral_7b}
checkpointer: {checkpoint_dir: /models/small}
dataset: {_component_: torchtune.datasets.text_completion_dataset, source: who/texts, column: query}
loss: {_component_: torchtune.rlhf.loss.PPOLoss, epsilon: 0.3, value_coeff: 0.2, value_clip_range: 0.4}
kl_coeff: 0.01
gamma: 0.9
lmbda: 0.8
whiten_rewards: true
"""


@pytest.mark.parametrize("tool", ["torchtune", "trl"])
def test_ppo(imports: Import, tool: str) -> None:
    pytest.importorskip("mlflow_ft_ppo")
    trl = "trl ppo --kl_coef 0.01 --gamma 0.9 --lam 0.8 --whiten_rewards true --vf_coef 0.2 --cliprange_value 0.4"
    trl += " --cliprange 0.3 --dataset_name who/texts"
    result = imports(PPO) if tool == "torchtune" else imports(f"{trl}\n", name="run.sh")
    options = {"gamma": "0.9", "lam": "0.8", "whiten_rewards": "true", "vf_coef": "0.2", "cliprange_value": "0.4"}
    assert (result.config.method, result.flat["objective.options"]) == ("ppo", options)
    assert (result.flat["objective.beta"], result.flat["rollout.epsilon"]) == (0.01, 0.3)
    assert set(result.status.values()) <= {"mapped"}
    if tool == "torchtune":
        assert (result.flat["data.format"], result.flat["data.columns"]) == ("prompt-only", {"prompt": "query"})


@pytest.mark.parametrize(
    ("command", "settings"),
    [
        ("trl sft", {"method": "full", "training.learning_rate": 2e-5, "adapter.kind": "none"}),
        (
            "trl sft --use_peft",
            {"method": "sft", "adapter.r": 16, "adapter.lora_alpha": 32, "adapter.lora_dropout": 0.05},
        ),
        (
            "python trl/scripts/dpo.py --beta 0.3",
            {"method": "dpo", "objective.beta": 0.3, "training.learning_rate": 1e-6},
        ),
        ("trl kto --use_peft --load_in_4bit", {"method": "kto", "model.quantize": "nf4"}),
        (
            "trl grpo --use_vllm true --vllm_mode server --vllm_importance_sampling_correction false",
            {
                "rollout.engine": "vllm",
                "objective.options": {"vllm_mode": "server", "vllm_importance_sampling_correction": "false"},
            },
        ),
        ("trl grpo --reward_funcs a.py:f b.py:g", {"method": "grpo", "rollout.reward_funcs": ["a.py:f", "b.py:g"]}),
        ("trl sft --no_gradient_checkpointing", {"training.gradient_checkpointing": False}),
        ("trl sft --accelerate_config zero2", {"launch.strategy": "deepspeed-zero2", "launch.launcher": "accelerate"}),
        ("accelerate launch --num_processes 4 trl/scripts/sft.py --bf16", {"launch.num_processes": 4}),
    ],
)
def test_trl(imports: Import, command: str, settings: dict[str, object]) -> None:
    result = imports(f"{command} --model_name_or_path some/model --dataset_name who/rows\n", name="run.sh")
    assert {path: result.flat[path] for path in settings} == settings
    assert (result.flat["model.name"], result.flat["data.path"]) == ("some/model", "who/rows")
    assert set(result.status.values()) <= {"mapped", "approximated"}


@pytest.mark.parametrize(
    ("split", "status"), [("train[:10%]", "refused"), ("train[:9]", "mapped"), ("train", "mapped")]
)
def test_a_part_of_a_local_file(imports: Import, split: str, status: str) -> None:
    trl = imports(f"model_name_or_path: m\ndataset_name: a.jsonl\ndataset_train_split: '{split}'\n", tool="trl")
    assert trl.status["dataset_train_split"] == status
    tune = imports(TUNE.format(builder="llama3_2_1b").replace("source: json", f"source: json\n  split: '{split}'"))
    assert tune.status["dataset.split"] == status
    for result in (trl, tune):
        assert result.flat["data.max_rows"] == (9 if split == "train[:9]" else None)
        assert result.flat["data.split"] == "train"


@pytest.mark.parametrize(
    ("loss", "status"),
    [("nll", "not needed"), ("chunked_nll", "not needed"), ("dft", "refused"), ("sigmoid", "refused")],
)
@pytest.mark.parametrize("more", ["", "--use_peft"])
def test_the_loss_of_trl_sft(imports: Import, loss: str, status: str, more: str) -> None:
    result = imports(f"trl sft --model_name_or_path m --dataset_name d --loss_type {loss} {more}\n", name="run.sh")
    assert result.status["loss_type"] == status
    assert result.flat["objective.loss_type"] is None


@pytest.mark.parametrize("method", ["sft", "dpo", "kto", "orpo", "cpo", "reward", "grpo", "rloo"])
def test_no_field_of_a_method_of_trl_is_unknown_or_said_to_be_unused(registry: Registry, method: str) -> None:
    trainer = registry.trainers[method]
    assert trainer.options is not None
    fields = {field.name for field in dataclasses.fields(trainer.options())}
    known = table.load("trl")
    keys = [Key(name=name, value=0.25, place="line 1") for name in sorted(fields)]
    read = Read(keys=keys, folder=Path("nowhere"), command=("trl", method))
    told = {told.key.name: told for told in translate(read, known, tools.rules_of("trl"), registry).told}
    assert [name for name, verdict in told.items() if verdict.status == "unknown"] == []
    unused = {name for name, verdict in told.items() if verdict.note.startswith("not used by the method")}
    assert unused <= {"max_completion_length"}  # cpo, orpo: what models with an encoder need


@pytest.mark.parametrize(
    ("strategy", "status", "note"),
    [
        ("bfd", "mapped", ""),
        ("bfd_split", "approximated", "cut at its end; TRL splits it"),
        ("bfd-requeue", "approximated", "cut at its end; TRL splits it"),
        ("wrapped", "approximated", "no row is cut"),
    ],
)
def test_how_trl_packs(imports: Import, strategy: str, status: str, note: str) -> None:
    command = f"trl sft --model_name_or_path m --dataset_name d --packing --packing_strategy {strategy}"
    result = imports(f"{command}\n", name="run.sh")
    assert result.flat["objective.packing"] is True
    assert (result.status["packing_strategy"], note in result.note["packing_strategy"]) == (status, True)


def test_a_template_of_trl_is_a_file_or_that_of_a_tokenizer(imports: Import, tmp_path: Path) -> None:
    def told(value: Any, key: str = "chat_template_path") -> tuple[str, str, Any]:
        result = imports(f"model_name_or_path: m\ndataset_name: d\n{key}: {json.dumps(str(value))}\n", tool="trl")
        return result.status[key], result.note[key], result.flat["data.chat_template"]

    for name in ("own", "inside", "none"):
        (tmp_path / name).mkdir()
    file = tmp_path / "own" / "chat_template.jinja"
    file.write_text("{{ messages }}")
    (tmp_path / "inside" / "tokenizer_config.json").write_text('{"chat_template": "{{ messages[0] }}"}')
    (tmp_path / "none" / "tokenizer_config.json").write_text("{}")
    assert told(file) == told("own/chat_template.jinja") == ("mapped", "", str(file))
    assert told("my.jinja") == ("mapped", "", "my.jinja")
    assert told("{{ messages }}", "chat_template") == ("mapped", "", "{{ messages }}")
    tokens = "tokens that only that tokenizer has are named in model.add_tokens"
    assert told(tmp_path / "own") == told("own") == ("approximated", tokens, str(file))
    assert told("inside") == ("approximated", tokens, "{{ messages[0] }}")
    for value, why in (("none", "has no chat template"), ("HuggingFaceTB/SmolLM3-3B", "save its chat_template.jinja")):
        status, note, template = told(value)
        assert (status, why in note, template) == ("refused", True, None)


def test_a_file_of_trl_has_its_method_from_the_import_or_its_keys(imports: Import) -> None:
    text = "model_name_or_path: m\ndataset_name: d\nlearning_rate: 1e-5\n"
    assert imports(text, tool="trl").config.method == "full"
    assert imports(text, tool="trl", method="dpo").config.method == "dpo"
    assert imports(f"{text}num_generations: 4\n", tool="trl").config.method == "grpo"
    mixed = imports("model_name_or_path: m\ndatasets:\n- path: a\n  split: dev\n- path: b\n", tool="trl")
    assert mixed.flat["data.path"] == ["a", "b"]
    assert any("prompts" in note for note in mixed.imported.notes)


def test_unsloth(imports: Import) -> None:
    command = "python unsloth-cli.py --model_name some/model --load_in_4bit --r 64 --use_rslora --max_steps 40"
    result = imports(
        f"{command} --save_model --save_gguf --quantization q4_k_m f16 --loftq_config x --rank 3\n", name="run.sh"
    )
    expected = {
        "method": "qlora",
        "adapter.r": 64,
        "adapter.lora_alpha": 16,
        "adapter.use_rslora": True,
        "training.max_steps": 40,
        "training.optim": "adamw_8bit",
        "training.warmup_steps": 5.0,
        "run.seed": 3407,
        "package.exports": ["gguf-q4_k_m", "gguf-f16"],
        "data.path": "yahma/alpaca-cleaned",
    }
    assert {path: result.flat[path] for path in expected} == expected
    assert result.status["loftq_config"] == "refused"
    assert (result.status["rank"], result.note["rank"]) == ("unknown", "did you mean r?")
