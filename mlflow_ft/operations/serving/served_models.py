"""The models of `serve` and `chat`: one model by any of its names, adapters on one base, or a model and its base."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlflow_ft.config.schema import ModelSection
from mlflow_ft.errors import ConfigError, ModelError, RefusedError
from mlflow_ft.operations.merging import adapters
from mlflow_ft.progress import Progress
from mlflow_ft.stages import init_from
from mlflow_ft.values import MLFLOW_URIS, BaseModel, ServedModel

if TYPE_CHECKING:
    from mlflow_ft.engine.serving.loaded_models import Served

TUNED = "tuned"
FORMS = "NAME@alias, NAME/3, models:/..., runs:/RUN_ID/..., a folder, or a model on the Hub (owner/name)"


def uri_of(name: str) -> str:
    """`NAME@alias` and `NAME/3` as the registry's URIs; other names and folders unchanged."""
    registered = re.fullmatch(r"[^/:]+(@[^/:@]+|/\d+)", name)
    return f"models:/{name}" if registered and not Path(name).expanduser().exists() else name


def pinned(name: str) -> str:
    """The URI of a model's name, with the version's number instead of an alias; the absolute path of a folder."""
    from mlflow_ft import tracking

    uri = uri_of(name)
    if uri.startswith(MLFLOW_URIS):
        return tracking.pinned(uri)
    return str(Path(uri).expanduser().resolve())


def find(name: str, progress: Progress) -> init_from.Start:
    """The folder of a model and, for an adapter, its base.

    Raises:
        ModelError: there is no such model, or it lacks weights or needs code of its own. TrackingError: the tracking
        server does not answer.
    """
    from mlflow_ft.engine import own_code
    from mlflow_ft.engine.models import lacking

    start = _find(name, progress)
    if start.base is None:
        own_code.check(start.folder)
        lacking.check(start.folder, name)
    return start


def _find(name: str, progress: Progress) -> init_from.Start:
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


def found(uri: str, *, name: str = "", base: str | None, progress: Progress) -> ServedModel:
    """A model with its files, to be served under `name` (its own name if not given).

    Raises:
        ModelError: there is no such model or base, or the adapter does not fit it.
    """
    return _served(find(uri, progress), name or uri, base=base, progress=progress)


def _served(start: init_from.Start, name: str, *, base: str | None, progress: Progress) -> ServedModel:
    from mlflow_ft.engine import own_code

    if start.base is None:
        return ServedModel(name=name, uri=start.uri, folder=start.folder)
    model = _base_of(start, base, progress)
    own_code.check(model.path, name=model.name, task=model.task)
    return ServedModel(name=name, uri=start.uri, folder=start.folder, base=model, note=_note(start))


def alone(name: str, *, base: str | None, progress: Progress) -> Served:
    """One model, under the given name."""
    from mlflow_ft.engine.serving import loaded_models, opening

    return loaded_models.Served({name: opening.alone(found(name, base=base, progress=progress), progress)})


def compared(name: str, *, base: str | None, progress: Progress) -> Served:
    """A model as `tuned`, and the model before its training as `base`; an adapter shares the base's memory.

    Raises:
        ModelError: it is not known what it was trained from.
    """
    from mlflow_ft.engine.serving import loaded_models, opening

    start = find(name, progress)
    model = _served(start, TUNED, base=base, progress=progress)
    if model.base is not None:
        before = model.base
        try:
            return opening.together([model], progress)
        except (ConfigError, RefusedError) as error:
            progress.say(f"the base is loaded a second time: {error.message}")
    else:
        before = _before(start, base, progress)
    tuned = opening.alone(model, progress)
    if tuned.scores:  # a reward model: the caller reports that there is nothing to compare
        return loaded_models.Served({TUNED: tuned})
    return loaded_models.Served({TUNED: tuned, loaded_models.BASE: _load_base(before, start, tuned, progress)})


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


def origin(model: ServedModel) -> str:
    """The name of the model that a whole model's files say it was trained from; "" if they do not."""
    return str(_origin(model.folder).get("name_or_path") or "")


def _origin(folder: Path) -> Mapping[str, Any]:
    import yaml

    if (folder / "merge.json").is_file():
        return dict(json.loads((folder / "merge.json").read_text(encoding="utf-8"))["base"])
    file = folder.parent.parent / "MLmodel"
    metadata = (yaml.safe_load(file.read_text(encoding="utf-8")).get("metadata") or {}) if file.is_file() else {}
    return {"name_or_path": metadata.get("mlflow_ft.base_model"), "revision": metadata.get("mlflow_ft.base_revision")}


def _note(start: init_from.Start) -> dict[str, Any]:
    """How to load the adapter's base; for an adapter saved by PEFT alone, as a whole model is loaded."""
    from mlflow_ft.engine.serving import opening

    return {"dtype": opening.compute_dtype(), "quantization": None, "revision": None, **(start.base or {})}
