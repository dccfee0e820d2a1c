"""TRL's keys that belong together: method and adapter, loss, launcher; `trl_rows` has those of the data."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mlflow_ft.operations.importing import training_arguments, trl_rows
from mlflow_ft.operations.importing.converters import modules
from mlflow_ft.operations.importing.draft import Draft, names

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
PPO = (
    *("gamma", "lam", "vf_coef", "cliprange_value", "num_mini_batches"),
    *("whiten_rewards", "missing_eos_penalty", "kl_estimator"),
)
TOKEN_LOSSES = ("nll", "chunked_nll", "None")


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


def ppo(draft: Draft) -> None:
    """What only PPO reads; the plugin takes it under the same names."""
    if draft.has("kl_coef") and draft.method in ("ppo", "rloo"):
        draft.set("objective.beta", draft.number("kl_coef"), "kl_coef")
    for name in PPO:
        if draft.has(name) and draft.method == "ppo":
            draft.set(f"objective.options.{name}", draft.value(name), name)
    for name in ("kl_coef", *PPO):
        draft.skip(name, f"not used by {draft.method}")


RULES: tuple[Any, ...] = (
    *(method, precision, trl_rows.rows, loss, ppo, trl_rows.template, trl_rows.packing, machines),
    *(rule for rule in training_arguments.RULES if rule is not training_arguments.precision),
)
