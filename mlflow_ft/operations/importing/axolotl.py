"""Axolotl's keys that belong together: method and adapter, tokens, when to evaluate and save."""

from __future__ import annotations

import math
from typing import Any

from mlflow_ft.operations.importing import axolotl_rows, training_arguments
from mlflow_ft.operations.importing.converters import attention as attention_of
from mlflow_ft.operations.importing.converters import modules, text_of
from mlflow_ft.operations.importing.draft import Draft, names, number, truth

METHODS = {"dpo": "dpo", "ipo": "dpo", "kto": "kto", "orpo": "orpo", "simpo": "simpo", "grpo": "grpo", "gdpo": "grpo"}
ADAPTERS = {"lora": "lora", "qlora": "lora", "dora": "lora", "loha": "loha", "lokr": "lokr", "oft": "oft", "ia3": "ia3"}
FLAGS = {
    "flash_attention": "flash_attention_2",
    "sdp_attention": "sdpa",
    "flex_attention": "flex_attention",
    "eager_attention": "eager",
}
OWN_ATTENTION = ("xformers", "sage", "fp8", "flash_attention_torch")
DTYPES = (
    ("bf16", "bfloat16"),
    ("bfloat16", "bfloat16"),
    ("fp16", "float16"),
    ("float16", "float16"),
    ("float32", "float32"),
)


def method(draft: Draft) -> None:
    """`rl`, `reward_model` and `adapter` are method, adapter and quantisation here."""
    asked, kind = draft.value("rl"), draft.value("adapter")
    draft.skip("strict", "unknown keys are always told")
    adapter = ADAPTERS.get(str(kind).lower(), str(kind)) if kind else "none"
    if asked and str(asked) in METHODS:
        draft.method = METHODS[str(asked)]
        draft.tell("rl", "approximated" if asked == "gdpo" else "mapped", "method")
        if asked == "ipo":
            draft.set("objective.loss_type", "ipo", "rl")
    elif asked:
        draft.refuse("rl", f"there is no method {asked} here")
    elif draft.on("reward_model"):
        draft.method = "reward"
        draft.tell("reward_model", "mapped", "method")
    else:
        draft.method = {"none": "full", "lora": "qlora" if draft.on("load_in_4bit") or kind == "qlora" else "lora"}.get(
            adapter, "sft"
        )
        draft.skip("reward_model", "off")
    draft.set("adapter.kind", adapter, "adapter")
    _quantised(draft, adapter)
    _beta(draft)


def _quantised(draft: Draft, adapter: str) -> None:
    bits = "load_in_4bit" if draft.on("load_in_4bit") else "load_in_8bit"
    if draft.on(bits) and adapter == "none":
        draft.refuse(bits, "a quantised base cannot be trained without an adapter")
    elif draft.on(bits):
        draft.set("model.quantize", "nf4" if bits == "load_in_4bit" else "int8", bits)
    elif draft.value("adapter") == "qlora":
        draft.set("model.quantize", "nf4", "adapter")
    for name in ("load_in_4bit", "load_in_8bit"):
        draft.skip(name, "off")
    if draft.on("gptq"):
        draft.refuse("gptq", "a base in GPTQ is not read; name the model in full precision, with model.quantize nf4")
    _bits(draft)


def _bits(draft: Draft) -> None:
    for key in draft.below("bnb_config_kwargs"):
        if key.name.endswith("bnb_4bit_use_double_quant"):
            draft.set("model.double_quant", truth(key.value), key.name)
        elif key.name.endswith("bnb_4bit_quant_type") and key.value == "nf4":
            draft.tell(key.name, "mapped", "model.quantize")
        else:
            draft.refuse(key.name, "not a setting here; model.quantize and model.double_quant are")


def _beta(draft: Draft) -> None:
    for name, methods in (
        ("orpo_alpha", ("orpo",)),
        ("rl_beta", ("dpo", "kto", "orpo", "simpo", "grpo")),
        ("dpo_beta", ("dpo",)),
        ("trl.beta", ("grpo", "dpo", "kto")),
    ):
        if draft.has(name) and draft.method in methods:
            draft.set("objective.beta", draft.number(name), name)
        elif draft.has(name):
            draft.skip(name, f"not used by {draft.method}")
    if draft.method == "simpo" and not draft.has("cpo_alpha"):
        draft.set("objective.options.cpo_alpha", 0.0)


def target(draft: Draft) -> None:
    """Which modules get an adapter, and of which rank."""
    linear, listed = draft.on("lora_target_linear"), draft.value("lora_target_modules")
    if linear:
        draft.set("adapter.target_modules", "all-linear", "lora_target_linear")
        draft.tell("lora_target_modules", "approximated", "adapter.target_modules", note="all linear layers include it")
    elif listed:
        draft.set("adapter.target_modules", modules(listed), "lora_target_modules")
        draft.skip("lora_target_linear", "off")
    else:
        draft.skip("lora_target_linear", "off")
    for name in ("lora_rank_pattern", "lora_alpha_pattern"):
        inside = draft.below(name)
        if inside:
            pattern = {key.name.removeprefix(f"{name}."): key.value for key in inside}
            draft.set(f"adapter.options.{name.removeprefix('lora_')}", text_of(pattern), *(key.name for key in inside))
    if draft.has("loraplus_lr_ratio"):
        draft.refuse("loraplus_lr_ratio", "LoRA+ (a rate of its own for B) is not available")
    for key in [*draft.below("peft"), *draft.below("loftq_config")]:
        draft.refuse(key.name, "set adapter.init_lora_weights loftq and its adapter.options by hand")
    draft.skip("peft", "empty")


def precision(draft: Draft) -> None:
    """The type to compute in."""
    for name, dtype in DTYPES:
        value = draft.value(name)
        if name in draft.given and value == "auto":
            draft.set("model.dtype", "auto", name)
        elif name in draft.given and truth(value) and "model.dtype" not in draft.settings:
            draft.set("model.dtype", dtype, name)
        else:
            draft.skip(name, "off")
    if draft.has("torch_dtype"):
        draft.set("model.dtype", str(draft.value("torch_dtype")).removeprefix("torch."), "torch_dtype")


def attention(draft: Draft) -> None:
    """The implementation of attention, under its new and its old names."""
    name = draft.value("attn_implementation")
    if name in OWN_ATTENTION:
        draft.refuse("attn_implementation", f"{name} is Axolotl's own; sdpa and flash_attention_2 are available")
    elif name:
        draft.set("model.attn_implementation", attention_of(name), "attn_implementation")
    for flag in (
        "flash_attention",
        "sdp_attention",
        "flex_attention",
        "eager_attention",
        "xformers_attention",
        "sage_attention",
    ):
        if not draft.on(flag) or name:
            draft.skip(flag, "attn_implementation names it" if name else "off")
        elif flag in FLAGS:
            draft.set("model.attn_implementation", FLAGS[flag], flag)
        else:
            draft.refuse(flag, f"{flag.removesuffix('_attention')} is not available; sdpa and flash_attention_2 are")


def warmup(draft: Draft) -> None:
    """Its default is 3 % of the steps, as ours is."""
    if draft.has("warmup_steps"):
        draft.set("training.warmup_steps", draft.number("warmup_steps"), "warmup_steps")
        draft.skip("warmup_ratio", "warmup_steps wins")
    elif draft.has("warmup_ratio"):
        draft.set("training.warmup_steps", draft.number("warmup_ratio"), "warmup_ratio")
    else:
        draft.set("training.warmup_steps", 0.03, "warmup_ratio", about="at most 100 steps there")


def when(draft: Draft) -> None:
    """Evaluations and checkpoints: by steps, or so many per epoch."""
    epochs = draft.number("num_epochs", 1)
    for per, steps, strategy, path in (
        ("evals_per_epoch", "eval_steps", "eval_strategy", "training.eval_steps"),
        ("saves_per_epoch", "save_steps", "save_strategy", "training.save_steps"),
    ):
        times = draft.number(per, 0)
        if draft.has(steps) and draft.number(steps):
            draft.set(path, draft.number(steps), steps)
        elif times and times * epochs > 1:
            draft.set(path, round(1 / (times * epochs), 6), per, about="as a share of all steps")
        elif times:
            draft.skip(per, "once in all: at the end, which is done in any case")
        for name in (strategy, "evaluation_strategy") if path.endswith("eval_steps") else (strategy,):
            _strategy(draft, name, path)
        draft.skip(per, "none; the held-out loss is always measured, and a signal always writes a checkpoint")
        draft.skip(steps, "none")


def _strategy(draft: Draft, name: str, path: str) -> None:
    value = str(draft.value(name) or "").lower()
    if value == "epoch":
        training_arguments.by_epoch(draft, path, name)
    elif value in ("no", "false", "best"):
        note = "the held-out loss is always measured, and checkpoints always written"
        draft.tell(name, "approximated", path, note=note)
    else:
        draft.skip(name, "follows from the steps")


def ending(draft: Draft) -> None:
    """Axolotl keeps the best checkpoint unless told otherwise, if each checkpoint comes with an evaluation."""
    epochs = draft.number("num_epochs", 1)
    every = []
    for steps, per in (("save_steps", "saves_per_epoch"), ("eval_steps", "evals_per_epoch")):
        times = draft.number(per, 0) * epochs
        every.append(draft.number(steps) or (1 / times if times else 0))
    measured = (draft.number("val_set_size") or draft.on("test_datasets")) and not draft.on("rl")
    aligned = all(every) and math.isclose(every[0] / every[1], round(every[0] / every[1]), rel_tol=1e-9)
    training_arguments.ending(draft, keeps_best=bool(measured and aligned))


def schedule(draft: Draft) -> None:
    """The least rate of a cosine."""
    least = draft.value("cosine_min_lr_ratio")
    options: dict[str, Any] = {key.name.partition(".")[2]: key.value for key in draft.below("lr_scheduler_kwargs")}
    if least is not None:
        draft.set("training.lr_scheduler_type", "cosine_with_min_lr", "cosine_min_lr_ratio")
        options["min_lr_rate"] = number(least)
    if draft.has("eta_min"):
        draft.set("training.lr_scheduler_type", "cosine_with_min_lr", "eta_min")
        options["min_lr"] = draft.number("eta_min")
    if draft.number("cosine_constant_lr_ratio", 0):
        draft.refuse("cosine_constant_lr_ratio", "no schedule ends in a constant rate; nearest: warmup_stable_decay")
    if options:
        keys = [name for name in ("cosine_min_lr_ratio", "eta_min") if draft.has(name)]
        keys += [key.name for key in draft.below("lr_scheduler_kwargs")]
        draft.set("objective.options.lr_scheduler_kwargs", text_of(options), *keys)
        if draft.has("lr_scheduler") and {"min_lr_rate", "min_lr"} & set(options):
            draft.tell("lr_scheduler", "mapped", "training.lr_scheduler_type")

    inside = draft.below("optim_args")
    if inside:
        arguments = ",".join(f"{key.name.partition('.')[2]}={text_of(key.value)}" for key in inside)
        draft.set("objective.options.optim_args", arguments, *(key.name for key in inside))
    elif draft.has("optim_args"):
        draft.set("objective.options.optim_args", str(draft.value("optim_args")), "optim_args")


def batch(draft: Draft) -> None:
    """The size of the whole batch, where it is given instead of the accumulation."""
    path = "training.gradient_accumulation_steps"
    if draft.has("gradient_accumulation_steps") or not draft.has("batch_size"):
        draft.set(path, draft.number("gradient_accumulation_steps", 1), "gradient_accumulation_steps")
        draft.skip("batch_size", "gradient_accumulation_steps is given")
    else:
        micro = draft.count("micro_batch_size", 1)
        draft.set(path, max(1, draft.count("batch_size", micro) // micro), "batch_size")


def checkpointing(draft: Draft) -> None:
    """Recomputation; what is moved to memory or disk meanwhile is not."""
    value = draft.value("gradient_checkpointing")
    about = "activations are recomputed, not moved" if str(value).startswith(("offload", "unsloth")) else ""
    draft.set("training.gradient_checkpointing", truth(value), "gradient_checkpointing", about=about)


def tokens(draft: Draft) -> None:
    """New tokens, and which token ends and pads."""
    listed = names(draft.value("tokens") or []) if not draft.below("tokens") else []
    added = [key.name for key in draft.below("special_tokens") if key.name.endswith("additional_special_tokens")]
    more = [name for key in added for name in names(draft.value(key) or [])]
    if listed or more:
        draft.set("model.add_tokens", [*listed, *more], "tokens", *added)
    for key in [*draft.below("special_tokens"), *draft.below("tokens")]:
        leaf = key.name.partition(".")[2]
        if leaf == "pad_token" and key.value:
            draft.set("model.pad_token", str(key.value), key.name)
        elif leaf == "eos_token" and key.value:
            draft.tell(key.name, "approximated", note="what ends a turn is what the chat template writes after it")
        elif key.value and key.name not in added:
            draft.tell(
                key.name, "approximated", note="the tokenizer's own; the chat template writes what begins a text"
            )
    draft.skip("eot_tokens", "what ends a turn is found from the chat template, and proved")
    for key in draft.below("added_tokens_overrides"):
        draft.refuse(key.name, "reserved tokens keep their names; name new ones in model.add_tokens")


def trackers(draft: Draft) -> None:
    """W&B and TensorBoard beside MLflow."""
    ours = []
    if (draft.has("wandb_project") and str(draft.value("wandb_mode")) != "disabled") or draft.on("use_wandb"):
        ours.append("wandb")
    if draft.on("use_tensorboard"):
        ours.append("tensorboard")
    if ours:
        keys = [name for name in ("wandb_project", "use_wandb", "use_tensorboard") if draft.on(name)]
        about = "the project is named by WANDB_PROJECT" if draft.has("wandb_project") else ""
        draft.set("run.also_report_to", ours, *keys, about=about)
    for name in ("use_wandb", "use_tensorboard", "wandb_mode"):
        draft.skip(name, "off, or set by W&B's own variables")


RULES: tuple[Any, ...] = (
    *(method, target, precision, attention, warmup, when, ending, schedule, batch, checkpointing, tokens, trackers),
    *(training_arguments.distribution, axolotl_rows.rows, axolotl_rows.packing),
)
