"""Axolotl's chat templates: one for all data, and others for single data sets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from mlflow_ft.operations.importing import chat_templates
from mlflow_ft.operations.importing.draft import Draft, Key
from mlflow_ft.operations.importing.sources import Source

SETTING = "data.chat_template"
NAME, TEXT = "chat_template", "chat_template_jinja"
"""The keys of a template by its name, and of one that is written out, which is read where the first says so."""
BY_TEXT = (None, "jinja")
OTHERS = "all data is written by one chat template here; data sets with others are trained one after another"


def read(draft: Draft, found: Source, keys: Mapping[str, Key]) -> None:
    """The template of a single data set, which types with prompts of their own do not read."""
    given = {leaf: keys[leaf].name for leaf in (NAME, TEXT) if leaf in keys and keys[leaf].value}
    is_described = any(leaf.startswith("type.") for leaf in keys)
    if is_described or ("type" in keys and not str(keys["type"].value).startswith(NAME)):
        for name in given.values():
            draft.skip(name, f"only the type {NAME} reads it")
    else:
        found.template = _asked(draft, given)
    for leaf in {NAME, TEXT} & set(keys) - set(given):
        draft.skip(keys[leaf].name, "empty: the template of all data applies")


def written(draft: Draft, sources: Sequence[Source]) -> None:
    """The template of all data; that of single data sets where all agree on it, else it is refused."""
    shared = _asked(draft, {leaf: leaf for leaf in (NAME, TEXT) if draft.has(leaf)})
    keys = [source.template or shared for source in sources if source.format != "text"]
    by_template = {_template(draft, key): key for key in keys}
    if SETTING in draft.settings:  # of a type with a prompt of its own
        by_template.setdefault(draft.settings[SETTING].value, "")
    chosen = next(iter(by_template.values())) if len(by_template) == 1 else shared
    _set(draft, chosen)
    for key in {source.template for source in sources} - {"", chosen}:
        told = draft.told.get(chosen)
        if told and _template(draft, key) == _template(draft, chosen):
            draft.tell(key, told.status, *told.paths, note=told.note)
        else:
            draft.refuse(key, OTHERS)
    if shared != chosen:
        draft.skip(shared, "every data set names its own template")


def _asked(draft: Draft, keys: Mapping[str, str]) -> str:
    """The key that is read, of a name and a text; "" where there is none."""
    name, text = keys.get(NAME, ""), keys.get(TEXT, "")
    if not (name and text):
        return name or text
    read, other = (text, name) if draft.value(name) in BY_TEXT else (name, text)
    draft.skip(other, f"{read} is the template")
    return read


def _template(draft: Draft, key: str) -> str:
    """What tells a template from others: its text where that is known, else its name; "" for the tokenizer's own."""
    value = str(draft.value(key)) if key else ""
    return chat_templates.WRITTEN[draft.table.tool].get(value, value)


def _set(draft: Draft, key: str) -> None:
    if key.endswith(TEXT):
        draft.set(SETTING, draft.value(key), key)
    elif key:
        chat_templates.named(draft, key)
