"""What a packaged folder holds beside the weights: tokenizer, end tokens, and which base an adapter belongs to."""

from __future__ import annotations

import json
import shutil
from importlib import metadata
from pathlib import Path
from typing import Any

from transformers import AutoConfig, AutoTokenizer

from mlflow_ft.engine.adapters import files
from mlflow_ft.engine.models import generation, loading, text_part
from mlflow_ft.engine.tokens import masking, room, vocabulary
from mlflow_ft.errors import RefusedError
from mlflow_ft.rows import Encoded
from mlflow_ft.values import BaseModel, Data, Job, Trained

CHAT_MODEL = Path(__file__).with_name("chat_model.py")
"""The code of the logged models."""
FRESH_PROCESS = Path(__file__).with_name("fresh_process.py")
"""The code that loads them as a stranger would."""
COMPARED = 8
"""Training rows that the saved tokenizer is tried on."""
BASE_FILE = "base.json"
"""Beside an adapter: the base model's name, revision, quantisation and type, enough to load it as it was trained on."""


def copy_adapter(job: Job, trained: Trained, folder: Path, *, for_whole: bool = True) -> None:
    """Copy the adapter and write down its base. The base's own weights stay where they are.

    Of a base whose text part alone was trained, its weights get the names of the whole model, where `for_whole` is true
    and such an adapter can have them.
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
        "tokens": room.size(tokenizer) if tokenizer else None,  # for how many the base's embeddings must have rows
        "renamed": renamed,  # beginnings of names: of the whole model, which the adapter has, and of its text part
    }
    (folder / BASE_FILE).write_text(json.dumps(base, indent=2, sort_keys=True))


def fits_whole(folder: Path) -> bool:
    """Whether the adapter in `folder` has the names of the whole model, of which the text part was trained."""
    file = folder / BASE_FILE
    return file.is_file() and bool(json.loads(file.read_text(encoding="utf-8")).get("renamed"))


def complete(job: Job, data: Data, folder: Path, *, base: BaseModel | None = None) -> None:
    """Put the tokenizer, with the template that was trained, and how it generates beside the weights.

    An adapter answers by the generation settings of its `base`, as it did when it was trained; end tokens are added.
    """
    data.tokenizer.save_pretrained(folder)
    if job.task == "score":
        return  # it generates nothing
    file = folder / generation.FILE
    settings = dict(generation.read(base.path if base and not file.is_file() else folder).settings)
    ends = [*data.stop_token_ids, *loading.token_ids(settings.get("eos_token_id"))]
    settings |= {"eos_token_id": list(dict.fromkeys(ends)), "pad_token_id": data.tokenizer.pad_token_id}
    generation.write(settings, folder)


def check_tokenizer(data: Data, folder: Path) -> None:
    """Read the saved tokenizer back: its template and what it makes of rows must be what was trained.

    Raises:
        RefusedError: it is another one.
    """
    saved: Any = AutoTokenizer.from_pretrained(folder)
    examples = list(data.train.examples[:COMPARED])
    trained = list(data.train.encoded[:COMPARED])
    length = max((len(row.input_ids) for row in trained), default=1)
    found = masking.encode(saved, examples, max_length=length)
    same = all(
        isinstance(one, Encoded) and one.input_ids[: len(row.input_ids)] == row.input_ids
        for one, row in zip(found, trained, strict=True)
    )
    if saved.chat_template != data.tokenizer.chat_template or not same:
        raise RefusedError(
            f"the tokenizer that was saved in {folder} does not render rows as they were trained",
            hint="nothing was registered; check that chat_template.jinja and tokenizer.json there were not changed",
        )


def check_config(folder: Path, *, trust_remote_code: bool) -> None:
    """Read the saved configuration back, the model's or the adapter's, as whoever loads the folder does.

    One that needs code of its own, which is not in the folder yet, is not read where `trust_remote_code` is true.

    Raises:
        ModelError: the adapter's cannot be read. ValueError, OSError, ...: transformers cannot read the model's.
    """
    if (folder / "adapter_config.json").is_file():
        files.config(folder)
    elif not trust_remote_code:
        AutoConfig.from_pretrained(folder, trust_remote_code=False)
    generation.read(folder)


def overridable(folder: Path) -> dict[str, str]:
    """What `mlflow.pyfunc.load_model(model_config=...)` may set: where an adapter's base model lies."""
    return {"base_model_path": ""} if (folder / BASE_FILE).is_file() else {}


def requirements(folder: Path) -> list[str]:
    """What a machine needs to load a packaged model: exact versions, and not mlflow-ft."""
    names = ["mlflow", "torch", "transformers", "safetensors", "accelerate", "jinja2"]
    adapter = folder / BASE_FILE
    settings = json.loads((adapter if adapter.is_file() else folder / "config.json").read_text(encoding="utf-8"))
    if adapter.is_file():
        names.append("peft")
    if settings.get("quantization") or settings.get("quantization_config"):
        names.append("bitsandbytes")
    return [f"{name}=={metadata.version(name).partition('+')[0]}" for name in names]
