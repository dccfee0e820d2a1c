"""From the keys of a tool to our settings, by the tool's table and rules; what does not fit is taken back and told."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mlflow_ft.config import Given, resolve
from mlflow_ft.config.explain import FIELDS, shown
from mlflow_ft.errors import ConfigError
from mlflow_ft.operations.importing.converters import CONVERSIONS, ImpossibleError, text_of
from mlflow_ft.operations.importing.draft import OPTIONS, Draft, Key, Setting, Status, Told, truth
from mlflow_ft.operations.importing.reading import Read
from mlflow_ft.operations.importing.table import Entry, Table
from mlflow_ft.registry import Registry

Rule = Callable[[Draft], None]
BY_LOSS = ("early_stopping", "load_best")
WITHOUT_ADAPTER = "not used without an adapter"
OF_ADAPTERS = {
    "none": {"kind"},
    "oft": {"kind", "target_modules", "modules_to_save", "options", "layers_to_transform"},
    "ia3": {"kind", "target_modules", "modules_to_save", "options"},
    "prompt": {"kind", "num_virtual_tokens", "init_text", "options"},
    "prefix": {"kind", "num_virtual_tokens", "options"},
    "ptuning": {"kind", "num_virtual_tokens", "options"},
}
"""By adapter, the fields of its section that it uses; the others use those of LoRA."""


@dataclass(frozen=True, kw_only=True)
class Imported:
    """Our configuration, and what became of each key of the tool's."""

    table: Table
    method: str
    settings: dict[str, Setting]
    told: list[Told]
    notes: list[str]
    """What differs as a whole."""

    def those(self, *statuses: str) -> list[Told]:
        """The keys with one of these verdicts."""
        return [told for told in self.told if told.status in statuses]


def translate(
    read: Read, table: Table, rules: Sequence[Rule], registry: Registry, extra: dict[str, str] | None = None
) -> Imported:
    """Apply the rules, then the table, then the tool's defaults, and check what came of it."""
    read = replace(read, keys=[_switched_off(key, table) for key in read.keys])
    given = {key.name: key for key in read.keys}
    draft = Draft(table=table, given=given, folder=read.folder, extra=extra or {})
    if read.command:
        draft.extra.setdefault("command", " ".join(read.command))
    draft.extra.setdefault("file", read.name)
    for rule in rules:
        rule(draft)
    for key in sorted(read.keys, key=lambda key: _kind(table, key) == "option"):  # after what they belong to
        _by_table(draft, key)
    _defaults(draft)
    draft.settings = _in_order(_gathered(draft))
    _take_back_unused(draft, registry)
    _take_back_refused(draft, registry)
    overridden = [
        Told(key=key, status="not needed", note=f"given again at {given[key.name].place}, which wins")
        for key in read.overridden
    ]
    if "data.path" not in draft.settings:
        draft.notes.append("no data is named, so that the built-in demo would be learned: add --data FILE")
    if "model.name" not in draft.settings:
        draft.notes.append("no model is named, so that the built-in one would be trained: add --model MODEL")
    told = [*(draft.told[key.name] for key in read.keys), *overridden]
    return Imported(table=table, method=draft.method, settings=draft.settings, told=told, notes=draft.notes)


def _kind(table: Table, key: Key) -> str:
    entry = table.entry(key.name)
    return entry.kind if entry else ""


def _switched_off(key: Key, table: Table) -> Key:
    """`--no_gradient_checkpointing` is gradient_checkpointing false, as transformers reads it."""
    name = key.name.removeprefix("no_")
    if name == key.name or key.value is not True or table.entry(key.name) or not table.entry(name):
        return key
    return replace(key, name=name, value=False)


def _by_table(draft: Draft, key: Key) -> None:
    if key.name in draft.told:
        return
    entry = draft.table.entry(key.name)
    if entry is None:
        near = draft.table.near(key.name)
        hint = f"did you mean {near}?" if near else f"a newer version than {draft.table.version}, or a mistake"
        draft.tell(key.name, "unknown", note=hint)
    elif key.value is None or key.value in ([], {}):
        draft.skip(key.name, f"empty: {draft.table.title}'s default applies")
    elif entry.kind == "mapped":
        _map(draft, key, entry)
    elif entry.kind in ("refused", "approximated"):
        is_off = _is_off(entry, key.value)
        verdict: Status = "not needed" if is_off else "refused" if entry.kind == "refused" else "approximated"
        draft.tell(key.name, verdict, note="off, as here" if is_off else entry.about)
    elif entry.kind == "not needed":
        draft.skip(key.name, entry.about)
    elif entry.kind == "option":
        _option(draft, key, entry)
    else:
        _unread(draft, key)


def _is_off(entry: Entry, value: Any) -> bool:
    """Whether the value of a key without a setting changes nothing."""
    return value == entry.default or not (truth(value) or entry.never_off or entry.default is True)


def _unread(draft: Draft, key: Key) -> None:
    """A key that its rule had no use for: the value has another form than the tool's own."""
    if truth(key.value):
        draft.refuse(key.name, f"{shown(key.value)} is not read here")
    else:
        draft.skip(key.name, "off, as here")


def _option(draft: Draft, key: Key, entry: Entry) -> None:
    master = draft.told.get(entry.of)
    is_on = draft.on(entry.of) or bool(draft.below(entry.of))
    if is_on and (master is None or master.status in ("refused", "unknown")):
        draft.refuse(key.name, f"part of {entry.of}, which is refused")
    else:
        draft.skip(key.name, f"only read together with {entry.of}")


def _map(draft: Draft, key: Key, entry: Entry) -> None:
    try:
        value = CONVERSIONS[entry.how](key.value)
    except ImpossibleError as error:
        draft.refuse(key.name, str(error))
        return
    except (TypeError, ValueError):
        draft.refuse(key.name, f"the value {key.value!r} cannot be read")
        return
    draft.set(entry.to, value, key.name, about=entry.about)


def _defaults(draft: Draft) -> None:
    """The tool's defaults of keys that are not given."""
    for name, entry in draft.table.entries.items():
        default = draft.table.default(name, draft.method)
        if entry.kind == "mapped" and default is not None and not draft.has(name) and entry.to not in draft.settings:
            draft.set(entry.to, CONVERSIONS[entry.how](default), name)


def _gathered(draft: Draft) -> dict[str, Setting]:
    """`objective.options.NAME` become one mapping."""
    gathered: dict[str, Setting] = {}
    for path, setting in draft.settings.items():
        whole = next((option for option in OPTIONS if path.startswith(f"{option}.")), None)
        if whole is None:
            gathered[path] = setting
            continue
        before = gathered.get(whole, Setting(value={}))
        name = path.removeprefix(f"{whole}.")
        gathered[whole] = Setting(
            value={**before.value, name: text_of(setting.value)},
            keys=tuple(dict.fromkeys((*before.keys, *setting.keys))),
            note="; ".join(filter(None, (before.note, setting.note))),
        )
    return gathered


def _in_order(settings: dict[str, Setting]) -> dict[str, Setting]:
    return {path: settings[path] for path in FIELDS if path in settings}


def _take_back_unused(draft: Draft, registry: Registry) -> None:
    """Settings that the method or the adapter does not use, which training would refuse."""
    trainer = registry.trainers[draft.method]
    kind = draft.settings.get("adapter.kind", Setting(value=trainer.defaults.get("adapter.kind", "none"))).value
    used = OF_ADAPTERS.get(kind)
    for path in list(draft.settings):
        section, _, leaf = path.partition(".")
        if section == "adapter" and used is not None and leaf not in used:
            draft.drop(path, WITHOUT_ADAPTER if kind == "none" else f"not used by the adapter {kind}", refused=False)
        elif section in ("objective", "rollout") and trainer.settings is not None and leaf not in trainer.settings:
            draft.drop(path, f"not used by the method {draft.method}", refused=leaf == "options")
        elif leaf in BY_LOSS and not trainer.held_out_loss:
            draft.drop(path, f"not available for the method {draft.method}, which has no held-out loss", refused=True)


def _take_back_refused(draft: Draft, registry: Registry) -> None:
    """Settings whose value our configuration does not take."""
    for path, setting in list(draft.settings.items()):
        problem = _problem(draft.method, path, setting.value)
        if problem:
            draft.drop(path, problem, refused=True)
    resolve(draft.method, defaults=registry.trainers[draft.method].defaults, file=as_given(draft.settings))


def _problem(method: str, path: str, value: Any) -> str:
    try:
        resolve(method, defaults={}, file=as_given({path: Setting(value=value)}))
    except ConfigError as error:
        problem = error.problems[0] if error.problems else None
        return f"{problem.message}{f'; {problem.hint}' if problem.hint else ''}" if problem else error.message
    return ""


def as_given(settings: dict[str, Setting], *, place: str = "the import") -> list[Given]:
    """The settings as a file would give them."""
    return [Given(key=path, value=_plain(setting.value), place=place) for path, setting in settings.items()]


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, Path) else value
