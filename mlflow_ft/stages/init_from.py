"""What a training goes on from (`model.init_from`): an adapter or a whole model that was trained before."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mlflow_ft.config.schema import Config, ModelSection
from mlflow_ft.errors import ConfigError, ModelError
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
"""Where the kind of an adapter has another name than PEFT's type."""
SETTLED = {
    "cpt": "it keeps what the text became, not how far it may move",
    "ptuning": "it keeps the prompt that its network made, not the network",
    "adalora": "its ranks were settled when its training ended",
}
"""Kinds whose saved form is not what trained."""
SHOWN = 6
"""Folders that a message names, at most."""


@dataclass(frozen=True, kw_only=True)
class Start:
    """Weights that were trained before."""

    uri: str
    """What was asked for: with a version's number where it was an alias, and the whole path of a folder."""
    folder: Path
    base: Mapping[str, Any] | None
    """Of an adapter, which base model it belongs to; None for a whole model."""


def find(config: Config, progress: Progress) -> BaseModel:
    """The base model to train, and what is on it already; fetched first where that is needed.

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
    found = base_of(config, start, progress)
    added_tokens.check(start.folder, found, pads=False)
    return replace(
        found, start=start.folder, start_uri=start.uri, origin=f"{found.origin}, with the adapter {start.uri}"
    )


def _whole(config: Config, start: Start, progress: Progress) -> BaseModel:
    """A whole model as the base; it is found again by its URI, where it has one."""
    from mlflow_ft.engine import hub

    found = hub.find(config.model.model_copy(update={"name": str(start.folder)}), progress)
    registered = re.fullmatch(r"models:/([^/]+)/[^/]+", start.uri)
    name = registered[1] if registered else start.folder.name
    return replace(found, name=name, name_or_path=start.uri, origin=start.uri)


def base_of(config: Config, start: Start, progress: Progress, *, option: str = "--model") -> BaseModel:
    """The base model that was named (`model.name`), else the one that the adapter names. `option` names another.

    Raises:
        ModelError: the adapter names none, or it was trained on other weights.
    """
    from mlflow_ft.engine import hub

    base = start.base or {}
    name, revision = str(base.get("name_or_path") or ""), str(base.get("revision") or "")
    named = "model.name" in config.origins
    if named and not config.model.name.startswith(MLFLOW_URIS):
        found = hub.find(config.model, progress)
    elif named:
        found = _whole(config, read(config.model.name, setting=option), progress)
    elif not name:
        raise ModelError(f"the adapter in {start.folder} does not name its base model", hint=f"name it with {option}")
    else:
        found = _named_by(start, config, progress, option=option)
    if not revision.startswith("sha256:") or found.revision == revision:
        return found
    # of a model on the Hub the commit is known, and not yet the weights' hash
    if found.revision.startswith("sha256:") or f"sha256:{hub.weights_hash(found.path)}" != revision:
        raise ModelError(
            f"the adapter {start.uri} was trained on other weights than those of {found.name!r} ({found.origin})",
            hint=f"name its base with {option}; it was {name}",
        )
    return found


def _named_by(start: Start, config: Config, progress: Progress, *, option: str) -> BaseModel:
    """The base that the adapter itself names: a folder of the machine that it was trained on, a Hub id, or a URI.

    Raises:
        ModelError: it is not here.
    """
    from mlflow_ft.engine import hub

    base = start.base or {}
    name, revision = str(base["name_or_path"]), str(base.get("revision") or "")
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
    """Raise ConfigError where the adapter is of another kind, rank or scale than was asked, or is settled for good."""
    settings = json.loads((start.folder / ADAPTER_FILE).read_text(encoding="utf-8"))
    asked = config.adapter.kind
    if asked == "none":
        raise ConfigError(
            f"{start.uri} is an adapter, and this method trains every weight",
            hint="go on from the merged model, or take a method with an adapter (--adapter.kind lora)",
        )
    kind = (start.base or {}).get("kind") or kind_of(settings)
    if kind != asked:
        raise ConfigError(
            f"{start.uri} is an adapter of the kind {kind}, and adapter.kind is {asked}", hint=f"--adapter.kind {kind}"
        )
    if reason := SETTLED.get("ptuning" if settings.get("prefix_projection") else kind):
        raise ConfigError(f"{start.uri} cannot be trained further: {reason}", hint="train a new adapter")
    for name in ("r", "lora_alpha", "use_dora", "use_rslora"):
        wanted, has = getattr(config.adapter, name), settings.get(name)
        origin = config.origins.get(f"adapter.{name}", "method")
        if not origin.startswith("method") and has not in (None, wanted):
            raise ConfigError(
                f"adapter.{name} is {wanted}, and {start.uri} has {has}", hint=f"leave adapter.{name} out"
            )


def kind_of(settings: Mapping[str, Any]) -> str:
    """The kind of an adapter that PEFT wrote without us: by its own name of the type."""
    if settings.get("use_dora"):
        return "dora"
    name = str(settings.get("peft_type", "")).lower()
    return NAMES.get(name, name.replace("_", "-"))


def read(asked: str, *, setting: str = "model.init_from") -> Start:
    """Find the weights: in a folder, or fetched from MLflow. `setting` is what named them.

    Raises:
        ModelError: there is nothing of that name, or no weights in it.
    """
    root = Path(asked).expanduser().resolve()
    uri = str(root)
    if asked.startswith(MLFLOW_URIS):
        from mlflow_ft import tracking

        uri = tracking.pinned(asked)
        root = tracking.fetch(uri, error=ModelError, what="model")
    if not root.is_dir():
        raise ModelError(
            f"{setting}: {asked!r} is no folder and no MLflow URI",
            hint=f"looked in {Path.cwd()}; URIs begin with {', '.join(MLFLOW_URIS)}",
        )
    for name in (ADAPTER_FILE, "config.json"):
        if (root / "config.json").is_file() and list(root.glob("*.safetensors")) and not (root / name).is_file():
            continue  # the folder is a whole model itself, whatever lies below it
        if files := list(root.rglob(name)):
            return _start(uri, _only(files, asked=asked, root=root, setting=setting))
    raise ModelError(
        f"{setting}: {asked!r} holds neither an adapter nor a model",
        hint=f"looked for {ADAPTER_FILE} and config.json in {root} and below it",
    )


def _only(files: Sequence[Path], *, asked: str, root: Path, setting: str) -> Path:
    """The file that lies highest.

    Raises:
        ModelError: several do, as in the folder of a training that was stopped before it wrote its last adapter.
    """
    from mlflow_ft import tracking

    highest = min(len(file.parts) for file in files)
    found = sorted((file for file in files if len(file.parts) == highest), key=_by_number)
    sealed = [file for file in found if (file.parent / tracking.MANIFEST).is_file()]
    if len(found) > 1 and len(sealed) == 1:
        return sealed[0]  # a run's folder: what it packaged, beside what it trained
    if len(found) > 1:
        names = [str(file.parent.relative_to(root)) for file in found]
        shown = ", ".join(names if len(names) <= SHOWN else [*names[: SHOWN - 1], "...", names[-1]])
        what = "adapters" if found[0].name == ADAPTER_FILE else "models"
        uri = asked.rstrip("/")
        raise ModelError(
            f"{setting}: {asked!r} holds {len(found)} {what}, and none above them: {shown}",
            hint=f"name the one that you mean, such as {uri}/{names[-1]}",
        )
    return found[0]


def _by_number(file: Path) -> list[tuple[int, str]]:
    """In the order of the numbers in their names: checkpoint-30 before checkpoint-100."""
    return [(int(part) if part.isdigit() else -1, part) for part in re.split(r"(\d+)", str(file))]


def reward_model(asked: str, progress: Progress) -> tuple[str, Path]:
    """A reward model's URI, with a version's number, and its folder.

    Raises:
        ModelError: there is no such model, or it is an adapter without its base's weights.
    """
    from mlflow_ft.engine import hub

    if not asked.startswith(MLFLOW_URIS) and not Path(asked).expanduser().exists():
        found = hub.find(ModelSection(name=asked), progress)
        return f"{found.name_or_path}@{found.revision}", found.path
    start = read(asked)
    if start.base is not None:
        raise ModelError(f"the reward model {asked!r} is an adapter", hint="name the merged model")
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
    settings = json.loads(file.read_text(encoding="utf-8"))  # PEFT's own
    base = {"name_or_path": settings.get("base_model_name_or_path"), "revision": settings.get("revision")}
    return Start(uri=uri, folder=folder, base=base)
