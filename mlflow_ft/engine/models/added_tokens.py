"""Tokens of an adapter's tokenizer that have no embeddings, neither in the base nor in the adapter's files.

Their embeddings were not saved after training, so the trained model can be neither merged nor served
(unslothai/unsloth#3416).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from transformers import AutoTokenizer

from mlflow_ft.engine.adapters import files
from mlflow_ft.engine.hub import quiet_transformers
from mlflow_ft.engine.models import skeleton
from mlflow_ft.engine.tokens import render, room
from mlflow_ft.errors import ModelError
from mlflow_ft.values import BaseModel

TOKENIZER = ("tokenizer_config.json", "tokenizer.json")


def check(adapter: Path, base: BaseModel, *, pads: bool) -> None:
    """Refuse an adapter whose tokenizer has tokens without embeddings.

    A token that is also in the base's tokenizer is a spare, untrained one: it is refused only if the chat template
    writes it. `pads` also refuses a pad token without an embedding: it is never trained on, and a server that answers
    one request at a time does not need it.

    Raises:
        ModelError: there is such a token.
    """
    rows = room.tokens(base.path)
    of_base = _tokenizer(base.path)
    own = _tokenizer(adapter) or of_base
    if own is None or rows is None or not room.beyond(own, rows):
        return
    spare = room.beyond(of_base, rows) if of_base is not None else {}
    covered = _covered(adapter, base)
    missing = {number: token for number, token in room.beyond(own, rows).items() if number >= covered}
    written = {number: missing[number] for number in _template_ids(own) if number in missing}
    trained = {number: token for number, token in missing.items() if spare.get(number) != token}
    pad = own.pad_token_id
    if pad in trained.keys() - written.keys():
        del trained[pad]
    if trained:
        raise ModelError(
            f"the adapter in {adapter} was trained with tokens whose embeddings were not saved with it: "
            f"{room.listed(trained)}; its base has embeddings for {rows:,} tokens",
            hint="save them with the adapter (PEFT: modules_to_save, or save_embedding_layers); or, if they were not "
            "used, remove its tokenizer files so that the base's tokenizer is used",
        )
    if written:
        raise ModelError(
            f"the chat template writes {room.listed(written)}, for which neither the adapter nor its base has an "
            f"embedding: the base has {rows:,}",
            hint="put the tokenizer files that it was trained with into the adapter's folder",
        )
    if pads and pad in missing:
        raise ModelError(
            f"the adapter's tokenizer pads with {room.listed({pad: missing[pad]})}, for which neither the adapter nor "
            f"its base has an embedding: the base has {rows:,}",
            hint="choose another of its tokens: --pad_token TOKEN",
        )


def _template_ids(tokenizer: Any) -> set[int]:
    """The tokens that the chat template writes around a question and its answer; empty if it rejects these."""
    turns: list[dict[str, Any]] = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    try:
        text = render.apply(tokenizer, turns, None) if tokenizer.chat_template else ""
    except render.MaskError:
        return set()
    return set(tokenizer(text, add_special_tokens=False)["input_ids"])


def _tokenizer(folder: Path) -> Any | None:
    """The tokenizer of a folder; None if it has none, or one that cannot be read (loading reports why)."""
    if not any((folder / name).is_file() for name in TOKENIZER):
        return None
    try:
        with quiet_transformers():
            return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except (OSError, ValueError, KeyError, TypeError, ImportError):
        return None


def _covered(adapter: Path, base: BaseModel) -> int:
    """How many tokens have embeddings when the adapter is loaded onto its base."""
    note = adapter / "base.json"
    recorded = json.loads(note.read_text(encoding="utf-8")).get("tokens") if note.is_file() else None
    return max(recorded or 0, _rows(adapter, base))


def _rows(adapter: Path, base: BaseModel) -> int:
    try:
        with safe_open(adapter / files.WEIGHTS, framework="pt") as content:
            shapes = {name: tuple(content.get_slice(name).get_shape()) for name in content.keys()}  # noqa: SIM118
        return skeleton.brought_rows(skeleton.bare_model(base.path, task=base.task), shapes)
    except (SafetensorError, skeleton.UnsuitedError, *skeleton.FAILURES):
        return 0
