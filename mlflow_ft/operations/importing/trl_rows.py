"""TRL's data: one data set or a mixture, the chat template, packing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mlflow_ft.operations.importing import training_arguments
from mlflow_ft.operations.importing.draft import Draft, names, number
from mlflow_ft.operations.importing.sources import Source, put

FORMATS = {
    "sft": "auto",
    "dpo": "preference",
    "orpo": "preference",
    "cpo": "preference",
    "simpo": "preference",
    "reward": "preference",
    "kto": "unpaired-preference",
}
SPLITS = "a longer row is cut at its end; TRL splits it and learns all of it"
PACKING = {
    "wrapped": "no row is cut, and rows do not see each other",
    "bfd_split": SPLITS,
    "bfd-requeue": SPLITS,
}
"""By strategy, what differs."""
LEAVES = {"id": "path", "config": "name"}
"""Other names of the keys of a data set."""
OF_ITS_ROWS = "the share of the mixture here, of the set's own rows there"
TEMPLATES = (".jinja", ".j2", ".jinja2")


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
    _splits(draft, sources)
    put(draft, sources, weighted=any(source.weight not in (None, 1.0) for source in sources))
    _held_out(draft)


def _sources(draft: Draft) -> list[Source]:
    entries: dict[str, dict[str, Any]] = {}
    for key in [*draft.below("datasets"), *draft.below("dataset_mixture.datasets")]:
        entry, _, leaf = key.name.partition("].")
        entries.setdefault(entry, {})[LEAVES.get(leaf, leaf) or "path"] = key
    listed = [_entry(draft, keys) for keys in entries.values()]
    for key in draft.below("dataset_mixer"):
        share = _share(key.value)
        about = "" if share == 1 else OF_ITS_ROWS
        listed.append(Source(path=key.name.partition(".")[2], key=key.name, weight=share, about=about))
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


def _splits(draft: Draft, sources: list[Source]) -> None:
    """Splits and configurations that are named once for all sources."""
    train = [split for split in names(draft.value("dataset_splits") or []) if "train" in split]
    subsets = list(dict.fromkeys(names(draft.value("dataset_configs") or [])))
    for setting, key, asked in (("split", "dataset_splits", train), ("subset", "dataset_configs", subsets)):
        if len(asked) > 1:
            draft.refuse(key, f"data.{setting} names one for all sources; write the rows to files")
        for source in sources if len(asked) == 1 else ():
            source.shared[setting] = (asked[0], key)
    note = "held-out rows are not taken from another split; write it to a file for data.eval_path"
    draft.tell("dataset_splits", "approximated", note=note)


def _entry(draft: Draft, keys: dict[str, Any]) -> Source:
    path = keys["path"] if "path" in keys else next(iter(keys.values()))
    found = Source(path=str(path.value), key=path.name)
    for leaf, key in keys.items():
        if leaf == "name" and key.value:
            found.shared["subset"] = (key.value, key.name)
        elif leaf == "split" and key.value:
            found.shared["split"] = (str(key.value), key.name)
        elif leaf in ("fraction", "weight") and key.value is not None:
            found.weight = _share(key.value)
            is_other = leaf == "weight" and found.weight != 1
            draft.tell(
                key.name, "approximated" if is_other else "mapped", "data.path", note=OF_ITS_ROWS if is_other else ""
            )
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
    asked = "dataset_mixture.test_split_size"
    name = asked if draft.has(asked) else "test_split_size"
    size = draft.number(name)
    if size:
        draft.set("data.test_size", size, name)
    else:
        about = "it holds out nothing of the training split; one row is the least here: give data.eval_path"
        draft.set("data.test_size", training_arguments.LEAST_HELD_OUT, "test_split_size", about=about)
    if draft.has("dataset_test_split"):
        is_read = str(draft.value("eval_strategy") or "no") != "no"
        note = "a split is not held out by name; write it to a file for data.eval_path"
        draft.tell("dataset_test_split", "refused" if is_read else "approximated", note=note)
    draft.skip("dataset_mixture.seed", "rows are shuffled by run.seed")


def template(draft: Draft) -> None:
    """The chat template, and which tokens end a turn."""
    for name in ("chat_template", "chat_template_path"):
        if draft.has(name):
            _template(draft, name, str(draft.value(name)))
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


def _template(draft: Draft, name: str, value: str) -> None:
    """A template, its file, or a tokenizer's folder, whose template it is."""
    found = None if "{" in value else _place(draft, value)
    if "{" in value or (found is None and Path(value).suffix in TEMPLATES):
        draft.set("data.chat_template", value, name)
    elif found is None:
        remedy = "save its chat_template.jinja and name that file in data.chat_template"
        draft.refuse(name, f"there is no file or folder {value}; where it is a model on the Hub, {remedy}")
    elif found.is_file():
        draft.set("data.chat_template", str(found), name)
    elif written := _of_folder(found):
        about = "tokens that only that tokenizer has are named in model.add_tokens"
        draft.set("data.chat_template", written, name, about=about)
    else:
        draft.refuse(name, f"the folder {value} has no chat template; name its file in data.chat_template")


def _place(draft: Draft, value: str) -> Path | None:
    """The file or folder of this name, from here or beside the configuration."""
    try:
        return next((place for place in (Path(value).expanduser(), draft.folder / value) if place.exists()), None)
    except (OSError, RuntimeError):  # too long for a name; the home of somebody who is not known
        return None


def _of_folder(folder: Path) -> str:
    """The file of a tokenizer's chat template, or the template where it is part of another; "" where it has none."""
    file = folder / "chat_template.jinja"
    if file.is_file():
        return str(file)
    try:
        config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
        template = config["chat_template"]
    except (OSError, ValueError, KeyError, TypeError):
        return ""
    return template if isinstance(template, str) else ""


def packing(draft: Draft) -> None:
    """Packed rows do not see each other."""
    if draft.on("packing"):
        about = PACKING.get(str(draft.value("packing_strategy")), "")
        draft.set("objective.packing", True, "packing", "packing_strategy", about=about)
    for name in ("packing", "packing_strategy", "eval_packing"):
        draft.skip(name, "off, or the same for the held-out loss")
