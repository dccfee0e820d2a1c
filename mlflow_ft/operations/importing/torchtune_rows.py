"""torchtune's builders of data sets, with their arguments, as sources."""

from __future__ import annotations

from mlflow_ft.operations.importing import training_arguments
from mlflow_ft.operations.importing.draft import Draft, Key, truth
from mlflow_ft.operations.importing.sources import Source, put, renamed

DATASETS: dict[str, tuple[str, dict[str, str], str]] = {
    "alpaca_dataset": ("alpaca", {}, "tatsu-lab/alpaca"),
    "alpaca_cleaned_dataset": ("alpaca", {}, "yahma/alpaca-cleaned"),
    "instruct_dataset": ("instruction-response", {"instruction": "input", "response": "output"}, ""),
    "chat_dataset": ("auto", {}, ""),
    "slimorca_dataset": ("sharegpt", {}, "Open-Orca/SlimOrca-Dedup"),
    "grammar_dataset": ("instruction-response", {"instruction": "input", "response": "output"}, "liweili/c4_200m"),
    "samsum_dataset": ("instruction-response", {"instruction": "dialogue", "response": "summary"}, "Samsung/samsum"),
    "text_completion_dataset": ("text", {}, ""),
    "wikitext_dataset": ("text", {"text": "page"}, "EleutherAI/wikitext_document_level"),
    "cnn_dailymail_articles_dataset": ("text", {"text": "article"}, "ccdv/cnn_dailymail"),
    "stack_exchange_paired_dataset": (
        "preference",
        {"prompt": "question", "chosen": "response_j", "rejected": "response_k"},
        "lvwerra/stack-exchange-paired",
    ),
    "hh_rlhf_helpful_dataset": ("preference", {}, "RLHFlow/HH-RLHF-Helpful-standard"),
    "preference_dataset": ("preference", {}, ""),
}
"""By builder: our format, their columns where they differ, and the set that it names by itself."""
NO_EFFECT = {
    "source": "data_files names the files",
    "packed": "off",
    "train_on_input": "only what the assistant says is learned",
    "conversation_style": "found from the rows",
    "max_seq_len": "data.max_length is the length of a row",
    "add_eos": "the end of a text is learned",
    "split_across_pack": "packed rows are never cut",
    "max_pack_len": "packed rows are as long as data.max_length",
}
"""Arguments that change nothing here."""
LEARNS_PROMPTS = ("alpaca_dataset", "alpaca_cleaned_dataset")
"""Builders whose prompts are learned unless `train_on_input` says no."""


def rows(draft: Draft) -> None:
    """Data sets by their builders; a list is one after another."""
    groups: dict[str, dict[str, Key]] = {}
    for key in [*draft.below("dataset"), *draft.below("datasets")]:
        entry, leaf = _entry_of(key.name)
        groups.setdefault(entry, {})[leaf] = key
    sources = [source for entry, keys in groups.items() if (source := _source(draft, entry, keys))]
    put(draft, sources, weighted=any(source.weight is not None for source in sources))
    held_out = {_entry_of(key.name)[1]: key for key in draft.below("dataset_val")}
    if held_out:
        found = _source(draft, "dataset_val", held_out)
        if found:
            draft.set("data.eval_path", found.path, found.key)
            for _, name in found.shared.values():
                draft.refuse(name, "held-out rows share this with the training rows; write them to a file")
    else:
        about = "it holds out nothing; one row is the least here, and too few to compare models: give data.eval_path"
        draft.set("data.test_size", training_arguments.LEAST_HELD_OUT, "dataset_val", about=about)
    training_arguments.in_order(draft, "shuffle", is_asked=draft.has("shuffle") and not draft.on("shuffle"))
    if draft.has("run_val_every_n_steps"):
        draft.set("training.eval_steps", draft.number("run_val_every_n_steps"), "run_val_every_n_steps")
    if draft.has("batch_size_val"):
        draft.set("evaluation.per_device_eval_batch_size", draft.number("batch_size_val"), "batch_size_val")


def _entry_of(name: str) -> tuple[str, str]:
    """`dataset[0].column_map.input` -> `dataset[0]`, `column_map.input`."""
    entry, _, leaf = name.partition("].") if "]." in name else name.partition(".")
    return (f"{entry}]" if "[" in entry else entry), leaf


def _source(draft: Draft, entry: str, keys: dict[str, Key]) -> Source | None:
    builder = str(keys["_component_"].value).rpartition(".")[2] if "_component_" in keys else ""
    anchor = keys.get("_component_") or next(iter(keys.values()))
    if builder not in DATASETS:
        draft.refuse(anchor.name, f"the builder {builder or 'of this entry'} is not known; name the rows in data.path")
    kind, columns, usual = DATASETS.get(builder, ("auto", {}, ""))
    named = keys.get("data_files") or keys.get("source") or anchor
    path = str(named.value) if named is not anchor else usual
    if not path:
        return None
    found = Source(path=path, key=named.name, format=kind, columns=dict(columns))
    if draft.method == "ppo" and kind == "text":  # texts to continue
        found.format, found.columns = "prompt-only", {"prompt": columns.get("text", "text")}
    draft.tell(anchor.name, "mapped", "data.format" if kind != "auto" else "data.path")
    for leaf, key in keys.items():
        _argument(draft, found, builder, leaf, key)
    given = keys.get("train_on_input")
    learns = truth(given.value) if given else builder in LEARNS_PROMPTS
    if learns and given:
        draft.refuse(given.name, "only what the assistant says is learned")
    elif learns:
        note = "torchtune learns the prompts of this set too; here only the answers"
        draft.tell(anchor.name, "approximated", note=note)
    if kind == "alpaca":
        note = "torchtune puts Alpaca's words around the question; here the chat template alone writes it"
        draft.tell(anchor.name, "approximated", "data.format", note=note)
    found.columns = renamed(found.columns, {})
    return found


def _argument(draft: Draft, found: Source, builder: str, leaf: str, key: Key) -> None:
    """One argument of a builder."""
    value = key.value
    if leaf == "_component_" or key.name == found.key or _column(draft, found, builder, leaf, key):
        return
    if leaf == "split" and value is not None:
        found.shared["split"] = (str(value), key.name)
    elif leaf in ("name", "subset"):
        found.shared["subset"] = (value, key.name)
    elif leaf == "new_system_prompt" and value:
        draft.set("data.system", str(value), key.name)
    elif leaf == "packed" and truth(value):
        draft.set("objective.packing", True, key.name)
    elif leaf == "weight":
        found.weight = float(value) if isinstance(value, int | float) else 1.0
        draft.tell(key.name, "mapped", "data.path")
    elif leaf in NO_EFFECT:
        draft.skip(key.name, NO_EFFECT[leaf])
    elif value is not None:
        draft.refuse(key.name, f"{leaf} of {builder or 'this entry'} has no counterpart")


def _column(draft: Draft, found: Source, builder: str, leaf: str, key: Key) -> bool:
    """Whether it names a column, which is then renamed."""
    if leaf.startswith("column_map."):
        ours = leaf.removeprefix("column_map.")
        ours = {"input": "instruction", "output": "response"}.get(ours, ours) if builder == "instruct_dataset" else ours
        found.columns[ours] = str(key.value)
    elif leaf == "conversation_column":
        found.columns = {} if key.value in ("messages", "conversations") else {"messages": str(key.value)}
    elif leaf == "column":
        found.columns["prompt" if found.format == "prompt-only" else "text"] = str(key.value)
    else:
        return False
    draft.tell(key.name, "mapped", "data.columns")
    return True
