"""Axolotl's configurations become ours."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.operations.importing.conftest import Import

SMALL = """
base_model: some/model
adapter: qlora
load_in_4bit: true
lora_r: 8
lora_alpha: 16
lora_target_linear: true
learning_rate: 2e-4
micro_batch_size: 2
sample_packing: true
val_set_size: 0.05
datasets:
  - path: who/rows
    type: alpaca
    split: train[:200]
"""


def test_a_whole_configuration(imports: Import) -> None:
    result = imports(SMALL)
    expected = {
        "model.name": "some/model",
        "model.quantize": "nf4",
        "adapter.kind": "lora",
        "adapter.target_modules": "all-linear",
        "training.learning_rate": 2e-4,
        "training.per_device_train_batch_size": 2,
        "training.num_train_epochs": 1.0,
        "training.warmup_steps": 0.03,
        "training.optim": "adamw_torch_fused",
        "data.max_length": 512,
        "data.path": "who/rows",
        "data.format": "alpaca",
        "data.max_rows": 200,
        "data.test_size": 0.05,
        "objective.packing": True,
    }
    assert {path: result.flat[path] for path in expected} == expected
    assert result.config.method == "qlora"
    assert "### Response:" in result.flat["data.chat_template"]
    assert result.status["datasets[0].type"] == "approximated"


def test_entries_of_datasets(imports: Import) -> None:
    result = imports(
        "base_model: m\ndatasets:\n  - path: json\n    data_files: talks.jsonl\n    type: chat_template\n"
        "    field_messages: turns\n    message_property_mappings: {role: by, content: value}\n"
        "    roles: {assistant: [gpt], user: [wizard]}\n    roles_to_train: [gpt]\n    train_on_eos: turn\n"
        "    fild_messages: x\n    shards: 4\n"
    )
    assert (result.flat["data.path"], result.flat["data.format"]) == ("talks.jsonl", "messages")
    assert result.flat["data.columns"] == {"messages": "turns", "role": "by"}
    assert result.status["datasets[0].fild_messages"] == "unknown"
    assert result.note["datasets[0].fild_messages"] == "did you mean field_messages?"
    assert result.status["datasets[0].roles.user"] == "refused"
    assert result.status["datasets[0].roles.assistant"] == "mapped"
    assert result.status["datasets[0].shards"] == "refused"


def test_a_type_that_the_user_describes(imports: Import) -> None:
    result = imports(
        "base_model: m\ndatasets:\n  - path: a.jsonl\n    type:\n      field_instruction: q\n      field_output: a\n"
        '      format: "Q: {instruction}\\nA: "\n'
    )
    assert result.flat["data.columns"] == {"instruction": "q", "output": "a"}
    assert r"'Q: ' + message['content'] + '\nA: '" in result.flat["data.chat_template"]


@pytest.mark.parametrize(
    ("text", "settings"),
    [
        ("warmup_ratio: 0.1", {"training.warmup_steps": 0.1}),
        ("evals_per_epoch: 2\nnum_epochs: 3", {"training.eval_steps": 0.166667}),
        ("batch_size: 8\nmicro_batch_size: 2", {"training.gradient_accumulation_steps": 4}),
        ("flash_attention: true", {"model.attn_implementation": "flash_attention_2"}),
        ("flash_attention: true\nattn_implementation: owner/kernel", {"model.attn_implementation": "owner/kernel"}),
        ("fsdp_config: {activation_checkpointing: true}", {"training.gradient_checkpointing": True}),
        ("cosine_min_lr_ratio: 0.1", {"training.lr_scheduler_type": "cosine_with_min_lr"}),
        ("special_tokens: {pad_token: <pad>}", {"model.pad_token": "<pad>"}),
        ("rl: dpo\nrl_beta: 0.2", {"method": "dpo", "objective.beta": 0.2}),
        ("rl: orpo\norpo_alpha: 0.3", {"method": "orpo", "objective.beta": 0.3}),
        ("reward_model: true", {"method": "reward"}),
        ("rl: grpo\ntrl: {num_generations: 8, beta: 0.01}", {"rollout.num_generations": 8, "objective.beta": 0.01}),
        (
            "rl: grpo\ntrl: {use_vllm: true, vllm_mode: colocate}\nvllm: {gpu_memory_utilization: 0.4}",
            {
                "rollout.engine": "vllm",
                "objective.options": {"vllm_mode": "colocate", "vllm_gpu_memory_utilization": "0.4"},
            },
        ),
        ("wandb_project: p", {"run.also_report_to": ["wandb"]}),
        ("chat_template: llama3", {"method": "full"}),
    ],
)
def test_keys_that_belong_together(imports: Import, text: str, settings: dict[str, object]) -> None:
    result = imports(f"base_model: m\nlearning_rate: 1e-4\n{text}\n")
    assert {path: result.flat[path] for path in settings} == settings
    assert {status for key, status in result.status.items() if key != "flash_attention"} <= {"mapped", "approximated"}


def test_a_quantised_base_is_not_shared_out(imports: Import) -> None:
    result = imports("base_model: m\nadapter: qlora\nload_in_4bit: true\nfsdp_config: {offload_params: true}\n")
    assert result.flat["launch.strategy"] == "ddp"
    assert result.status["fsdp_config.offload_params"] == "refused"


def test_what_has_no_counterpart_is_refused(imports: Import) -> None:
    text = "base_model: m\nqat: {weight_dtype: int8}\nrelora: true\nrelora_prune_ratio: 0.9\nunfrozen_parameters: [a]\n"
    result = imports(f"{text}context_paralel_size: 8\nloraplus_lr_ratio: 2\n")
    refused = {key for key, status in result.status.items() if status == "refused"}
    assert refused == {"qat.weight_dtype", "relora", "relora_prune_ratio", "unfrozen_parameters", "loraplus_lr_ratio"}
    assert result.note["context_paralel_size"] == "did you mean context_parallel_size?"


@pytest.mark.parametrize(
    ("roles", "status"),
    [("[]", "refused"), ("[user]", "refused"), ("[gpt]", "mapped"), ("", "mapped")],
)
def test_who_is_learned(imports: Import, roles: str, status: str) -> None:
    """Nobody by default means that only turns which say so are learned; here the assistant's always are."""
    text = "base_model: m\ndatasets:\n- path: a.jsonl\n  type: chat_template\n  message_field_training: train\n"
    result = imports(f"{text}  roles_to_train: {roles}\n")
    assert result.status["datasets[0].roles_to_train"] == status
    assert result.status["datasets[0].message_field_training"] == "mapped"


@pytest.mark.parametrize(
    ("path", "split", "status", "settings"),
    [
        ("who/rows", "train[:10%]", "mapped", {"data.split": "train[:10%]"}),
        ("who/rows", "dev[:20]", "mapped", {"data.split": "dev", "data.max_rows": 20}),
        ("a.jsonl", "train[:20]", "mapped", {"data.split": "train", "data.max_rows": 20}),
        ("a.jsonl", "train[:10%]", "refused", {"data.split": "train"}),
        ("a.jsonl", "train[10:]", "refused", {"data.split": "train"}),
        ("a.jsonl", "test", "refused", {"data.split": "train"}),
        ("a.jsonl", "train", "mapped", {"data.split": "train"}),
        ("{folder}", "test", "mapped", {"data.split": "test"}),
        ("{folder}", "test[:10%]", "refused", {"data.split": "train"}),
    ],
)
def test_a_part_of_a_split(
    imports: Import, tmp_path: Path, path: str, split: str, status: str, settings: dict[str, object]
) -> None:
    result = imports(f"base_model: m\ndatasets:\n- path: {path.format(folder=tmp_path)}\n  split: '{split}'\n")
    assert result.status["datasets[0].split"] == status
    assert {setting: result.flat[setting] for setting in settings} == settings
    if status == "refused":
        assert "data.max_rows" in result.note["datasets[0].split"]


def test_the_split_of_a_held_out_file_is_all_of_it(imports: Import) -> None:
    held_out = "test_datasets:\n- path: b.jsonl\n  split: train\n"
    for split in ("", "  split: dev\n"):
        result = imports(f"base_model: m\ndatasets:\n- path: who/rows\n{split}{held_out}")
        assert result.status["test_datasets[0].split"] == "mapped"
        assert result.flat["data.eval_path"] == "b.jsonl"


CHAT = "- path: {0}.jsonl\n  type: chat_template\n"
OWN = CHAT + "  chat_template: {1}\n"


def test_a_template_of_a_data_set_is_that_of_all_where_they_agree(imports: Import) -> None:
    shared = imports(f"base_model: m\nchat_template: chatml\ndatasets:\n{CHAT.format('a')}")
    own = imports(f"base_model: m\ndatasets:\n{OWN.format('a', 'chatml')}{OWN.format('b', 'chatml')}")
    assert own.flat["data.chat_template"] == shared.flat["data.chat_template"]
    keys = ("datasets[0].chat_template", "datasets[1].chat_template")
    assert [own.status[key] for key in keys] == [shared.status["chat_template"]] * 2 == ["approximated"] * 2
    over = imports(f"base_model: m\nchat_template: llama3\ndatasets:\n{OWN.format('a', 'chatml')}")
    assert over.flat["data.chat_template"] == shared.flat["data.chat_template"]
    assert over.status["chat_template"] == "not needed"
    text = imports(f"base_model: m\ndatasets:\n{OWN.format('a', 'jinja')}  chat_template_jinja: a.jinja\n")
    assert text.flat["data.chat_template"] == "a.jinja"


@pytest.mark.parametrize(
    ("shared", "datasets", "written"),
    [
        ("", OWN.format("a", "chatml") + CHAT.format("b"), None),
        ("", OWN.format("a", "chatml") + "- path: b.jsonl\n  type: alpaca\n", "### Response:"),
        ("chat_template: alpaca\n", OWN.format("a", "chatml") + CHAT.format("b"), "### Response:"),
        ("", OWN.format("a", "chatml") + OWN.format("b", "llama3"), None),
        ("", CHAT.format("a") + "test_datasets:\n" + OWN.format("b", "chatml"), None),
    ],
)
def test_templates_that_differ_are_refused(imports: Import, shared: str, datasets: str, written: str | None) -> None:
    result = imports(f"base_model: m\n{shared}datasets:\n{datasets}")
    own = [key for key in result.status if key.endswith("].chat_template")]
    assert {result.status[key] for key in own} == {"refused"}
    template = result.flat["data.chat_template"]
    assert (template is None) == (written is None)
    assert written is None or written in template


def test_a_template_that_its_type_does_not_read_is_not_needed(imports: Import) -> None:
    result = imports("base_model: m\ndatasets:\n- path: a.jsonl\n  type: alpaca\n  chat_template: chatml\n")
    assert result.status["datasets[0].chat_template"] == "not needed"
    assert "### Response:" in result.flat["data.chat_template"]


def test_texts_that_were_streamed_are_read_whole(imports: Import) -> None:
    result = imports("base_model: m\npretraining_dataset:\n- {path: who/web, type: pretrain}\nmax_steps: 20\n")
    assert result.flat["data.path"] == "who/web"
    assert result.status["pretraining_dataset[0].path"] == "approximated"
    assert "data.max_rows" in result.note["pretraining_dataset[0].path"]
