"""Python code that comes with a base model: it runs in training, if the user allows it, and nowhere else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from mlflow_ft.config.schema import Config
from mlflow_ft.engine.hub import quiet_transformers
from mlflow_ft.errors import ConfigError, ModelError
from mlflow_ft.values import BaseModel

MAP = "auto_map"
"""The entry that names a model's own classes, in config.json and tokenizer_config.json."""
CONFIGS = ("config.json", "tokenizer_config.json")
REMEDY = (
    "use a model whose classes are part of transformers, or a release of transformers that has them; "
    "--package.packagers '[]' trains and scores the model, and keeps the weights in the run's folder only"
)


def needs(folder: Path, *, tokenizer: Path | None = None, task: str = "generate") -> str:
    """What a model needs its own code for, "its architecture" or "its tokenizer"; "" if for nothing.

    `tokenizer` is the tokenizer's folder where it differs from the model's.
    """
    if MAP in _settings(folder / CONFIGS[0]) and not _has_class(folder, task):
        return "its architecture"
    place = tokenizer or folder
    return "its tokenizer" if MAP in _settings(place / CONFIGS[1]) and not _has_tokenizer(place) else ""


def check_training(config: Config, base: BaseModel) -> None:
    """Refuse a base that needs code which may not run, or which is not there when the trained model is loaded.

    Raises:
        ConfigError: the base needs its code, and the trained model would be packaged. ModelError: the code may not run.
    """
    needed = needs(base.path, tokenizer=base.tokenizer, task=base.task)
    if not needed:
        return
    if not config.model.trust_remote_code:
        raise _untrusted(base.name, needed)
    if config.package.packagers != []:
        raise ConfigError(
            f"model {base.name!r} needs Python code of its own for {needed}, so it cannot be packaged or served: a "
            "packaged model runs no such code",
            hint=REMEDY,
        )


def check(folder: Path, *, trusted: bool = False, name: str = "", task: str = "generate") -> None:
    """Raise ModelError if the model in `folder` needs code of its own, which is not `trusted`."""
    if not trusted and (needed := needs(folder, task=task)):
        raise _untrusted(name or str(folder), needed)


def check_tokenizer(config: Config, base: BaseModel) -> None:
    """Raise ModelError if the base's tokenizer needs code of its own, which may not run."""
    if not config.model.trust_remote_code and not _has_tokenizer(base.tokenizer):
        raise _untrusted(base.name, "its tokenizer")


def leave_out(folder: Path) -> None:
    """Remove from a saved model or tokenizer the code that transformers has saved with it, and the names of it."""
    for name in CONFIGS:
        settings = _settings(folder / name)
        if settings.pop(MAP, None) is not None:
            (folder / name).write_text(json.dumps(settings, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
            for file in folder.glob("*.py"):
                file.unlink()


def _untrusted(name: str, needed: str) -> ModelError:
    return ModelError(
        f"model {name!r} needs Python code of its own for {needed}, which runs only in training, and only with "
        "--model.trust_remote_code true",
        hint="use a model whose classes are part of transformers; or, if you trust the code, train with "
        "--model.trust_remote_code true --package.packagers '[]': such a model cannot be merged, packaged or served",
    )


def _settings(file: Path) -> dict[str, Any]:
    """A JSON file's content; empty if it cannot be read, which loading reports."""
    try:
        return dict(json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return {}


def _has_class(folder: Path, task: str) -> bool:
    """Whether transformers itself has the classes of a folder's model."""
    kind: Any = AutoModelForSequenceClassification if task == "score" else AutoModelForCausalLM
    try:
        with quiet_transformers():
            return type(AutoConfig.from_pretrained(folder, trust_remote_code=False)) in kind._model_mapping
    except Exception:  # the settings of a model with code of its own may be of any kind
        return False


def _has_tokenizer(folder: Path) -> bool:
    try:
        with quiet_transformers():
            AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # any other is reported when it is loaded
        return "trust_remote_code" not in str(error)
    return True
