"""torchtune's components, each the name of a function with its arguments, as settings."""

from __future__ import annotations

from typing import Any

from mlflow_ft.operations.importing import torchtune_rows, training_arguments
from mlflow_ft.operations.importing.draft import Draft, names, number

MODULES = {"q_proj": "q_proj", "k_proj": "k_proj", "v_proj": "v_proj", "output_proj": "o_proj"}
MLP = ("gate_proj", "up_proj", "down_proj")
OPTIMIZERS = {
    "AdamW": "adamw_torch",
    "Adam": "adamw_torch",
    "AdamW8bit": "adamw_8bit",
    "PagedAdamW": "paged_adamw_32bit",
    "PagedAdamW8bit": "paged_adamw_8bit",
    "SGD": "sgd",
}
SCHEDULERS = {
    "get_cosine_schedule_with_warmup": "cosine",
    "get_linear_schedule_with_warmup": "linear",
    "get_constant_schedule_with_warmup": "constant_with_warmup",
    "get_constant_schedule": "constant",
}
LOSSES = {"DPOLoss": "sigmoid", "RSOLoss": "hinge"}


def component(draft: Draft, name: str) -> str:
    """The last part of a component's name: `lora_llama3_8b` of torchtune.models.llama3.lora_llama3_8b."""
    return str(draft.value(f"{name}._component_") or "").rpartition(".")[2]


def method(draft: Draft) -> None:
    """The recipe follows from the model's builder and the loss."""
    model, loss = component(draft, "model") or component(draft, "policy_model"), component(draft, "loss")
    is_lora = model.startswith(("lora_", "qlora_"))
    recipe = draft.extra.get("command", "") + " " + str(draft.value("recipe") or "")
    is_nf4 = model.startswith("qlora_") or draft.on("model.quantize_base")
    if loss in LOSSES or "dpo" in recipe:
        draft.method = "dpo"
        draft.set("objective.loss_type", LOSSES.get(loss, "sigmoid"), "loss._component_")
        draft.set("objective.beta", draft.number("loss.beta", 0.1), "loss.beta")
    elif loss == "PPOLoss":
        draft.method = "ppo"
        draft.tell("loss._component_", "mapped", "method")
    elif "grpo" in loss.lower() or "grpo" in recipe:
        draft.method = "grpo"
        draft.tell("loss._component_", "approximated", "method", note="rewards come from rollout.reward_funcs")
    else:
        draft.method = ("qlora" if is_nf4 else "lora") if is_lora else "full"
        known = "CrossEntropy" in loss or "CE" in loss or not loss
        if known:
            draft.tell("loss._component_", "mapped", "method")
        else:
            draft.refuse("loss._component_", f"{loss}: only the mean loss over the learned tokens is minimised")
    kind = "dora" if is_lora and draft.on("model.use_dora") else "lora" if is_lora else "none"
    draft.set("adapter.kind", kind, "model._component_", "policy_model._component_")
    if is_nf4:
        draft.set("model.quantize", "nf4", "model.quantize_base", "model._component_")
        draft.tell("model._component_", "mapped", "model.quantize")
    draft.skip("model.quantize_base", "off")
    draft.tell("model.use_dora", "mapped", "adapter.kind")
    if "vision" in model:
        draft.tell("model._component_", "approximated", note="only text is learned; images are not read")
    draft.tell("recipe", "mapped", "method")
    if is_lora:
        _target(draft)
    for name in ("model.lora_attn_modules", "model.apply_lora_to_mlp", "model.apply_lora_to_output"):
        draft.skip(name, "off, or the model has no adapter")
    if component(draft, "teacher_model"):
        draft.refuse("teacher_model._component_", "distillation from a teacher is not available")


def _target(draft: Draft) -> None:
    listed = [MODULES.get(name, name) for name in names(draft.value("model.lora_attn_modules") or ["q_proj", "v_proj"])]
    keys = ["model.lora_attn_modules"]
    if draft.on("model.apply_lora_to_mlp"):
        listed += MLP
        keys.append("model.apply_lora_to_mlp")
    if draft.on("model.apply_lora_to_output"):
        listed.append("lm_head")
        keys.append("model.apply_lora_to_output")
    draft.set("adapter.target_modules", listed, *keys)


def base(draft: Draft) -> None:
    """The checkpoint's folder is the model."""
    folder = draft.value("checkpointer.checkpoint_dir")
    if folder:
        draft.set("model.name", str(folder), "checkpointer.checkpoint_dir")
    is_hf = "HF" in component(draft, "checkpointer")
    note = "" if is_hf else "the folder must have the model in Hugging Face's form"
    draft.tell("checkpointer._component_", "mapped" if is_hf else "approximated", "model.name", note=note)
    for key in draft.below("checkpointer"):
        if "checkpoint_files" in key.name:
            draft.skip(key.name, "all files of the folder are read")
    if draft.has("checkpointer.adapter_checkpoint"):
        draft.refuse("checkpointer.adapter_checkpoint", "name an adapter in PEFT's form in model.init_from")
    draft.tell("tokenizer._component_", "mapped", "model.name", note="the tokenizer of the model's folder")
    draft.tell("tokenizer.path", "mapped", "model.name", note="the tokenizer of the model's folder")
    length = draft.number("tokenizer.max_seq_len")
    if length:
        draft.set("data.max_length", length, "tokenizer.max_seq_len")
    else:
        draft.skip("tokenizer.max_seq_len", "no limit")
        draft.set("data.max_length", 4096, "tokenizer.max_seq_len", about="no limit there; the longest row here")
    if draft.has("tokenizer.prompt_template") or draft.below("tokenizer.prompt_template"):
        for key in draft.below("tokenizer.prompt_template") or [draft.given["tokenizer.prompt_template"]]:
            draft.tell(
                key.name, "approximated", note="the tokenizer's chat template is used; or give data.chat_template"
            )


def optimizer(draft: Draft) -> None:
    """Optimizer, schedule and steps."""
    name = component(draft, "optimizer")
    if name in OPTIMIZERS:
        draft.set("training.optim", OPTIMIZERS[name], "optimizer._component_")
    elif name:
        draft.refuse("optimizer._component_", f"the optimizer {name} is not available; nearest: adamw_torch_fused")
    draft.tell("optimizer.fused", "mapped", "training.optim", note="the same arithmetic in one kernel")
    betas = draft.value("optimizer.betas")
    for place, beta in enumerate(betas if isinstance(betas, list) else []):
        draft.set(f"objective.options.adam_beta{place + 1}", number(beta), "optimizer.betas")
    schedule = component(draft, "lr_scheduler")
    if schedule in SCHEDULERS:
        draft.set("training.lr_scheduler_type", SCHEDULERS[schedule], "lr_scheduler._component_")
    elif schedule:
        draft.refuse("lr_scheduler._component_", f"there is no schedule {schedule}; nearest: cosine")
    else:
        draft.set("training.lr_scheduler_type", "constant", "lr_scheduler._component_", about="without a schedule")
    draft.set(
        "training.warmup_steps", draft.number("lr_scheduler.num_warmup_steps", 0), "lr_scheduler.num_warmup_steps"
    )
    if draft.value("lr_scheduler.num_cycles") in (None, 0.5):
        draft.skip("lr_scheduler.num_cycles", "half a wave")
    steps = draft.number("max_steps_per_epoch")
    if steps:
        epochs = draft.number("epochs", 1)
        about = "counted over all epochs; with several, an epoch is not cut short" if epochs > 1 else ""
        draft.set("training.max_steps", steps * epochs, "max_steps_per_epoch", about=about)
    draft.set(
        "training.max_grad_norm",
        draft.number("clip_grad_norm", 1e9),
        "clip_grad_norm",
        about="" if draft.has("clip_grad_norm") else "gradients are not clipped",
    )


def strategy(draft: Draft) -> None:
    """Recipes for several processes; loggers."""
    recipe = draft.extra.get("command", "") + draft.extra.get("file", "")
    offload = next((name for name in ("fsdp_cpu_offload", "fsdp.cpu_offload") if draft.on(name)), None)
    if "distributed" in recipe or offload:
        draft.set("launch.strategy", "fsdp")
        draft.set("launch.launcher", "accelerate")
    if offload:
        draft.set("launch.cpu_offload", True, offload)
    for name in ("fsdp_cpu_offload", "fsdp.cpu_offload"):
        draft.skip(name, "off")
    draft.skip("optimizer_in_bwd", "saves memory; the steps are the same")
    if draft.on("compile"):
        draft.set("training.compile", True, "compile")
    draft.skip("compile", "off")
    logger = component(draft, "metric_logger").lower()
    ours = next((name for name in training_arguments.TRACKERS if name in logger), None)
    if ours:
        draft.set("run.also_report_to", [ours], "metric_logger._component_")
    else:
        draft.skip("metric_logger._component_", "the curves go to MLflow")
    training_arguments.unsharded(draft)


RULES: tuple[Any, ...] = (method, base, optimizer, torchtune_rows.rows, strategy)
