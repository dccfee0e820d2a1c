"""TRL's keys that belong together: method and adapter, data, template, launcher."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mlflow_ft.operations.importing import training_arguments
from mlflow_ft.operations.importing.converters import modules
from mlflow_ft.operations.importing.draft import Draft, names, number
from mlflow_ft.operations.importing.sources import Source, put

METHODS = ("sft", "dpo", "kto", "orpo", "cpo", "simpo", "reward", "grpo", "rloo", "ppo")
ALIASES = {"reward_modeling": "reward", "rm": "reward", "full": "sft", "lora": "sft", "qlora": "sft"}
WORD = re.compile(r"[a-z]+(?:_modeling)?")
SIGNS = {
    "kto": ("desirable_weight", "undesirable_weight"),
    "ppo": ("reward_model_path", "num_ppo_epochs", "kl_coef", "response_length"),
    "grpo": (
        "num_generations",
        "reward_funcs",
        "epsilon_high",
        "scale_rewards",
        "max_completion_length",
        "num_iterations",
    ),
    "rloo": ("rloo_k", "normalize_advantages", "reward_clip_range"),
    "simpo": ("simpo_gamma",),
    "cpo": ("cpo_alpha",),
    "reward": ("center_rewards_coefficient",),
    "dpo": ("beta", "precompute_ref_log_probs", "ld_alpha", "f_divergence_type"),
}
"""Keys that only the configuration of one method has; asked in this order."""
TOKEN_LOSSES = ("nll", "chunked_nll", "None")
FORMATS = {
    "sft": "auto",
    "dpo": "preference",
    "orpo": "preference",
    "cpo": "preference",
    "simpo": "preference",
    "reward": "preference",
    "kto": "unpaired-preference",
}


def method(draft: Draft) -> None:
    """The method is the command's (`trl dpo`), or that of which the keys are; full or with an adapter."""
    draft.method = _named(draft)
    peft = draft.on("use_peft")
    four, eight = draft.on("load_in_4bit"), draft.on("load_in_8bit")
    draft.skip("lora_task_type", "follows from the method")
    draft.tell("task", "mapped", "method")
    if peft:
        draft.set("adapter.kind", "lora", "use_peft")
        target = draft.value("lora_target_modules")
        if target:
            draft.set("adapter.target_modules", modules(target), "lora_target_modules")
    else:
        draft.set("adapter.kind", "none", "use_peft")
        for name in ("lora_target_modules", "lora_r", "lora_alpha", "lora_dropout", "use_rslora", "use_dora"):
            draft.skip(name, "use_peft is off: every weight trains")
    if draft.method == "sft" and not peft:
        draft.method = "full"
    if (four or eight) and peft:
        draft.set("model.quantize", "nf4" if four else "int8", "load_in_4bit" if four else "load_in_8bit")
    elif four or eight:
        draft.refuse("load_in_4bit" if four else "load_in_8bit", "a quantised base cannot be trained without use_peft")
    if four and peft:
        draft.set("model.double_quant", draft.on("use_bnb_nested_quant"), "use_bnb_nested_quant")
        if draft.value("bnb_4bit_quant_type") != "nf4":
            draft.refuse("bnb_4bit_quant_type", "four bits are NF4 here")
        draft.tell("bnb_4bit_quant_type", "mapped", "model.quantize")
    for name in (
        "load_in_4bit",
        "load_in_8bit",
        "load_in_16bit",
        "bnb_4bit_quant_type",
        "use_bnb_nested_quant",
        "bnb_4bit_quant_storage",
    ):
        draft.skip(name, "off, or follows from the rest")
    _rewards(draft)


def _named(draft: Draft) -> str:
    words = [draft.extra.get("method", "")]
    words += WORD.findall(draft.extra.get("command", "").lower())[::-1]
    words += [str(draft.value("task") or "")]
    words += WORD.findall(draft.extra.get("file", "").lower())
    for word in words:
        name = ALIASES.get(word, word)
        if name in METHODS:
            return name
    by_key = next((name for name, signs in SIGNS.items() if any(draft.has(sign) for sign in signs)), "sft")
    return "simpo" if draft.value("loss_type") == "simpo" else by_key


def _rewards(draft: Draft) -> None:
    asked = names(draft.value("reward_funcs") or [])
    if asked:
        files = [name for name in asked if "." in name or ":" in name]
        draft.set("rollout.reward_funcs", asked, "reward_funcs")
        if len(files) < len(asked):
            note = "functions of a script are named FILE.py:function here"
            draft.tell("reward_funcs", "approximated", "rollout.reward_funcs", note=note)


def precision(draft: Draft) -> None:
    """TRL computes in bfloat16 unless it is told otherwise."""
    if not draft.has("bf16") and not draft.has("fp16") and not draft.has("dtype") and not draft.has("torch_dtype"):
        draft.set("model.dtype", "bfloat16", "bf16", about="on a CPU without bfloat16, float32 is faster")
    elif draft.has("dtype") or draft.has("torch_dtype"):
        for name in ("bf16", "fp16"):
            draft.skip(name, "dtype says it")
    training_arguments.precision(draft)


def rows(draft: Draft) -> None:
    """One data set, or a mixture."""
    sources = _sources(draft)
    expected = FORMATS.get(draft.method, "auto")
    for source in sources:
        if expected != "auto" and source.format == "auto":
            source.format = expected
    if draft.has("dataset_text_field") and draft.value("dataset_text_field") != "text":
        note = "only rows of plain text have it"
        for source in sources:
            source.columns["text"] = str(draft.value("dataset_text_field"))
        draft.tell("dataset_text_field", "approximated", "data.columns", note=note)
    draft.skip("dataset_text_field", "the usual name")
    if draft.has("dataset_prompt_column"):
        for source in sources:
            source.columns["prompt"] = str(draft.value("dataset_prompt_column"))
        draft.tell("dataset_prompt_column", "mapped", "data.columns")
    put(draft, sources, weighted=any(source.weight is not None for source in sources))
    _held_out(draft)


def _sources(draft: Draft) -> list[Source]:
    entries: dict[str, dict[str, Any]] = {}
    for key in draft.below("datasets"):
        entry, _, leaf = key.name.partition("].")
        entries.setdefault(entry, {})[leaf or "path"] = key
    listed = [_entry(draft, keys) for keys in entries.values()]
    listed += [
        Source(path=key.name.partition(".")[2], key=key.name, weight=_share(key.value))
        for key in draft.below("dataset_mixer")
    ]
    if draft.has("dataset_name"):
        split = draft.value("dataset_train_split")
        found = Source(path=str(draft.value("dataset_name")), key="dataset_name")
        if split != "train":
            found.shared["split"] = (str(split), "dataset_train_split")
        else:
            draft.tell("dataset_train_split", "mapped", "data.split")
        if draft.has("dataset_config"):
            found.shared["subset"] = (str(draft.value("dataset_config")), "dataset_config")
        listed.append(found)
    for name in ("dataset_train_split", "dataset_config"):
        draft.skip(name, "no data set is named beside it")
    return listed


def _entry(draft: Draft, keys: dict[str, Any]) -> Source:
    path = keys["path"] if "path" in keys else next(iter(keys.values()))
    found = Source(path=str(path.value), key=path.name)
    for leaf, key in keys.items():
        if leaf == "name" and key.value:
            found.shared["subset"] = (key.value, key.name)
        elif leaf == "split" and key.value:
            found.shared["split"] = (str(key.value), key.name)
        elif leaf == "weight" and key.value is not None:
            found.weight = _share(key.value)
            draft.tell(key.name, "mapped", "data.path")
        elif leaf == "data_files" and key.value:
            files = names(key.value)
            found.path, found.key = files[0], key.name
            draft.tell(path.name, "mapped", "data.path")
            if len(files) > 1:
                draft.refuse(key.name, f"name the further files in data.path: {', '.join(files[1:])}")
        elif leaf == "columns":
            draft.tell(key.name, "approximated", note="columns are chosen by the format; others are ignored")
        elif leaf == "data_dir" and key.value:
            draft.refuse(key.name, "name the files of the folder in data.path")
    return found


def _share(value: Any) -> float:
    share = number(value)
    return float(share) if isinstance(share, int | float) and share > 0 else 1.0


def _held_out(draft: Draft) -> None:
    size = draft.number("test_split_size")
    if size:
        draft.set("data.test_size", size, "test_split_size")
    else:
        about = "it holds out nothing of the training split; one row is the least here: give data.eval_path"
        draft.set("data.test_size", training_arguments.LEAST_HELD_OUT, "test_split_size", about=about)
    if draft.has("dataset_test_split"):
        is_read = str(draft.value("eval_strategy") or "no") != "no"
        note = "a split is not held out by name; write it to a file for data.eval_path"
        draft.tell("dataset_test_split", "refused" if is_read else "approximated", note=note)
    if draft.has("dataset_splits"):
        draft.tell("dataset_splits", "approximated", note="data.split names one split for all sources")
    for key in draft.below("dataset_configs"):
        draft.refuse(key.name, "data.subset names one configuration for all sources")


def loss(draft: Draft) -> None:
    """The loss of `trl sft`, and AlphaPO's alpha, which only `cpo` has."""
    if draft.has("alpha") and draft.method in ("cpo", "simpo"):
        draft.set("objective.options.alpha", draft.number("alpha"), "alpha")
    else:
        draft.tell("alpha", "unknown", note="did you mean lora_alpha?")
    if draft.method not in ("sft", "full"):
        return
    if str(draft.value("loss_type")) in TOKEN_LOSSES:
        draft.skip("loss_type", "the mean loss over the learned tokens, as here")
    else:
        draft.refuse("loss_type", "only the mean loss over the learned tokens is minimised")


def template(draft: Draft) -> None:
    """The chat template, and which tokens end a turn."""
    for name in ("chat_template", "chat_template_path"):
        if draft.has(name):
            draft.set("data.chat_template", str(draft.value(name)), name)
    if draft.has("pad_token"):
        draft.set("model.pad_token", str(draft.value("pad_token")), "pad_token")
    if draft.has("eos_token"):
        draft.tell("eos_token", "approximated", note="what ends a turn is what the chat template writes after it")
    for name in ("completion_only_loss", "assistant_only_loss"):
        if draft.has(name) and not draft.on(name):
            draft.refuse(name, "only what the assistant says is learned; prompts never are")
        else:
            draft.skip(name, "as here")
    if draft.method in ("sft", "full") and not draft.on("assistant_only_loss"):
        draft.notes.append("TRL learns the prompts of conversations too; here only the assistant's words are learned")


def packing(draft: Draft) -> None:
    """Packed rows do not see each other."""
    if draft.on("packing"):
        wrapped = str(draft.value("packing_strategy")) == "wrapped"
        about = "no row is cut, and rows do not see each other" if wrapped else ""
        draft.set("objective.packing", True, "packing", "packing_strategy", about=about)
    for name in ("packing", "packing_strategy", "eval_packing"):
        draft.skip(name, "off, or the same for the held-out loss")


def machines(draft: Draft) -> None:
    """The launcher's own configuration: a name of TRL's, or accelerate's file."""
    for name in ("accelerate_config", "launcher.config_file"):
        if draft.has(name):
            _accelerate(draft, name, str(draft.value(name)))
    if draft.on("launcher.use_fsdp"):
        draft.set("launch.strategy", "fsdp", "launcher.use_fsdp")
    if draft.on("launcher.use_deepspeed") or draft.has("launcher.zero_stage"):
        stage = max(2, int(draft.number("launcher.zero_stage", 2)))
        draft.set("launch.strategy", f"deepspeed-zero{stage}", "launcher.use_deepspeed", "launcher.zero_stage")
    per, nodes = draft.value("launcher.nproc_per_node"), draft.value("launcher.nnodes")
    if isinstance(per, int):
        count = per * (nodes if isinstance(nodes, int) else 1)
        draft.set("launch.num_processes", count, "launcher.nproc_per_node", "launcher.nnodes")
    draft.skip("launcher.multi_gpu", "one process for each GPU")
    draft.skip("launcher.nproc_per_node", "one process for each GPU")
    if "launch.strategy" in draft.settings or "launch.num_processes" in draft.settings or draft.has("num_processes"):
        draft.set("launch.launcher", "accelerate")


def _accelerate(draft: Draft, name: str, value: str) -> None:
    stem = Path(value).stem.lower()
    stage = next((stage for stage in (3, 2, 1) if f"zero{stage}" in stem or f"zero_{stage}" in stem), None)
    if stage:
        about = (
            "the shipped configuration of this stage"
            if stage > 1
            else "stage 1 has no counterpart; stage 2 shares more"
        )
        draft.set("launch.strategy", f"deepspeed-zero{max(2, stage)}", name, about=about)
    elif "fsdp" in stem:
        draft.set("launch.strategy", "fsdp", name, about="layers are wrapped and gathered by our FSDP2")
    elif stem in ("single_gpu", "multi_gpu", "ddp", "default_config"):
        draft.set("launch.strategy", "ddp", name)
    else:
        draft.refuse(name, "set launch.strategy and launch.num_processes as that file says")


RULES: tuple[Any, ...] = (
    *(method, precision, rows, loss, template, packing, machines),
    *(rule for rule in training_arguments.RULES if rule is not training_arguments.precision),
)
