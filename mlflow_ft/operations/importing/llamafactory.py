"""LLaMA-Factory's keys that belong together: stage and adapter, quantisation, data."""

from __future__ import annotations

from typing import Any

from mlflow_ft.operations.importing import chat_templates, dataset_info, training_arguments
from mlflow_ft.operations.importing.converters import modules, text_of
from mlflow_ft.operations.importing.draft import Draft, names, number, truth
from mlflow_ft.operations.importing.sources import put

STAGES = {"sft": "sft", "pt": "sft", "rm": "reward", "ppo": "ppo", "dpo": "dpo", "kto": "kto"}
LOSSES = {"sigmoid": "sigmoid", "hinge": "hinge", "ipo": "ipo"}
OWN_METHODS = {"orpo": "orpo", "simpo": "simpo"}
ADAPTERS = {"lora": "lora", "oft": "oft", "full": "none", "freeze": "none"}
METHODS = {"lora": "lora", "full": "full", "freeze": "full"}


def method(draft: Draft) -> None:
    """Stage and kind of fine-tuning are a method and an adapter here."""
    stage, kind = str(draft.value("stage")), str(draft.value("finetuning_type"))
    base = STAGES.get(stage)
    if base is None:
        draft.refuse("stage", f"there is no stage {stage}")
        base = "sft"
    draft.method = base
    if base == "sft" and stage == "sft" and kind in METHODS:
        draft.method = "qlora" if kind == "lora" and draft.number("quantization_bit") == 4 else METHODS[kind]
    if stage == "dpo":
        _preference(draft)
    else:
        for name in ("pref_loss", "pref_beta", "pref_ftx", "pref_bco_weight", "simpo_gamma"):
            draft.skip(name, f"not used by the stage {stage}")
    draft.tell("stage", "mapped", "method", note=f"{draft.method}")
    if kind == "freeze":
        draft.refuse("finetuning_type", "layers are not frozen one by one; this trains every weight: consider lora")
    draft.set("adapter.kind", ADAPTERS.get(kind, kind), "finetuning_type")


def _preference(draft: Draft) -> None:
    loss, beta = str(draft.value("pref_loss")), draft.number("pref_beta")
    draft.method = OWN_METHODS.get(loss, "dpo")
    draft.tell("pref_loss", "mapped", "method")
    draft.set("objective.beta", beta, "pref_beta")
    if loss == "simpo":
        draft.set("objective.options.simpo_gamma", draft.number("simpo_gamma"), "simpo_gamma")
        draft.set("objective.options.cpo_alpha", 0.0)
    elif loss in LOSSES:
        losses, weights, keys = [LOSSES[loss]], [1.0], ["pref_loss"]
        for name, kind in (("pref_ftx", "sft"), ("pref_bco_weight", "bco_pair")):
            if share := draft.number(name):
                losses, weights, keys = [*losses, kind], [*weights, share], [*keys, name]
        if len(losses) == 1:
            draft.set("objective.loss_type", losses[0], "pref_loss")
        else:
            draft.set("objective.loss_type", losses, *keys, about="the sum of TRL's losses, each with its weight")
            draft.set("objective.options.loss_weights", text_of(weights), *keys[1:])
    elif loss not in OWN_METHODS:
        draft.refuse("pref_loss", f"there is no loss {loss}; dpo has sigmoid, hinge, ipo and others")
    for name in ("simpo_gamma", "pref_ftx", "pref_bco_weight"):
        draft.skip(name, f"not used with pref_loss {loss}")


def kto(draft: Draft) -> None:
    """KTO takes its beta from the same key."""
    if draft.method == "kto":
        draft.set("objective.beta", draft.number("pref_beta"), "pref_beta")


def generation(draft: Draft) -> None:
    """How answers are sampled, which only PPO learns from."""
    if draft.method == "ppo":
        draft.set("rollout.max_completion_length", draft.number("max_new_tokens"), "max_new_tokens")
        draft.set("rollout.temperature", draft.number("temperature"), "temperature")
        draft.set("rollout.top_p", draft.number("top_p"), "top_p")
    elif draft.has("max_new_tokens"):
        draft.set("evaluation.max_new_tokens", draft.number("max_new_tokens"), "max_new_tokens")
    for name in ("temperature", "top_p"):
        draft.skip(name, "answers in the evaluation are greedy")


def adapter(draft: Draft) -> None:
    """LoRA or OFT: which modules, how large, how they begin."""
    kind = str(draft.value("finetuning_type"))
    if kind == "oft":
        draft.set("adapter.target_modules", modules(draft.value("oft_target") or "all"), "oft_target")
        draft.set("adapter.options.oft_block_size", draft.number("oft_block_size"), "oft_block_size")
        if draft.number("oft_rank"):
            draft.set("adapter.options.r", draft.number("oft_rank"), "oft_rank")
        if draft.number("module_dropout"):
            draft.set("adapter.options.module_dropout", draft.number("module_dropout"), "module_dropout")
    if kind == "lora":
        draft.set("adapter.target_modules", modules(draft.value("lora_target") or "all"), "lora_target")
        alpha = draft.number("lora_alpha") or 2 * draft.count("lora_rank", 8)
        draft.set("adapter.lora_alpha", alpha, "lora_alpha", about="" if draft.has("lora_alpha") else "twice the rank")
        if draft.on("pissa_init"):
            steps = int(draft.number("pissa_iter", 16))
            draft.set("adapter.init_lora_weights", "pissa" if steps == -1 else f"pissa_niter_{steps}", "pissa_init")
            draft.tell("pissa_iter", "mapped", "adapter.init_lora_weights")
    unused = "lora" if kind == "oft" else "oft" if kind == "lora" else ""
    for name in (
        "lora_target",
        "lora_alpha",
        "oft_target",
        "oft_block_size",
        "oft_rank",
        "module_dropout",
        "pissa_iter",
    ):
        draft.skip(name, f"only read with {unused}" if unused and unused in name else "not used, or off")
    draft.skip("pissa_init", "off")


def base(draft: Draft) -> None:
    """How the model is loaded, and what is added to it."""
    bits, how = draft.number("quantization_bit"), str(draft.value("quantization_method")).lower()
    if bits in (4, 8) and how in ("bnb", "bitsandbytes"):
        draft.set("model.quantize", {4: "nf4", 8: "int8"}[bits], "quantization_bit", "quantization_method")
        if bits == 4:
            draft.set("model.double_quant", draft.on("double_quantization"), "double_quantization")
            if draft.value("quantization_type") != "nf4":
                draft.refuse("quantization_type", "four bits are NF4 here")
            draft.tell("quantization_type", "mapped", "model.quantize")
    elif bits:
        name = "quantization_bit" if how in ("bnb", "bitsandbytes") else "quantization_method"
        draft.refuse(name, f"{bits} bits by {how} are not available; nf4 and int8 by bitsandbytes are")
        draft.refuse("quantization_bit", f"{bits} bits by {how} are not available")
    for name in ("quantization_method", "quantization_type", "double_quantization"):
        draft.skip(name, "the base is not quantised so")
    _start(draft)
    tokens = [*names(draft.value("add_tokens") or []), *names(draft.value("add_special_tokens") or [])]
    if tokens:
        about = "new embeddings begin at the mean of the others"
        draft.set("model.add_tokens", tokens, "add_tokens", "add_special_tokens", about=about)
    if draft.has("new_special_tokens_config"):
        draft.refuse("new_special_tokens_config", "name the tokens in model.add_tokens; their embeddings are trained")
    draft.skip("init_special_tokens", "new embeddings begin at the mean of the others, and are trained")
    draft.set(
        "training.gradient_checkpointing",
        not draft.on("disable_gradient_checkpointing"),
        "disable_gradient_checkpointing",
    )


def _start(draft: Draft) -> None:
    adapters = names(draft.value("adapter_name_or_path") or [])
    if len(adapters) == 1:
        draft.set("model.init_from", adapters[0], "adapter_name_or_path")
    elif adapters:
        draft.refuse("adapter_name_or_path", "several adapters: merge them first (mlflow-ft merge)")
    if draft.has("adapter_folder"):
        draft.refuse("adapter_folder", "name the adapter's own folder in model.init_from")


def data(draft: Draft) -> None:
    """The data sets by their entries in dataset_info.json, and how rows become examples."""
    stage = str(draft.value("stage"))
    asked, held_out = names(draft.value("dataset") or []), names(draft.value("eval_dataset") or [])
    info = dataset_info.find(draft)
    sources = [source for name in asked if (source := dataset_info.source(draft, name, info, stage=stage))]
    strategy, shares = str(draft.value("mix_strategy")), _shares(draft)
    weighted = strategy.startswith("interleave") and len(sources) > 1
    for source, share in zip(sources, shares or [1.0] * len(sources), strict=False):
        source.weight = share
    put(draft, sources, weighted=weighted)
    if weighted:
        note = "a mixture that repeats no row" if strategy != "interleave_over" else "no row is repeated"
        draft.tell("mix_strategy", "approximated", "data.path", note=note)
        draft.tell("interleave_probs", "mapped", "data.path")
    else:
        draft.skip("mix_strategy", "one source after another" if len(sources) > 1 else "a single source")
        draft.skip("interleave_probs", "not used with concat")
    _held_out(
        draft,
        [
            source.path
            for name in held_out
            if (source := dataset_info.source(draft, name, info, stage=stage, key="eval_dataset"))
        ],
    )
    _packing(draft, stage)
    _mask(draft)
    chat_templates.named(draft, "template", stage=stage)


def _shares(draft: Draft) -> list[float]:
    shares = [number(share) for share in names(draft.value("interleave_probs") or [])]
    if any(isinstance(share, str) for share in shares):
        draft.refuse("interleave_probs", "these are not numbers")
        return []
    return [float(share) for share in shares]


def _held_out(draft: Draft, paths: list[str]) -> None:
    size = draft.number("val_size") or 0
    if len(paths) == 1:
        draft.set("data.eval_path", paths[0], "eval_dataset")
    elif paths:
        draft.set("data.eval_path", paths[0], "eval_dataset")
        draft.refuse("eval_dataset", "one source of held-out rows: put the files together")
    if size:
        draft.set("data.test_size", size, "val_size")
    elif not paths:
        about = "it holds out nothing; one row is the least here, and too few to compare models: give data.eval_path"
        draft.set("data.test_size", training_arguments.LEAST_HELD_OUT, "val_size", about=about)
    draft.skip("val_size", "eval_dataset names the held-out rows")
    draft.skip("eval_on_each_dataset", "held-out rows are one set; evaluation.guards score further data by name")


def _packing(draft: Draft, stage: str) -> None:
    neat, packing = draft.on("neat_packing"), draft.on("packing")
    if draft.value("packing") is None and stage == "pt":
        draft.set("objective.packing", True, "packing", about="texts packed together do not see each other")
    elif neat or packing:
        about = "" if neat else "rows packed together do not see each other; in LLaMA-Factory they do"
        draft.set("objective.packing", True, "neat_packing", "packing", about=about)
    else:
        draft.skip("packing", "off")
        draft.skip("neat_packing", "off")


def _mask(draft: Draft) -> None:
    if draft.on("mask_history"):
        draft.set("data.turns", "last", "mask_history")
    else:
        draft.skip("mask_history", "every answer is learned")
    if draft.on("train_on_prompt"):
        draft.refuse("train_on_prompt", "only what the assistant says is learned")
    else:
        draft.skip("train_on_prompt", "only what the assistant says is learned")


def thoughts(draft: Draft) -> None:
    """Templates of models that think: what is learned of an answer's thoughts, and of the empty ones before others."""
    key = draft.given.get("enable_thinking")
    if key is None:
        return
    if truth(key.value) or draft.value("stage") == "pt":
        draft.skip("enable_thinking", "thoughts are learned as the chat template writes them, empty ones, too")
    else:
        removed = "" if key.value is None else "thoughts are removed there, and "
        note = f"{removed}empty ones are not learned there; here they are learned as the chat template writes them"
        draft.tell("enable_thinking", "approximated", note=note)


RULES: tuple[Any, ...] = (method, kto, generation, adapter, base, data, thoughts, *training_arguments.RULES)
