"""The arguments of Unsloth's starter script that belong together: quantisation, rows, what is saved."""

from __future__ import annotations

from typing import Any

from mlflow_ft.operations.importing import chat_templates, training_arguments
from mlflow_ft.operations.importing.draft import Draft, names, truth
from mlflow_ft.operations.importing.sources import Source, put

EXPORTS = {
    "f16": "gguf-f16",
    "q8_0": "gguf-q8_0",
    "q6_k": "gguf-q6_k",
    "q5_k_m": "gguf-q5_k_m",
    "q4_k_m": "gguf-q4_k_m",
}


def method(draft: Draft) -> None:
    """LoRA on a base in 16, 8 or 4 bits."""
    four, eight, full = draft.on("load_in_4bit"), draft.on("load_in_8bit"), draft.on("full_finetuning")
    draft.method = "full" if full else "qlora" if four else "lora"
    draft.set("adapter.kind", "none" if full else "lora", "full_finetuning")
    if four or eight:
        draft.set("model.quantize", "nf4" if four else "int8", "load_in_4bit" if four else "load_in_8bit")
    for name in ("load_in_4bit", "load_in_8bit", "load_in_16bit"):
        draft.skip(name, "off")
    checkpointing = draft.value("use_gradient_checkpointing")
    about = "layers are recomputed, not moved" if checkpointing == "unsloth" else ""
    draft.set("training.gradient_checkpointing", truth(checkpointing), "use_gradient_checkpointing", about=about)
    if draft.has("report_to"):
        training_arguments.trackers(draft)
    else:
        draft.set("run.also_report_to", ["tensorboard"], "report_to")


def rows(draft: Draft) -> None:
    """Rows with instruction, input and output, in Alpaca's words; or plain text."""
    about = "it holds out nothing; one row is the least here, and too few to compare models: give data.eval_path"
    draft.set("data.test_size", training_arguments.LEAST_HELD_OUT, "eval_dataset", about=about)
    if draft.has("raw_text_file"):
        put(draft, [Source(path=str(draft.value("raw_text_file")), key="raw_text_file", format="text")])
        draft.set("objective.packing", True)
        for name in ("chunk_size", "stride"):
            draft.tell(
                name, "approximated", "data.max_length", note="texts are cut at data.max_length, without overlap"
            )
        draft.skip("dataset", "raw_text_file is the data")
        return
    key = "dataset"
    draft.set("data.path", str(draft.value(key) or "yahma/alpaca-cleaned"), key)
    draft.set("data.format", "alpaca", key)
    note = "Alpaca's prompt, written out; Unsloth's script learns the prompt too, here only the answer is learned"
    draft.set("data.chat_template", chat_templates.ALPACA, key, about=note)
    for name in ("chunk_size", "stride", "training_mode"):
        draft.skip(name, "only read with raw_text_file")


def saving(draft: Draft) -> None:
    """Forms of the model besides adapter and merged."""
    if not draft.on("save_model"):
        draft.skip("save_model", "models are always kept")
    else:
        draft.tell("save_model", "mapped", note="adapter and merged model are always kept")
    merged4 = draft.value("save_method") == "merged_4bit"
    exports = ["nf4"] if merged4 and draft.on("save_model") else []
    keys = ["save_method"] if exports else []
    if draft.on("save_gguf"):
        name = (
            "quantization"
            if draft.has("quantization") or not draft.has("quantization_method")
            else "quantization_method"
        )
        for kind in names(draft.value(name)):
            if kind in EXPORTS:
                exports.append(EXPORTS[kind])
            else:
                draft.refuse(name, f"there is no export {kind}; gguf exports: {', '.join(EXPORTS)}")
        keys += ["save_gguf", name]
    if exports:
        draft.set(
            "package.exports",
            exports,
            *keys,
            about="GGUF needs the plugin mlflow-ft-gguf" if "save_gguf" in keys else "",
        )
    for name in ("save_method", "save_gguf", "quantization", "quantization_method"):
        draft.skip(name, "adapter and merged model are always kept")


RULES: tuple[Any, ...] = (method, rows, saving)
