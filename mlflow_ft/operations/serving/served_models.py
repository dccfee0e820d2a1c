"""What `serve` and `chat` answer with: a model by any of its names, adapters on one base, a model beside its base."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlflow_ft.config.schema import ModelSection
from mlflow_ft.errors import ConfigError, ModelError, RefusedError
from mlflow_ft.operations.merging import adapters
from mlflow_ft.progress import Progress
from mlflow_ft.stages import init_from
from mlflow_ft.values import MLFLOW_URIS, BaseModel

if TYPE_CHECKING:
    from mlflow_ft.engine.serving.loaded_models import AdapterFolder, Served

TUNED = "tuned"
FORMS = "NAME@alias, NAME/3, models:/..., runs:/RUN_ID/..., a folder, or a model on the Hub (owner/name)"
SAME = ("quantization", "dtype")
"""Of what two adapters say of their base, all that must be equal beside its weights."""


def uri_of(asked: str) -> str:
    """`NAME@alias` and `NAME/3` as the registry's URIs; any other name, and that of a folder, as it is."""
    registered = re.fullmatch(r"[^/:]+(@[^/:@]+|/\d+)", asked)
    return f"models:/{asked}" if registered and not Path(asked).expanduser().exists() else asked


def find(asked: str, progress: Progress) -> init_from.Start:
    """The folder of a model, and of an adapter which base it belongs to.

    Raises:
        ModelError: there is no such model. TrackingError: the tracking server does not answer.
    """
    from mlflow_ft import tracking
    from mlflow_ft.engine import hub

    uri = uri_of(asked)
    if uri.startswith(MLFLOW_URIS):
        tracking.check_server()
        if re.fullmatch(r"runs:/[^/]+/?", uri):
            run = uri.rstrip("/")
            raise ConfigError(f"{asked} is a run", hint=f"name what it logged: {run}/merged or {run}/adapter")
        return init_from.read(uri, setting="the model")
    if Path(uri).expanduser().exists():
        return init_from.read(uri, setting="the model")
    if uri in hub.SHORT_NAMES or re.fullmatch(r"[\w.-]+/[\w.-]+", uri):
        found = hub.find(ModelSection(name=uri), progress)
        return init_from.Start(uri=f"{found.name_or_path}@{found.revision}", folder=found.path, base=None)
    raise ModelError(f"{asked!r} is no model that is known here", hint=f"write {FORMS}")


def alone(asked: str, *, base: str | None, progress: Progress) -> Served:
    """One model, by the name that was asked for."""
    from mlflow_ft.engine.serving import loaded_models

    start = find(asked, progress)
    return loaded_models.Served({asked: _load(start, base=base, progress=progress)})


def together(named: Mapping[str, str], *, base: str | None, progress: Progress) -> Served:
    """Adapters of one base, by their names, and the base.

    Raises:
        ConfigError: they cannot share one. ModelError: there is no such adapter or base, or it is another one.
        RefusedError: together they are not what they are alone.
    """
    from mlflow_ft.engine.serving import loaded_models

    starts = {name: find(asked, progress) for name, asked in named.items()}
    notes = {name: _sharable(name, start) for name, start in starts.items()}
    bases = {name: _base_of(start, base, progress) for name, start in starts.items()}
    first = next(iter(starts))
    for name, note in notes.items():
        _check_same(first, name, notes[first], note, (bases[first], bases[name]))
    folders = {name: _with_tokenizer(start, bases[name].path) for name, start in starts.items()}
    with progress.bar(f"load {bases[first].name} with {', '.join(starts)}"):
        return loaded_models.share(bases[first].path, notes[first], folders, say=progress.say)


def compared(asked: str, *, base: str | None, progress: Progress) -> Served:
    """A model as `tuned`, and what it was before its training as `base`: of an adapter in the same memory.

    Raises:
        ModelError: it is not known what it was trained from.
    """
    from mlflow_ft.engine.serving import loaded_models

    start = find(asked, progress)
    if start.base is not None:
        found = _base_of(start, base, progress)
        try:
            note = _sharable(TUNED, start)
            with progress.bar(f"load {found.name} with {start.uri}"):
                adapter = {TUNED: _with_tokenizer(start, found.path)}
                return loaded_models.share(found.path, note, adapter, say=progress.say)
        except (ConfigError, RefusedError) as error:
            progress.say(f"the base is loaded once more: {error.message}")
    else:
        found = _before(start, base, progress)
    tuned = _load(start, base=base, progress=progress)
    if tuned.scores:  # there is nothing to compare: whoever asks is told so
        return loaded_models.Served({TUNED: tuned})
    return loaded_models.Served({TUNED: tuned, loaded_models.BASE: _load_base(found, start, tuned, progress)})


def _load(start: init_from.Start, *, base: str | None, progress: Progress) -> Any:
    """A model by itself, ready to answer."""
    from mlflow_ft.engine import hub
    from mlflow_ft.engine.models import generation, loading
    from mlflow_ft.engine.serving import chat_model

    chat = chat_model.ChatModel()
    with progress.bar(f"load {start.uri}"), hub.quiet_transformers():
        if start.base is None:
            chat.adopt(chat_model.load_whole(start.folder, **generation.for_loading(start.folder)), start.folder)
        else:
            found = _base_of(start, base, progress)
            held = chat_model.load_base(str(found.path), _note(start), **generation.for_loading(found.path))
            module = loading.with_adapter(held, start.folder, say=progress.say)
            chat.adopt(module, _with_tokenizer(start, found.path).tokenizer)
    if not chat.tokenizer.chat_template:
        raise ModelError(
            f"{start.uri} has no chat template, so that it cannot be asked in messages",
            hint="serve what was trained, which has one",
        )
    return chat


def _load_base(found: BaseModel, start: init_from.Start, tuned: Any, progress: Progress) -> Any:
    """The base as a model of its own. It is asked in the words of the tuned one, as it was when both were scored."""
    from mlflow_ft.engine import hub
    from mlflow_ft.engine.models import generation
    from mlflow_ft.engine.serving import chat_model

    options = generation.for_loading(found.path)
    with progress.bar(f"load {found.name}"), hub.quiet_transformers():
        note = {} if start.base is None else _note(start)
        held = (
            chat_model.load_base(str(found.path), note, **options)
            if note
            else chat_model.load_whole(found.path, **options)
        )
    chat = chat_model.ChatModel()
    chat.adopt(held, found.path)
    if len(tuned.tokenizer) <= held.get_input_embeddings().weight.shape[0]:
        chat.tokenizer = tuned.tokenizer
    else:  # the tuned one has learned new tokens
        chat.tokenizer.chat_template = tuned.tokenizer.chat_template
    chat.end_tokens = list(dict.fromkeys((*chat.end_tokens, *tuned.end_tokens)))
    return chat


def _base_of(start: init_from.Start, base: str | None, progress: Progress) -> BaseModel:
    from mlflow_ft.engine.models import added_tokens

    asked = adapters.MergeRequest(adapter=start.uri, out=Path(), base=uri_of(base) if base else None)
    found = adapters.base_of(asked, adapters.config_of(asked, start), start, progress)
    if start.base is not None and (start.folder / init_from.ADAPTER_FILE).is_file():
        from mlflow_ft.engine.models import skeleton

        added_tokens.check(start.folder, found, pads=False)
        skeleton.check(found.path, start.folder, task=found.task)
    return found


def _before(start: init_from.Start, base: str | None, progress: Progress) -> BaseModel:
    """What a whole model was trained from: by its MLmodel file where MLflow has it, by merge.json where it was merged.

    Raises:
        ModelError: neither says it.
    """
    note = _origin(start.folder)
    if not base and not note.get("name_or_path"):
        raise ModelError(f"{start.uri} does not say which model it was before", hint="name it with --base")
    return _base_of(init_from.Start(uri=start.uri, folder=start.folder, base={} if base else note), base, progress)


def _origin(folder: Path) -> Mapping[str, Any]:
    import yaml

    if (folder / "merge.json").is_file():
        return dict(json.loads((folder / "merge.json").read_text(encoding="utf-8"))["base"])
    file = folder.parent.parent / "MLmodel"
    said = (yaml.safe_load(file.read_text(encoding="utf-8")).get("metadata") or {}) if file.is_file() else {}
    return {"name_or_path": said.get("mlflow_ft.base_model"), "revision": said.get("mlflow_ft.base_revision")}


def _note(start: init_from.Start) -> dict[str, Any]:
    """How the adapter's base is held; where PEFT alone wrote the adapter, as a whole model is."""
    from mlflow_ft.engine.serving import chat_model

    dtype = str(chat_model.compute_dtype()).removeprefix("torch.")
    return {"dtype": dtype, "quantization": None, "revision": None, **(start.base or {})}


def _sharable(name: str, start: init_from.Start) -> dict[str, Any]:
    """How its base is held, of an adapter that leaves the base's own weights to others.

    Raises:
        ConfigError: it is a whole model, a reward model, or brings tokens of its own.
    """
    if start.base is None:
        raise ConfigError(f"{name}={start.uri} is a whole model, not an adapter", hint="serve it by itself")
    note = _note(start)
    if note.get("task") == "score":
        raise ConfigError(f"{name}={start.uri} scores answers, it does not give any", hint="serve it by itself")
    if note.get("tokens"):
        raise ConfigError(f"{name}={start.uri} brings tokens that its base does not have", hint="serve it by itself")
    return note


def _check_same(
    first: str, other: str, one: Mapping[str, Any], two: Mapping[str, Any], bases: Sequence[BaseModel]
) -> None:
    """Raise ConfigError where two adapters belong to different weights, or to one model held in different ways."""
    if bases[0].revision != bases[1].revision:
        told = f"{bases[0].name} and {bases[1].name}"
        raise ConfigError(f"adapters {first!r} and {other!r} belong to different base models: {told}")
    for key in SAME:
        if one.get(key) != two.get(key):
            raise ConfigError(
                f"adapters {first!r} and {other!r} were trained on their base held in different ways: {key} is "
                f"{_short(one.get(key))} and {_short(two.get(key))}",
                hint="serve them by themselves, or merged",
            )


def _short(value: Any) -> str:
    if isinstance(value, Mapping):
        return "int8" if value.get("load_in_8bit") else str(value.get("bnb_4bit_quant_type") or value["quant_method"])
    return str(value or "none")


def _with_tokenizer(start: init_from.Start, base: Path) -> AdapterFolder:
    from mlflow_ft.engine.serving.loaded_models import AdapterFolder

    own = any((start.folder / name).is_file() for name in ("tokenizer_config.json", "tokenizer.json"))
    return AdapterFolder(weights=start.folder, tokenizer=start.folder if own else base)
