"""Axolotl's data entries: where rows are, of which type, and what is learned of them."""

from __future__ import annotations

import difflib
import re

from mlflow_ft.operations.importing import axolotl_templates, chat_templates, training_arguments
from mlflow_ft.operations.importing.axolotl_types import (
    DICTIONARY,
    LEARN_KEYS,
    LEAVES,
    LOADERS,
    MESSAGES,
    NO_EFFECT,
    PREFERENCES,
    REFUSED,
    SIMPLE,
    THOUGHTS,
    TYPES,
    WORDS,
    RowType,
)
from mlflow_ft.operations.importing.draft import Draft, Key, names, truth
from mlflow_ft.operations.importing.sources import (
    CONTENT_KEYS,
    ROLE_KEYS,
    ROLES,
    WHOLE,
    Source,
    put,
    read_split,
    renamed,
)


def rows(draft: Draft) -> None:
    """Training and held-out rows."""
    sections = [name for name in ("datasets", "pretraining_dataset") if draft.below(name) or draft.has(name)]
    sources = [source for section in sections for source in _entries(draft, section)]
    for source in sources if sections == ["pretraining_dataset"] else ():
        source.about = "streamed there; here it is read whole, unless data.max_rows limits it"
    put(draft, sources)
    held_out = _entries(draft, "test_datasets")
    size = draft.number("val_set_size") or 0
    if held_out:
        _held_out(draft, sources, held_out)
        draft.skip("val_set_size", "test_datasets are the held-out rows")
    elif size:
        draft.set("data.test_size", size, "val_set_size")
    else:
        about = "it holds out nothing; one row is the least here, and too few to compare models: give data.eval_path"
        draft.set("data.test_size", training_arguments.LEAST_HELD_OUT, "val_set_size", about=about)
    if draft.on("train_on_inputs"):
        draft.refuse("train_on_inputs", "only what the assistant says is learned")
    else:
        draft.skip("train_on_inputs", "only what the assistant says is learned")
    axolotl_templates.written(draft, [*sources, *held_out])
    if draft.on("dataset_exact_deduplication"):
        note = "mlflow-ft prepare --fix removes exact duplicates; the check exact-duplicate reports them"
        draft.tell("dataset_exact_deduplication", "approximated", note=note)
    else:
        draft.skip("dataset_exact_deduplication", "off")
    if draft.has("min_sample_len"):
        draft.refuse("min_sample_len", "short rows are kept; remove them from the file")


def _held_out(draft: Draft, sources: list[Source], held_out: list[Source]) -> None:
    first = held_out[0]
    draft.set("data.eval_path", first.path, first.key)
    for other in held_out[1:]:
        draft.refuse(other.key, "one source of held-out rows: put the files together")
    read_split(draft, first)
    train = {"split": (WHOLE, "")} | (sources[0].shared if sources else {})
    for setting, (value, key) in first.shared.items():
        if train.get(setting, (None, ""))[0] == value:
            draft.tell(key, "mapped", f"data.{setting}")
        else:
            draft.refuse(key, f"held-out rows share data.{setting} with the training rows; write them to a file")


def _entries(draft: Draft, section: str) -> list[Source]:
    """The entries of a section; one that is not a mapping is the name of a data set."""
    plain = draft.value(section)
    if isinstance(plain, str):
        draft.tell(section, "mapped", "data.path")
        return [Source(path=plain, key=section)]
    groups: dict[str, dict[str, Key]] = {}
    for key in draft.below(section):
        entry, _, leaf = key.name.partition("].")
        groups.setdefault(f"{entry}]", {})[leaf or "path"] = key
    return [_entry(draft, entry, keys) for entry, keys in groups.items()]


def _entry(draft: Draft, entry: str, keys: dict[str, Key]) -> Source:
    path = keys.get("path")
    found = Source(path=str(path.value) if path else "", key=path.name if path else f"{entry}.path")
    files = names(keys["data_files"].value) if "data_files" in keys else []
    if files and (found.path in LOADERS or (len(files) == 1 and not found.path)):
        found.path, found.key = files[0], keys["data_files"].name
        draft.tell(f"{entry}.path", "mapped", "data.path")
        if len(files) > 1:
            draft.refuse(found.key, f"name the further files in data.path: {', '.join(files[1:])}")
    elif files:
        draft.refuse(keys["data_files"].name, f"files of {found.path} are not chosen; name them in data.path")
    asked = keys.get("type")
    _type(draft, found, str(asked.value) if asked else "", keys, entry)
    if "split" in keys and keys["split"].value:
        found.shared["split"] = (str(keys["split"].value), keys["split"].name)
    axolotl_templates.read(draft, found, keys)
    for leaf, key in keys.items():
        _field(draft, found, leaf, key)
        known = leaf in LEAVES or leaf.partition(".")[0] in ("type", "roles", "message_property_mappings")
        if not known:
            near = difflib.get_close_matches(leaf, LEAVES, n=1, cutoff=0.7)
            draft.tell(key.name, "unknown", note=f"did you mean {near[0]}?" if near else "not a key of a data set")
    return found


def _type(draft: Draft, found: Source, name: str, keys: dict[str, Key], entry: str) -> None:
    described = {leaf.removeprefix("type."): key for leaf, key in keys.items() if leaf.startswith("type.")}
    if described:
        _described(draft, found, described)
    elif draft.method in ("dpo", "kto", "orpo", "simpo", "reward", "grpo"):
        _preference(draft, found, name, keys, entry)
    elif name in TYPES:
        _known(draft, found, TYPES[name], keys, entry)
    elif name:
        note = f"the type {name} is not known; the format is recognised by columns, or a plugin adds it"
        draft.refuse(f"{entry}.type", note)
    for leaf in ("field_messages", "field", "text_column"):
        if leaf in keys:
            draft.tell(keys[leaf].name, "mapped", "data.columns" if found.columns else "data.format")


def _known(draft: Draft, found: Source, known: RowType, keys: dict[str, Key], entry: str) -> None:
    found.format, found.about = known.format, known.about
    columns = dict(known.columns)
    field = next((keys[leaf].value for leaf in ("field", "text_column") if leaf in keys), None)
    if field and known.format == "text":
        columns["text"] = str(field)
    messages = keys["field_messages"].value if "field_messages" in keys else None
    if messages in MESSAGES:
        found.format = "sharegpt" if messages == "conversations" else "messages"
    elif messages:
        columns["messages"] = str(messages)
    found.columns = renamed(columns, {"text": "text"})
    draft.tell(f"{entry}.type", "approximated" if known.about else "mapped", "data.format", note=known.about)
    if known.template and not draft.has("chat_template") and not draft.has("chat_template_jinja"):
        template = chat_templates.WRITTEN["axolotl"][known.template]
        draft.set("data.chat_template", template, f"{entry}.type", about=f"{known.template}'s prompt, written out")


def _preference(draft: Draft, found: Source, name: str, keys: dict[str, Key], entry: str) -> None:
    last = re.split(r"[.:]", name)[-1] if "." in name else ""
    if draft.method == "grpo":
        note = "rows are prompts; the function that makes them of rows is not called: give rows with a prompt"
        draft.refuse(f"{entry}.type", note)
        return
    if last not in PREFERENCES and name:
        draft.refuse(f"{entry}.type", f"the type {name} is not known; columns are recognised: prompt, chosen, rejected")
        return
    columns = PREFERENCES.get(last, {}) | {"prompt": PREFERENCES.get(last, {}).get("prompt", "prompt")}
    for leaf, ours in (("field_messages", "prompt"), ("field_chosen", "chosen"), ("field_rejected", "rejected")):
        if leaf in keys:
            columns[ours] = str(keys[leaf].value)
            draft.tell(keys[leaf].name, "mapped", "data.columns")
    found.format = "unpaired-preference" if draft.method == "kto" else "preference"
    found.columns = {ours: theirs for ours, theirs in columns.items() if ours != theirs}
    about = "" if "chat_template" in name or not name else WORDS
    draft.tell(f"{entry}.type", "approximated" if about else "mapped", "data.format", note=about)


def _described(draft: Draft, found: Source, described: dict[str, Key]) -> None:
    """A type that the user describes: fields, and the words around them."""
    columns = {DICTIONARY[leaf]: str(key.value) for leaf, key in described.items() if leaf in DICTIONARY and key.value}
    kinds = {"chosen": "preference", "rejected": "preference", "completion": "unpaired-preference"}
    found.format = next((kinds[name] for name in kinds if name in columns), "alpaca")
    found.columns = {ours: theirs for ours, theirs in columns.items() if ours != theirs}
    for leaf, key in described.items():
        if leaf in DICTIONARY:
            draft.tell(key.name, "mapped", "data.columns")
        elif leaf == "system_prompt" and key.value:
            draft.set("data.system", str(key.value), key.name)
        elif leaf in ("format", "no_input_format") and key.value:
            _words(draft, described, leaf, key)
        elif leaf == "system_format":
            draft.tell(
                key.name, "approximated", "data.chat_template", note="the chat template writes the system prompt"
            )
        else:
            draft.tell(key.name, "approximated" if key.value else "not needed", note=WORDS)


def _words(draft: Draft, described: dict[str, Key], leaf: str, key: Key) -> None:
    """The words around a question as a chat template, where question and input are one."""
    whole = described.get("no_input_format") or described["format"]
    text = str(whole.value)
    if (leaf == "format" and "no_input_format" in described) or text.count("{instruction}") + text.count(
        "{input}"
    ) != 1:
        draft.tell(
            key.name,
            "approximated",
            "data.chat_template",
            note="question and input are one turn, joined by an empty line",
        )
        return
    before, _, after = text.replace("{input}", "{instruction}").partition("{instruction}")
    quoted = [part.replace("\\", "\\\\").replace("'", "\\'").replace("\n", "\\n") for part in (before, after)]
    template = (
        "{{ bos_token }}{% for message in messages %}"
        "{% if message['role'] == 'system' %}{{ message['content'] + '\\n' }}"
        f"{{% elif message['role'] == 'user' %}}{{{{ '{quoted[0]}' + message['content'] + '{quoted[1]}' }}}}"
        "{% else %}{{ message['content'] + eos_token }}{% endif %}{% endfor %}"
    )
    draft.set("data.chat_template", template, key.name, about="written out; the answer ends with eos_token")


def _field(draft: Draft, found: Source, leaf: str, key: Key) -> None:
    """What is left of an entry."""
    if leaf in SIMPLE and key.value:
        found.shared[SIMPLE[leaf]] = (key.value, key.name)
    elif leaf in REFUSED and truth(key.value):
        draft.refuse(key.name, REFUSED[leaf])
    elif leaf in NO_EFFECT or leaf in REFUSED:
        draft.skip(key.name, NO_EFFECT.get(leaf) or "off, or the same for all data")
    elif leaf.startswith(("roles.", "message_property_mappings.", "message_field_")):
        _turns(draft, found, leaf, key)
    elif leaf == "roles_to_train":
        _learned(draft, key)
    elif leaf == "train_on_eos":
        known = key.value in (None, "turn")
        draft.tell(
            key.name, "mapped" if known else "approximated", note="" if known else "each turn's end is learned with it"
        )
    elif leaf in ("field_tools", "field_thinking", "template_thinking_key", "field_human", "field_model"):
        known = (leaf == "field_tools" and key.value == "tools") or key.value in THOUGHTS
        note = "" if known else f"rename it in the file: {'tools' if leaf == 'field_tools' else 'reasoning_content'}"
        draft.tell(key.name, "mapped" if known else "refused", note=note)


def _learned(draft: Draft, key: Key) -> None:
    """Whose turns are learned; none: those that say so themselves."""
    learned = None if key.value is None else names(key.value)
    if learned == []:
        draft.refuse(key.name, "turns without a `train` of their own are learned here; write train: false in each")
    elif all(name in ROLES["assistant"] for name in learned or ()):
        draft.tell(key.name, "mapped")
    else:
        draft.refuse(key.name, "only the assistant's turns are learned")


def _turns(draft: Draft, found: Source, leaf: str, key: Key) -> None:
    """Names of the parts of a turn: read without a setting where they are usual, else renamed."""
    part = leaf.rpartition(".")[2] if "." in leaf else leaf.removeprefix("message_field_")
    known = {"role": ROLE_KEYS, "content": CONTENT_KEYS, "training": LEARN_KEYS}
    if leaf.startswith("roles."):
        unread = [name for name in names(key.value or []) if name not in ROLES.get(part, frozenset())]
        if unread:
            draft.refuse(key.name, f"{', '.join(unread)} is not read as {part}; rename it in the file")
            return
    elif key.value not in known.get(part, {part, None, *THOUGHTS}):
        if part not in known:
            draft.refuse(key.name, f"{key.value} is not read as {part}; rename it in the file")
            return
        found.columns[{"training": "train"}.get(part, part)] = str(key.value)
        draft.tell(key.name, "mapped", "data.columns")
        return
    draft.tell(key.name, "mapped", "data.format", note="read as it is")


def packing(draft: Draft) -> None:
    """Packing, the order of rows, rows that are too long."""
    packs = next((name for name in ("sample_packing", "pretraining_sample_concatenation") if draft.on(name)), None)
    if packs:
        draft.set("objective.packing", True, packs)
    for name in ("sample_packing", "pretraining_sample_concatenation", "batch_flattening"):
        draft.skip(name, "off, or a matter of speed")
    if draft.on("group_by_length"):
        draft.set("objective.options.train_sampling_strategy", "group_by_length", "group_by_length")
    elif draft.on("curriculum_sampling"):
        draft.set("objective.options.train_sampling_strategy", "sequential", "curriculum_sampling")
    draft.skip("group_by_length", "off")
    draft.skip("curriculum_sampling", "off")
    strategy = str(draft.value("excess_length_strategy") or "drop")
    if draft.has("excess_length_strategy") and strategy == "truncate":
        draft.tell("excess_length_strategy", "mapped", "data.max_length")
    else:
        about = f"a longer row is cut at its end; Axolotl would {strategy} it"
        if draft.has("excess_length_strategy"):
            draft.tell("excess_length_strategy", "approximated", "data.max_length", note=about)
        draft.set("data.max_length", draft.number("sequence_len"), "sequence_len", about=about)
    if str(draft.value("torch_compile")).lower() == "true":
        draft.set("training.compile", True, "torch_compile")
    else:
        draft.skip("torch_compile", "off, or as it suits")
