"""The weights that training starts from (`model.init_from`): an adapter or a whole model that was trained before."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mlflow_ft.config.schema import Config, ModelSection
from mlflow_ft.errors import ConfigError, ModelError, brief
from mlflow_ft.progress import Progress
from mlflow_ft.values import MLFLOW_URIS, BaseModel

ADAPTER_FILE = "adapter_config.json"
BASE_FILE = "base.json"
NAMES = {
    "prompt_tuning": "prompt",
    "prefix_tuning": "prefix",
    "p_tuning": "ptuning",
    "adaption_prompt": "adaption-prompt",
}
"""PEFT's types whose adapter kind has a different name."""
SETTLED = {
    "cpt": "it stores the learned prompt, not the limits of its change",
    "ptuning": "it stores the prompt that its network computed, not the network",
    "adalora": "its ranks were fixed at the end of its training",
}
"""Kinds that cannot be trained further, because the saved form is not the trained one."""
SHOWN = 6
"""The most folders that a message names."""


@dataclass(frozen=True, kw_only=True)
class Start:
    """Weights that were trained before."""

    uri: str
    """The requested URI, with the version number instead of an alias, or the absolute path of a folder."""
    folder: Path
    base: Mapping[str, Any] | None
    """For an adapter, its base model; None for a whole model."""


def find(config: Config, progress: Progress) -> BaseModel:
    """The base model to train, and the adapter that is on it already; fetched if needed.

    Raises:
        ModelError: there is no such model, or the adapter belongs to another base. ConfigError: another adapter.kind.
    """
    from mlflow_ft.engine import hub
    from mlflow_ft.engine.models import added_tokens

    if not config.model.init_from:
        return hub.find(config.model, progress)
    start = read(config.model.init_from)
    if start.base is None:
        return _whole(config, start, progress)
    check_kind(config, start)
    base = base_of(config, start, progress)
    added_tokens.check(start.folder, base, pads=False)
    return replace(base, start=start.folder, start_uri=start.uri, origin=f"{base.origin}, with the adapter {start.uri}")


def _whole(config: Config, start: Start, progress: Progress) -> BaseModel:
    """A whole model as the base; if it has a URI, it is found again by that."""
    from mlflow_ft.engine import hub

    base = hub.find(config.model.model_copy(update={"name": str(start.folder)}), progress)
    registered = re.fullmatch(r"models:/([^/]+)/[^/]+", start.uri)
    name = registered[1] if registered else start.folder.name
    return replace(base, name=name, name_or_path=start.uri, origin=start.uri)


def base_of(config: Config, start: Start, progress: Progress, *, option: str = "--model") -> BaseModel:
    """The base model in the configuration (`model.name`), else the one that the adapter names.

    `option` is the command's option for another base.

    Raises:
        ModelError: the adapter names none, or it was trained on other weights.
    """
    from mlflow_ft.engine import hub

    recorded = start.base or {}
    name, revision = str(recorded.get("name_or_path") or ""), str(recorded.get("revision") or "")
    named = "model.name" in config.origins
    if named and not config.model.name.startswith(MLFLOW_URIS):
        base = hub.find(config.model, progress)
    elif named:
        base = _whole(config, read(config.model.name, setting=option), progress)
    elif not name:
        raise ModelError(f"the adapter in {start.folder} does not name its base model", hint=f"name it with {option}")
    else:
        base = _named_by(start, config, progress, option=option)
    if not revision.startswith("sha256:") or base.revision == revision:
        return base
    # the revision of a model on the Hub is a commit; its weights are not hashed yet
    if base.revision.startswith("sha256:") or f"sha256:{hub.weights_hash(base.path)}" != revision:
        raise ModelError(
            f"the adapter {start.uri} was trained on other weights than those of {base.name!r} ({base.origin})",
            hint=f"name its base with {option} (it was {name})",
        )
    return base


def _named_by(start: Start, config: Config, progress: Progress, *, option: str) -> BaseModel:
    """The base that the adapter names: a folder of the machine that it was trained on, a Hub id, or a URI.

    Raises:
        ModelError: it is not here.
    """
    from mlflow_ft.engine import hub

    recorded = start.base or {}
    name, revision = str(recorded["name_or_path"]), str(recorded.get("revision") or "")
    update = {"name": name, "revision": None if revision.startswith("sha256:") else revision or None}
    try:
        if name.startswith(MLFLOW_URIS):
            return _whole(config, read(name, setting="its base model"), progress)
        return hub.find(config.model.model_copy(update=update), progress)
    except ModelError as error:
        raise ModelError(
            f"the adapter {start.uri} names {name!r} as its base model, which cannot be found here: {error.message}",
            hint=f"name its base with {option}: a folder, a Hub id or an MLflow URI\n  ({error.hint})",
        ) from error


def check_kind(config: Config, start: Start) -> None:
    """Raise ConfigError if kind, rank or scale differ from the configuration, or the kind cannot be trained further."""
    settings = json.loads((start.folder / ADAPTER_FILE).read_text(encoding="utf-8"))
    wanted_kind = config.adapter.kind
    if wanted_kind == "none":
        raise ConfigError(
            f"{start.uri} is an adapter, but this method trains all weights",
            hint="start from the merged model, or use a method with an adapter (--adapter.kind lora)",
        )
    kind = (start.base or {}).get("kind") or kind_of(settings)
    if kind != wanted_kind:
        raise ConfigError(
            f"{start.uri} is a {kind} adapter, but adapter.kind is {wanted_kind}", hint=f"--adapter.kind {kind}"
        )
    if reason := SETTLED.get("ptuning" if settings.get("prefix_projection") else kind):
        raise ConfigError(f"{start.uri} cannot be trained further: {reason}", hint="train a new adapter")
    for name in ("r", "lora_alpha", "use_dora", "use_rslora"):
        wanted, has = getattr(config.adapter, name), settings.get(name)
        origin = config.origins.get(f"adapter.{name}", "method")
        if not origin.startswith("method") and has not in (None, wanted):
            raise ConfigError(f"adapter.{name} is {wanted}, but {start.uri} has {has}", hint=f"remove adapter.{name}")


def kind_of(settings: Mapping[str, Any]) -> str:
    """The kind of an adapter that was saved by PEFT alone, from PEFT's type."""
    if settings.get("use_dora"):
        return "dora"
    name = str(settings.get("peft_type", "")).lower()
    return NAMES.get(name, name.replace("_", "-"))


def read(source: str, *, setting: str = "model.init_from") -> Start:
    """Find the weights in a folder, or fetch them from MLflow. `setting` is the setting that named them.

    Raises:
        ModelError: there is nothing of that name, or no weights in it.
    """
    root = Path(source).expanduser().resolve()
    uri = str(root)
    if source.startswith(MLFLOW_URIS):
        from mlflow_ft import tracking

        uri = tracking.pinned(source)
        root = tracking.fetch(uri, error=ModelError, what="model")
    if not root.is_dir():
        raise ModelError(
            f"{setting}: {source!r} is neither a folder nor an MLflow URI",
            hint=f"looked in {Path.cwd()}; URIs begin with {', '.join(MLFLOW_URIS)}",
        )
    for name in (ADAPTER_FILE, "config.json"):
        if (root / "config.json").is_file() and list(root.glob("*.safetensors")) and not (root / name).is_file():
            continue  # the folder itself is a whole model, whatever is below it
        if files := list(root.rglob(name)):
            return _start(uri, _only(files, source=source, root=root, setting=setting))
    raise ModelError(
        f"{setting}: {source!r} contains neither an adapter nor a model",
        hint=f"looked for {ADAPTER_FILE} and config.json in {root} and its subfolders",
    )


def _only(files: Sequence[Path], *, source: str, root: Path, setting: str) -> Path:
    """The only file at the highest level.

    Raises:
        ModelError: there are several, as after a training that was stopped before it wrote its last adapter.
    """
    from mlflow_ft import tracking

    level = min(len(file.parts) for file in files)
    highest = sorted((file for file in files if len(file.parts) == level), key=_by_number)
    sealed = [file for file in highest if (file.parent / tracking.MANIFEST).is_file()]
    if len(highest) > 1 and len(sealed) == 1:
        return sealed[0]  # a run's folder: the packaged model, not the trained one next to it
    if len(highest) > 1:
        names = [str(file.parent.relative_to(root)) for file in highest]
        shown = ", ".join(names if len(names) <= SHOWN else [*names[: SHOWN - 1], "...", names[-1]])
        what = "adapters" if highest[0].name == ADAPTER_FILE else "models"
        uri = source.rstrip("/")
        raise ModelError(
            f"{setting}: {source!r} contains {len(highest)} {what} and none above them: {shown}",
            hint=f"name one of them, such as {uri}/{names[-1]}",
        )
    return highest[0]


def _by_number(file: Path) -> list[tuple[int, str]]:
    """Sort by the numbers in the names: checkpoint-30 before checkpoint-100."""
    return [(int(part) if part.isdigit() else -1, part) for part in re.split(r"(\d+)", str(file))]


def reward_model(source: str, progress: Progress) -> tuple[str, Path]:
    """A reward model's URI, with the version number, and its folder.

    Raises:
        ModelError: there is no such model, or it is an adapter without its base's weights.
    """
    from mlflow_ft.engine import hub

    if not source.startswith(MLFLOW_URIS) and not Path(source).expanduser().exists():
        model = hub.find(ModelSection(name=source), progress)
        return f"{model.name_or_path}@{model.revision}", model.path
    start = read(source)
    if start.base is not None:
        raise ModelError(f"the reward model {source!r} is an adapter", hint="name the merged model")
    return start.uri, start.folder


def _start(uri: str, file: Path) -> Start:
    from mlflow_ft import tracking

    folder = file.parent
    if (folder / tracking.MANIFEST).is_file():
        tracking.verify_manifest(folder)
    if file.name != ADAPTER_FILE:
        return Start(uri=uri, folder=folder, base=None)
    if (folder / BASE_FILE).is_file():
        return Start(uri=uri, folder=folder, base=json.loads((folder / BASE_FILE).read_text(encoding="utf-8")))
    settings = _of_peft(file)
    base = {"name_or_path": settings.get("base_model_name_or_path"), "revision": settings.get("revision")}
    return Start(uri=uri, folder=folder, base=base)


def _of_peft(file: Path) -> dict[str, Any]:
    """The config of an adapter that PEFT has written.

    Raises:
        ModelError: it is not JSON, or another program's.
    """
    try:
        settings = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelError(f"{file} cannot be read: {brief(error)}", hint="save the adapter again") from error
    if not isinstance(settings, dict) or "peft_type" not in settings:
        raise ModelError(
            f"{file} is not the config of an adapter in PEFT's format: it has no peft_type",
            hint="MLX's adapters are merged by `mlx_lm.fuse`, which writes a whole model; save others with PEFT",
        )
    return settings
