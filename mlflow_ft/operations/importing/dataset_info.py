"""LLaMA-Factory's dataset_info.json: its entries as sources of ours."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlflow_ft.errors import ConfigError
from mlflow_ft.operations.importing.draft import Draft
from mlflow_ft.operations.importing.sources import CONTENT_KEYS, ROLE_KEYS, ROLES, Source, renamed

FILE = "dataset_info.json"
COLUMNS = {"prompt": "instruction", "query": "input", "response": "output"}
"""Their names of Alpaca's columns, and ours."""
TAGS = {
    "user_tag": ("user", "human"),
    "assistant_tag": ("assistant", "gpt"),
    "observation_tag": ("tool", "observation"),
    "function_tag": ("function", "function_call"),
    "system_tag": ("system", "system"),
}
"""By tag, the role and the tool's default."""
MEDIA = ("images", "videos", "audios")
KNOWN = (
    *("hf_hub_url", "ms_hub_url", "om_hub_url", "script_url", "cloud_file_name", "file_name", "formatting", "ranking"),
    *("subset", "split", "folder", "num_samples", "columns", "tags", "file_sha1", "cloud_file_name"),
)


def find(draft: Draft) -> tuple[Path, Mapping[str, Any]] | None:
    """The file: as given to the import, in dataset_dir from here, or in a folder above the configuration.

    Raises:
        ConfigError: it is not JSON, or the one that was asked for does not exist.
    """
    folder = str(draft.value("dataset_dir"))
    asked = draft.extra.get("dataset_info")
    places = [Path(asked).expanduser()] if asked else [Path(folder) / FILE]
    if not asked:
        places += [above / folder / FILE for above in (draft.folder, *draft.folder.resolve().parents)]
    for file in places:
        file = file / FILE if file.is_dir() else file
        if file.is_file():
            try:
                entries = json.loads(file.read_text(encoding="utf-8"))
            except (OSError, ValueError) as error:
                raise ConfigError(f"{file} cannot be read: {error}", hint="it is a JSON mapping of names") from error
            if not isinstance(entries, dict):
                raise ConfigError(f"{file} is not a mapping of data set names", hint="see LLaMA-Factory's data folder")
            draft.tell("dataset_dir", "mapped", "data.path", note=f"read {file}")
            return file, entries
    if asked:
        raise ConfigError(f"--dataset-info: {asked} does not exist", hint=f"name the {FILE}")
    draft.tell("dataset_dir", "mapped", "data.path")
    return None


def source(
    draft: Draft, name: str, info: tuple[Path, Mapping[str, Any]] | None, *, stage: str, key: str = "dataset"
) -> Source | None:
    """An entry by name, or the name itself where there is no such file: training then says what is missing."""
    if str(draft.value("dataset_dir")) == "ONLINE":
        return Source(path=name, key=key)
    if info is None:
        draft.refuse(key, f"no {FILE} was found: give --dataset-info FILE, or name the files in data.path")
        return Source(path=name, key=key)
    file, entries = info
    entry = entries.get(name)
    if not isinstance(entry, dict):
        draft.refuse(key, f"{name} is not in {file}")
        return Source(path=name, key=key)
    found = Source(path=_place(draft, name, entry, file.parent, key), key=key)
    _keys(draft, found, name, entry)
    _format(draft, found, name, entry, stage)
    return found


def _place(draft: Draft, name: str, entry: Mapping[str, Any], folder: Path, key: str) -> str:
    if entry.get("hf_hub_url"):
        return str(entry["hf_hub_url"])
    if entry.get("file_name"):
        return str(folder / str(entry["file_name"]))
    kind = next((kind for kind in ("ms_hub_url", "om_hub_url", "script_url", "cloud_file_name") if entry.get(kind)), "")
    draft.refuse(key, f"{name} is loaded by {kind or 'nothing known'}; download it and name the file")
    return str(entry.get(kind, name))


def _keys(draft: Draft, found: Source, name: str, entry: Mapping[str, Any]) -> None:
    for setting, theirs in (("subset", "subset"), ("max_rows", "num_samples")):
        if entry.get(theirs) is not None:
            found.shared[setting] = (entry[theirs], found.key)
    if entry.get("split", "train") != "train":
        found.shared["split"] = (str(entry["split"]), found.key)
    if entry.get("num_samples"):
        draft.tell(found.key, "approximated", "data.max_rows", note=f"{name}: the first rows, not a random choice")
    if entry.get("folder"):
        draft.refuse(found.key, f"{name}: `folder` of a Hub data set; name its files in data.path")
    for unknown in [known for known in entry if known not in KNOWN]:
        draft.refuse(found.key, f"{name}: unknown key {unknown} in {FILE}")


def _format(draft: Draft, found: Source, name: str, entry: Mapping[str, Any], stage: str) -> None:
    columns: dict[str, Any] = entry.get("columns") or {}
    formatting = entry.get("formatting", "alpaca")
    if media := [kind for kind in MEDIA if columns.get(kind)]:
        draft.refuse(found.key, f"{name} has {', '.join(media)}; only text is learned")
    if formatting not in ("alpaca", "sharegpt", "openai"):
        draft.refuse(found.key, f"{name}: there is no formatting {formatting}")
        return
    if formatting == "alpaca":
        _alpaca(found, entry, columns, stage)
    else:
        _turns(draft, found, name, entry, columns)
    for kind in ("system", "tools"):
        if columns.get(kind) and columns[kind] != kind:
            found.columns[kind] = str(columns[kind])


def _alpaca(found: Source, entry: Mapping[str, Any], columns: Mapping[str, Any], stage: str) -> None:
    prompt, response = columns.get("prompt", "instruction"), columns.get("response", "output")
    if not columns:
        prompt, response = "instruction", "output"
    if stage == "pt":
        found.format, found.columns = "text", renamed({"text": prompt}, {})
    elif entry.get("ranking"):
        found.format = "preference"
        found.columns = renamed({kind: columns.get(kind, kind) for kind in ("chosen", "rejected")}, {})
        found.columns |= renamed({"prompt": prompt}, {"prompt": "instruction"})
        found.about = "question and input are joined" if columns.get("query") else ""
    elif columns.get("kto_tag"):
        found.format = "unpaired-preference"
        named = {"prompt": prompt, "completion": response, "label": columns["kto_tag"]}
        found.columns = renamed(named, {"prompt": "instruction", "completion": "output"})
    else:
        found.format = "alpaca"
        named = {ours: columns.get(theirs, ours if not columns else None) for theirs, ours in COLUMNS.items()}
        named["history"] = columns.get("history")
        found.columns = renamed(named, {})


def _turns(draft: Draft, found: Source, name: str, entry: Mapping[str, Any], columns: Mapping[str, Any]) -> None:
    found.format = "preference" if entry.get("ranking") else "sharegpt"
    messages = str(columns.get("messages", "conversations"))
    if entry.get("ranking"):
        named = {"prompt": messages, "chosen": columns.get("chosen"), "rejected": columns.get("rejected")}
        found.columns = renamed(named, {"prompt": "conversations"})
    elif columns.get("kto_tag"):
        found.format = "unpaired-preference"
        found.columns = renamed({"label": columns["kto_tag"], "messages": messages}, {"messages": "conversations"})
    elif messages in ("messages", "conversations"):
        found.format = "messages" if messages == "messages" else "sharegpt"
    else:
        found.columns = {"conversations": messages}
    tags: dict[str, Any] = entry.get("tags") or {}
    for tag, known in (("role_tag", ROLE_KEYS), ("content_tag", CONTENT_KEYS)):
        if tags.get(tag) and tags[tag] not in known:
            found.columns[tag.removesuffix("_tag")] = str(tags[tag])
    for tag, (role, default) in TAGS.items():
        if tags.get(tag, default) not in ROLES[role]:
            draft.refuse(found.key, f"{name}: {tag} {tags[tag]} is not a known name of the {role}; rename it")
