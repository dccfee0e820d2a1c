"""What a merged model needs besides its weights: tokenizer, template and end tokens, from the adapter or the base."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from mlflow_ft.engine.hub import quiet_transformers
from mlflow_ft.engine.models import generation, loading, older_names
from mlflow_ft.engine.tokens import room, tokenizers

FILES = (
    "tokenizer.json",
    older_names.TOKENIZER,
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "tokenizer.model",
    "spiece.model",
    "chat_template.jinja",
    "chat_template.json",
)
TEMPLATES = "additional_chat_templates"


def copy(adapter: Path, base: Path, folder: Path, *, generates: bool = True) -> None:
    """Copy the tokenizer that the adapter was trained with to the weights' folder, and write all end tokens.

    The adapter's tokenizer is preferred, because its chat template was used in training.
    """
    own = (adapter / older_names.TOKENIZER).is_file() or (adapter / "tokenizer.json").is_file()
    copy_files(adapter if own else base, folder)
    if generates:
        _write_ends(adapter, base, folder)


def copy_files(source: Path, folder: Path) -> None:
    """Copy the files of a tokenizer, chat templates included."""
    for name in FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)
    if (source / TEMPLATES).is_dir():
        shutil.copytree(source / TEMPLATES, folder / TEMPLATES, dirs_exist_ok=True)
    older_names.in_tokenizer(folder)


def pad_with(token: str, folder: Path) -> None:
    """Make the tokenizer in a folder pad with another of its tokens, for which the model has an embedding.

    Raises:
        ConfigError: the token does not exist, or has no embedding.
    """
    with quiet_transformers():
        tokenizer: Any = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    tokenizers.choose_pad_token(tokenizer, asked=token, rows=room.tokens(folder))
    tokenizer.save_pretrained(folder)
    older_names.in_tokenizer(folder)
    settings = dict(generation.read(folder).settings)
    if settings:
        generation.write(settings | {"pad_token_id": tokenizer.pad_token_id}, folder)


def _write_ends(adapter: Path, base: Path, folder: Path) -> None:
    settings = [generation.read(place).settings for place in (adapter, base)]
    known = list(
        dict.fromkeys(
            token
            for values in (*settings, _read(base / "config.json"))
            for token in loading.token_ids(values.get("eos_token_id"))
        )
    )
    merged = {**generation.read(folder).settings, **settings[1], **settings[0]}
    ends = list(dict.fromkeys((*known, *_of_tokenizer(folder))))
    if ends:
        merged["eos_token_id"] = ends
    generation.write(generation.repaired(merged).settings, folder)


def _of_tokenizer(folder: Path) -> Iterator[int]:
    if (folder / older_names.TOKENIZER).is_file():
        with quiet_transformers():
            tokenizer: Any = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        if tokenizer.eos_token_id is not None:
            yield int(tokenizer.eos_token_id)


def _read(file: Path) -> dict[str, Any]:
    return dict(json.loads(file.read_text(encoding="utf-8"))) if file.is_file() else {}
