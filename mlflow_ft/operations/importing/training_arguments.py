"""Rules for transformers.TrainingArguments, which several tools take under the same names."""

from __future__ import annotations

import json
from typing import Any

from mlflow_ft.operations.importing.converters import text_of
from mlflow_ft.operations.importing.draft import Draft, Setting, names, truth

ALWAYS_EVALUATED = "the held-out loss is always measured"
LEAST_HELD_OUT = 1
TRACKERS = ("wandb", "tensorboard")
PATIENCE = ("early_stopping_patience", "early_stopping_steps")
MEASURE = ("metric_for_best_model", "greater_is_better")
BEST = "load_best_model_at_end"


def precision(draft: Draft) -> None:
    """bf16, fp16: the type to compute in."""
    for name, dtype in (("pure_bf16", "bfloat16"), ("bf16", "bfloat16"), ("fp16", "float16")):
        if name in draft.given and str(draft.value(name)).lower() == "auto":
            draft.set("model.dtype", "auto", name)
        elif draft.on(name) and "model.dtype" not in draft.settings:
            about = "adapters stay in float32" if name == "pure_bf16" else ""
            draft.set("model.dtype", dtype, name, about=about)
        else:
            draft.skip(name, "off")
    for name in ("bf16_full_eval", "fp16_full_eval", "use_cpu", "no_cuda"):
        draft.skip(name, "the type follows model.dtype, the device what is there")


def warmup(draft: Draft) -> None:
    """warmup_steps wins over warmup_ratio, as in transformers; below 1 both are a share."""
    steps, ratio = draft.number("warmup_steps"), draft.number("warmup_ratio")
    if steps:
        draft.set("training.warmup_steps", steps, "warmup_steps")
        draft.skip("warmup_ratio", "warmup_steps wins")
    elif ratio:
        draft.set("training.warmup_steps", ratio, "warmup_ratio")
        draft.skip("warmup_steps", "0: warmup_ratio applies")
    else:
        draft.set("training.warmup_steps", 0, "warmup_steps" if draft.has("warmup_steps") else "warmup_ratio")
        draft.skip("warmup_ratio", "0, as written")


def evaluation(draft: Draft) -> None:
    """When the held-out loss is measured."""
    name = "eval_strategy" if draft.has("eval_strategy") else "evaluation_strategy"
    strategy = str(draft.value(name) or "no").lower()
    steps = draft.number("eval_steps")
    if strategy in ("no", "false"):
        draft.tell(name, "approximated", "training.eval_steps", note=ALWAYS_EVALUATED)
        draft.skip("eval_steps", f"{name} is off; {ALWAYS_EVALUATED}")
    elif strategy == "epoch":
        by_epoch(draft, "training.eval_steps", name)
        draft.skip("eval_steps", f"{name} is epoch")
    elif steps:
        draft.set("training.eval_steps", steps, "eval_steps", name)
    else:
        draft.skip(name, "steps, without a number")
    draft.skip("do_eval", ALWAYS_EVALUATED)
    draft.skip("evaluate_during_training", ALWAYS_EVALUATED)


def by_epoch(draft: Draft, path: str, name: str) -> None:
    """Once per epoch, as a share of all steps; a single epoch ends with it in any case."""
    epochs = draft.number("num_train_epochs") or draft.number("num_epochs", 1)
    if isinstance(epochs, int | float) and epochs > 1:
        draft.set(path, round(1 / epochs, 6), name, about="as a share of all steps")
    else:
        draft.skip(name, "a single epoch ends with it in any case")


def saving(draft: Draft) -> None:
    """When checkpoints are written."""
    strategy = str(draft.value("save_strategy") or "steps").lower()
    steps = draft.number("save_steps")
    if strategy == "epoch":
        by_epoch(draft, "training.save_steps", "save_strategy")
        draft.skip("save_steps", "save_strategy is epoch")
    elif strategy in ("no", "best", "false"):
        note = "checkpoints are always written; the best one is kept"
        draft.tell("save_strategy", "approximated", "training.save_steps", note=note)
        draft.skip("save_steps", f"save_strategy is {strategy}")
    elif steps:
        draft.set("training.save_steps", steps, "save_steps", "save_strategy")
    else:
        draft.skip("save_strategy", "steps, without a number")


def ending(draft: Draft, *, keeps_best: bool = False) -> None:
    """When the held-out loss ends the training, and whether the weights with the lowest one are kept.

    `keeps_best` is what the tool does if it is not told.
    """
    patience = next((name for name in PATIENCE if draft.number(name)), "")
    best = draft.on(BEST) if draft.has(BEST) else keeps_best
    if other := _other_measure(draft):
        for name in (*PATIENCE, BEST, *MEASURE):
            draft.refuse(name, other) if draft.on(name) else draft.skip(name, "off, as here")
        return
    if patience:
        draft.set("training.early_stopping", draft.count(patience, 1), patience)
    if best or patience:
        draft.set("training.load_best", best, BEST)
    if draft.number("early_stopping_threshold"):
        draft.refuse("early_stopping_threshold", "any loss below the lowest one so far is an improvement")
    for name in (*PATIENCE, BEST, "early_stopping_threshold"):
        draft.skip(name, "off, as here")
    for name in MEASURE:
        draft.skip(name, "the held-out loss decides, as here")


def _other_measure(draft: Draft) -> str:
    """Why the best checkpoint differs here; "" if it is the one with the lowest held-out loss."""
    measure = str(draft.value("metric_for_best_model") or "loss").removeprefix("eval_")
    if measure != "loss":
        return f"the held-out loss decides here, not {measure}"
    return "the lowest held-out loss is the best one here" if draft.on("greater_is_better") else ""


def trackers(draft: Draft) -> None:
    """report_to: W&B and TensorBoard; MLflow has the curves in any case."""
    if not draft.has("report_to"):
        return
    asked = [name.lower() for name in names(draft.value("report_to"))]
    ours = [name for name in asked if name in TRACKERS]
    others = [name for name in asked if name not in (*TRACKERS, "none", "mlflow")]
    if ours:
        draft.set("run.also_report_to", ours, "report_to")
    else:
        draft.skip("report_to", "the curves go to MLflow in any case")
    if others == ["all"]:
        draft.tell("report_to", "approximated", note="all: MLflow alone; name wandb or tensorboard to add them")
    elif others:
        draft.refuse("report_to", f"no reports to {', '.join(others)}; MLflow has the curves")


def sampling(draft: Draft) -> None:
    """The order of rows."""
    option = "objective.options.train_sampling_strategy"
    if draft.on("group_by_length"):
        draft.set(option, "group_by_length", "group_by_length")
    else:
        draft.skip("group_by_length", "off")
    in_order(draft, "disable_shuffling", is_asked=draft.on("disable_shuffling"))
    if draft.has("train_sampling_strategy"):
        draft.set(option, draft.value("train_sampling_strategy"), "train_sampling_strategy")


def in_order(draft: Draft, name: str, *, is_asked: bool) -> None:
    """Rows in the order of their files, where a tool does not shuffle them."""
    if is_asked and draft.method == "ppo":
        draft.refuse(name, "prompts are always shuffled, by run.seed")
    elif is_asked:
        draft.set("objective.options.train_sampling_strategy", "sequential", name)
    else:
        draft.skip(name, "rows are shuffled, as here")


def schedule_options(draft: Draft) -> None:
    """lr_scheduler_kwargs, given as a mapping or as JSON text."""
    given: Any = draft.value("lr_scheduler_kwargs")
    values: dict[str, Any] = {}
    if isinstance(given, str):
        try:
            values = json.loads(given)
        except ValueError:
            draft.refuse("lr_scheduler_kwargs", "is not a mapping")
    inside = draft.below("lr_scheduler_kwargs")
    values |= {key.name.partition(".")[2]: key.value for key in inside}
    if values:
        keys = [key.name for key in inside] or ["lr_scheduler_kwargs"]
        draft.set("objective.options.lr_scheduler_kwargs", text_of(values), *keys)


def distribution(draft: Draft) -> None:
    """DeepSpeed and FSDP: who holds which share of the weights."""
    deepspeed(draft)
    asked = draft.value("fsdp")
    inside = draft.below("fsdp_config")
    if truth(asked) or inside or isinstance(draft.value("fsdp_config"), str):
        draft.set("launch.strategy", "fsdp", "fsdp", "fsdp_config", *(key.name for key in inside[:1]))
        draft.set("launch.launcher", "accelerate")
        offload = "offload" in str(asked) or any(
            key.name.endswith(("offload_params", "cpu_offload")) and truth(key.value) for key in inside
        )
        if offload:
            which = next((key.name for key in inside if "offload" in key.name), "fsdp")
            draft.set("launch.cpu_offload", True, which)
        for key in inside:
            if key.name.endswith("activation_checkpointing") and truth(key.value):
                draft.set("training.gradient_checkpointing", True, key.name)
            draft.tell(key.name, "approximated", "launch.strategy", note="layers are wrapped and gathered by our FSDP2")
    else:
        draft.skip("fsdp", "off")
    unsharded(draft)
    for name in ("fsdp_min_num_params", "fsdp_transformer_layer_cls_to_wrap"):
        draft.skip(name, "layers are found from the model")


def unsharded(draft: Draft) -> None:
    """A base in 4 or 8 bits is held whole by each process."""
    quantized = draft.settings.get("model.quantize")
    strategy = draft.settings.get("launch.strategy")
    if quantized and strategy and strategy.value in ("fsdp", "deepspeed-zero3"):
        for path in ("launch.strategy", "launch.deepspeed_config", "launch.cpu_offload"):
            if path in draft.settings:
                draft.drop(
                    path,
                    f"a base in {quantized.value} is not shared out here: each process holds it (ddp)",
                    refused=True,
                )
        draft.settings["launch.strategy"] = Setting(value="ddp", note=f"a base in {quantized.value} is not shared out")


def deepspeed(draft: Draft) -> None:
    """The stage of DeepSpeed, by the name of its configuration or by what is in it."""
    asked = draft.value("deepspeed")
    if not asked:
        draft.skip("deepspeed", "off")
        return
    stage, path = _stage(draft, asked), draft.folder / str(asked)
    if stage is None:
        draft.refuse("deepspeed", "its stage is not known; set launch.strategy deepspeed-zero2 or deepspeed-zero3")
        return
    about = {0: "stage 0 holds all weights everywhere: ddp", 1: "stage 1 has no counterpart; stage 2 shares more"}.get(
        stage, "" if path.is_file() else "the shipped configuration of this stage"
    )
    strategy = "ddp" if stage == 0 else f"deepspeed-zero{max(2, stage)}"
    draft.set("launch.strategy", strategy, "deepspeed", about=about)
    draft.set("launch.launcher", "accelerate")
    if stage >= 2 and path.is_file():
        draft.set("launch.deepspeed_config", str(path), "deepspeed")
    elif "offload" in str(asked):
        draft.set("launch.cpu_offload", True, "deepspeed")


def _stage(draft: Draft, asked: Any) -> int | None:
    path = draft.folder / str(asked)
    try:
        config = asked if isinstance(asked, dict) else json.loads(path.read_text(encoding="utf-8"))
        return int(config["zero_optimization"]["stage"])
    except (OSError, ValueError, KeyError, TypeError):
        text = str(asked).lower()
        return next(
            (stage for stage in (3, 2, 1, 0) for word in ("z", "zero", "zero_") if f"{word}{stage}" in text), None
        )


RULES = (precision, warmup, evaluation, saving, ending, trackers, sampling, schedule_options, distribution)
