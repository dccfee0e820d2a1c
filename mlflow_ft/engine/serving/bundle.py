"""What a packaged folder has besides the weights: tokenizer, end tokens, and which base an adapter belongs to."""

from __future__ import annotations

import json
import shutil
from importlib import metadata
from pathlib import Path
from typing import Any

from transformers import AutoConfig, AutoTokenizer

from mlflow_ft.engine import own_code
from mlflow_ft.engine.adapters import files
from mlflow_ft.engine.models import generation, loading, older_names, text_part
from mlflow_ft.engine.tokens import masking, room, vocabulary
from mlflow_ft.errors import RefusedError
from mlflow_ft.rows import Encoded
from mlflow_ft.values import BaseModel, Data, Job, Trained

CHAT_MODEL = Path(__file__).with_name("chat_model.py")
"""The code of the logged models."""
FRESH_PROCESS = Path(__file__).with_name("fresh_process.py")
"""The code that loads them in a clean process with only their requirements."""
ALWAYS_NEEDED = ("mlflow", "torch", "transformers", "safetensors", "accelerate", "jinja2")
"""What every packaged model requires."""
COMPARED = 8
"""Training rows that the saved tokenizer is tested on."""
BASE_FILE = "base.json"
"""In an adapter's folder: the base's name, revision, quantisation and type, enough to load it as it was in training."""


def copy_adapter(job: Job, trained: Trained, folder: Path, *, for_whole: bool = True) -> None:
    """Copy the adapter and record its base. The base's own weights are not copied.

    If only the text part of a model was trained and `for_whole` is true, the adapter's weights get the names of the
    whole model, if that is possible for this adapter.
    """
    assert trained.adapter is not None
    folder.mkdir(parents=True, exist_ok=True)
    for file in trained.adapter.iterdir():
        if file.name in ("adapter_config.json", "adapter_model.safetensors"):
            shutil.copy2(file, folder / file.name)
    tokenizer = vocabulary.grown(job.config, trained.base)
    renamed = text_part.rename_for_whole(folder, trained.base.path) if for_whole and job.task != "score" else None
    base = {
        "kind": job.config.adapter.kind,
        "name_or_path": trained.base.name_or_path,
        "revision": trained.base.revision,
        "origin": trained.base.origin,
        "task": trained.base.task,
        **loading.note_of_base(job.config, trained.base),
        "tokens": room.size(tokenizer) if tokenizer else None,  # how many rows the base's embeddings must have
        "renamed": renamed,  # beginnings of names: in the whole model, which the adapter uses, and in its text part
    }
    (folder / BASE_FILE).write_text(json.dumps(base, indent=2, sort_keys=True))


def fits_whole(folder: Path) -> bool:
    """Whether the adapter in `folder` has the names of a whole model of which only the text part was trained."""
    file = folder / BASE_FILE
    return file.is_file() and bool(json.loads(file.read_text(encoding="utf-8")).get("renamed"))


def complete(job: Job, data: Data, folder: Path, *, base: BaseModel | None = None) -> None:
    """Save the tokenizer, with the template used in training, and the generation settings in the weights' folder.

    Code of the base that transformers has saved there is left out: the form must load without it.
    An adapter uses the generation settings of its `base`, as in training; end tokens are added.
    """
    data.tokenizer.save_pretrained(folder)
    older_names.in_tokenizer(folder)
    own_code.leave_out(folder)
    if job.task == "score":
        return  # it generates nothing
    file = folder / generation.FILE
    settings = dict(generation.read(base.path if base and not file.is_file() else folder).settings)
    ends = [*data.stop_token_ids, *loading.token_ids(settings.get("eos_token_id"))]
    settings |= {"eos_token_id": list(dict.fromkeys(ends)), "pad_token_id": data.tokenizer.pad_token_id}
    generation.write(settings, folder)


def check_tokenizer(data: Data, folder: Path) -> None:
    """Read the saved tokenizer back: its template and the tokens of its rows must be those of training.

    Raises:
        RefusedError: they differ.
    """
    saved: Any = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    examples = list(data.train.examples[:COMPARED])
    trained = list(data.train.encoded[:COMPARED])
    length = max((len(row.input_ids) for row in trained), default=1)
    encoded = masking.encode(saved, examples, max_length=length)
    same = all(
        isinstance(again, Encoded) and again.input_ids[: len(row.input_ids)] == row.input_ids
        for again, row in zip(encoded, trained, strict=True)
    )
    if saved.chat_template != data.tokenizer.chat_template or not same:
        raise RefusedError(
            f"the tokenizer that was saved in {folder} does not render rows as they were trained",
            hint="nothing was registered; check that chat_template.jinja and tokenizer.json there were not changed",
        )


def check_config(folder: Path) -> None:
    """Read the saved configuration of the model or the adapter back, as any later load does.

    Raises:
        ModelError: the adapter's cannot be read. ValueError, OSError, ...: transformers cannot read the model's.
    """
    if (folder / "adapter_config.json").is_file():
        files.config(folder)
    else:
        AutoConfig.from_pretrained(folder, trust_remote_code=False)
    generation.read(folder)


def overridable(folder: Path) -> dict[str, str]:
    """What `mlflow.pyfunc.load_model(model_config=...)` may set: the path of an adapter's base model."""
    return {"base_model_path": ""} if (folder / BASE_FILE).is_file() else {}


def requirements(folder: Path) -> list[str]:
    """What a machine needs to load a packaged model: exact versions, without mlflow-ft."""
    names = list(ALWAYS_NEEDED)
    adapter = folder / BASE_FILE
    settings = json.loads((adapter if adapter.is_file() else folder / "config.json").read_text(encoding="utf-8"))
    if adapter.is_file():
        names.append("peft")
    if settings.get("quantization") or settings.get("quantization_config"):
        names.append("bitsandbytes")
    return [f"{name}=={metadata.version(name).partition('+')[0]}" for name in names]
