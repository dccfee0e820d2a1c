"""The models of `serve` and `chat`: one model by any of its names, adapters on one base, or a model and its base."""

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
"""The fields, besides the weights, in which the records of two adapters of one base must agree."""


def uri_of(name: str) -> str:
    """`NAME@alias` and `NAME/3` as the registry's URIs; other names and folders unchanged."""
    registered = re.fullmatch(r"[^/:]+(@[^/:@]+|/\d+)", name)
    return f"models:/{name}" if registered and not Path(name).expanduser().exists() else name


def find(name: str, progress: Progress) -> init_from.Start:
    """The folder of a model and, for an adapter, its base.

    Raises:
        ModelError: there is no such model. TrackingError: the tracking server does not answer.
    """
    from mlflow_ft import tracking
    from mlflow_ft.engine import hub

    uri = uri_of(name)
    if uri.startswith(MLFLOW_URIS):
        tracking.check_server()
        if re.fullmatch(r"runs:/[^/]+/?", uri):
            run = uri.rstrip("/")
            raise ConfigError(f"{name} is a run", hint=f"name a model that it logged: {run}/merged or {run}/adapter")
        return init_from.read(uri, setting="the model")
    if Path(uri).expanduser().exists():
        return init_from.read(uri, setting="the model")
    if uri in hub.SHORT_NAMES or re.fullmatch(r"[\w.-]+/[\w.-]+", uri):
        model = hub.find(ModelSection(name=uri), progress)
        return init_from.Start(uri=f"{model.name_or_path}@{model.revision}", folder=model.path, base=None)
    raise ModelError(f"{name!r} is not a known model", hint=f"write {FORMS}")


def alone(name: str, *, base: str | None, progress: Progress) -> Served:
    """One model, under the given name."""
    from mlflow_ft.engine.serving import loaded_models

    start = find(name, progress)
    return loaded_models.Served({name: _load(start, base=base, progress=progress)})


def together(named: Mapping[str, str], *, base: str | None, progress: Progress) -> Served:
    """Adapters of one base, by their names, and the base.

    Raises:
        ConfigError: they cannot share one base. ModelError: there is no such adapter or base, or the base differs.
        RefusedError: together they give different outputs than alone.
    """
    from mlflow_ft.engine.serving import loaded_models

    starts = {name: find(adapter, progress) for name, adapter in named.items()}
    notes = {name: _sharable(name, start) for name, start in starts.items()}
    bases = {name: _base_of(start, base, progress) for name, start in starts.items()}
    first = next(iter(starts))
    for name, note in notes.items():
        _check_same(first, name, notes[first], note, (bases[first], bases[name]))
    folders = {name: _with_tokenizer(start, bases[name].path) for name, start in starts.items()}
    with progress.bar(f"load {bases[first].name} with {', '.join(starts)}"):
        return loaded_models.share(bases[first].path, notes[first], folders, say=progress.say)


def compared(name: str, *, base: str | None, progress: Progress) -> Served:
    """A model as `tuned`, and the model before its training as `base`; an adapter shares the base's memory.

    Raises:
        ModelError: it is not known what it was trained from.
    """
    from mlflow_ft.engine.serving import loaded_models

    start = find(name, progress)
    if start.base is not None:
        model = _base_of(start, base, progress)
        try:
            note = _sharable(TUNED, start)
            with progress.bar(f"load {model.name} with {start.uri}"):
                adapter = {TUNED: _with_tokenizer(start, model.path)}
                return loaded_models.share(model.path, note, adapter, say=progress.say)
        except (ConfigError, RefusedError) as error:
            progress.say(f"the base is loaded a second time: {error.message}")
    else:
        model = _before(start, base, progress)
    tuned = _load(start, base=base, progress=progress)
    if tuned.scores:  # a reward model: the caller reports that there is nothing to compare
        return loaded_models.Served({TUNED: tuned})
    return loaded_models.Served({TUNED: tuned, loaded_models.BASE: _load_base(model, start, tuned, progress)})


def _load(start: init_from.Start, *, base: str | None, progress: Progress) -> Any:
    """One model, ready to answer."""
    from mlflow_ft.engine import hub
    from mlflow_ft.engine.models import generation, loading
    from mlflow_ft.engine.serving import chat_model

    chat = chat_model.ChatModel()
    with progress.bar(f"load {start.uri}"), hub.quiet_transformers():
        if start.base is None:
            chat.adopt(chat_model.load_whole(start.folder, **generation.for_loading(start.folder)), start.folder)
        else:
            model = _base_of(start, base, progress)
            loaded = chat_model.load_base(str(model.path), _note(start), **generation.for_loading(model.path))
            module = loading.with_adapter(loaded, start.folder, say=progress.say)
            chat.adopt(module, _with_tokenizer(start, model.path).tokenizer)
    if not chat.tokenizer.chat_template:
        raise ModelError(
            f"{start.uri} has no chat template, so it cannot answer messages",
            hint="serve the trained model, which has one",
        )
    return chat


def _load_base(base: BaseModel, start: init_from.Start, tuned: Any, progress: Progress) -> Any:
    """The base as a separate model, with the tuned model's chat template, as when both were scored."""
    from mlflow_ft.engine import hub
    from mlflow_ft.engine.models import generation
    from mlflow_ft.engine.serving import chat_model

    options = generation.for_loading(base.path)
    with progress.bar(f"load {base.name}"), hub.quiet_transformers():
        note = {} if start.base is None else _note(start)
        model = (
            chat_model.load_base(str(base.path), note, **options)
            if note
            else chat_model.load_whole(base.path, **options)
        )
    chat = chat_model.ChatModel()
    chat.adopt(model, base.path)
    if len(tuned.tokenizer) <= model.get_input_embeddings().weight.shape[0]:
        chat.tokenizer = tuned.tokenizer
    else:  # the tuned one has learned new tokens
        chat.tokenizer.chat_template = tuned.tokenizer.chat_template
    chat.end_tokens = list(dict.fromkeys((*chat.end_tokens, *tuned.end_tokens)))
    return chat


def _base_of(start: init_from.Start, base: str | None, progress: Progress) -> BaseModel:
    from mlflow_ft.engine.models import added_tokens

    request = adapters.MergeRequest(adapter=start.uri, out=Path(), base=uri_of(base) if base else None)
    model = adapters.base_of(request, adapters.config_of(request, start), start, progress)
    if start.base is not None and (start.folder / init_from.ADAPTER_FILE).is_file():
        from mlflow_ft.engine.models import skeleton

        added_tokens.check(start.folder, model, pads=False)
        skeleton.check(model.path, start.folder, task=model.task)
    return model


def _before(start: init_from.Start, base: str | None, progress: Progress) -> BaseModel:
    """The model that a whole model was trained from, according to its MLmodel file or, if it was merged, merge.json.

    Raises:
        ModelError: neither file names it.
    """
    note = _origin(start.folder)
    if not base and not note.get("name_or_path"):
        raise ModelError(f"{start.uri} does not name the model it was trained from", hint="name it with --base")
    return _base_of(init_from.Start(uri=start.uri, folder=start.folder, base={} if base else note), base, progress)


def _origin(folder: Path) -> Mapping[str, Any]:
    import yaml

    if (folder / "merge.json").is_file():
        return dict(json.loads((folder / "merge.json").read_text(encoding="utf-8"))["base"])
    file = folder.parent.parent / "MLmodel"
    metadata = (yaml.safe_load(file.read_text(encoding="utf-8")).get("metadata") or {}) if file.is_file() else {}
    return {"name_or_path": metadata.get("mlflow_ft.base_model"), "revision": metadata.get("mlflow_ft.base_revision")}


def _note(start: init_from.Start) -> dict[str, Any]:
    """How to load the adapter's base; for an adapter saved by PEFT alone, as a whole model is loaded."""
    from mlflow_ft.engine.serving import chat_model

    dtype = str(chat_model.compute_dtype()).removeprefix("torch.")
    return {"dtype": dtype, "quantization": None, "revision": None, **(start.base or {})}


def _sharable(name: str, start: init_from.Start) -> dict[str, Any]:
    """How to load the base of an adapter that can share it with others.

    Raises:
        ConfigError: it is a whole model or a reward model, or it adds tokens.
    """
    if start.base is None:
        raise ConfigError(f"{name}={start.uri} is a whole model, not an adapter", hint="serve it alone")
    note = _note(start)
    if note.get("task") == "score":
        raise ConfigError(f"{name}={start.uri} scores answers and generates none", hint="serve it alone")
    if note.get("tokens"):
        raise ConfigError(f"{name}={start.uri} adds tokens that its base does not have", hint="serve it alone")
    return note


def _check_same(
    first: str, other: str, first_note: Mapping[str, Any], other_note: Mapping[str, Any], bases: Sequence[BaseModel]
) -> None:
    """Raise ConfigError if two adapters belong to different weights, or to one base quantised differently."""
    if bases[0].revision != bases[1].revision:
        names = f"{bases[0].name} and {bases[1].name}"
        raise ConfigError(f"adapters {first!r} and {other!r} belong to different base models: {names}")
    for key in SAME:
        if first_note.get(key) != other_note.get(key):
            raise ConfigError(
                f"adapters {first!r} and {other!r} were trained on the base loaded differently: {key} is "
                f"{_short(first_note.get(key))} and {_short(other_note.get(key))}",
                hint="serve each alone, or merged",
            )


def _short(value: Any) -> str:
    if isinstance(value, Mapping):
        return "int8" if value.get("load_in_8bit") else str(value.get("bnb_4bit_quant_type") or value["quant_method"])
    return str(value or "none")


def _with_tokenizer(start: init_from.Start, base: Path) -> AdapterFolder:
    from mlflow_ft.engine.serving.loaded_models import AdapterFolder

    own = any((start.folder / name).is_file() for name in ("tokenizer_config.json", "tokenizer.json"))
    return AdapterFolder(weights=start.folder, tokenizer=start.folder if own else base)
