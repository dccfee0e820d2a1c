"""How many tokens and positions a base supports, from its configuration, and which tokens have no embedding."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from transformers import AutoConfig

from mlflow_ft.config.explain import NONE_WORDS
from mlflow_ft.engine.hub import quiet_transformers
from mlflow_ft.errors import ModelError

LIMITS = ("max_position_embeddings", "n_positions", "max_seq_len")
SPARE = 8
"""A position table may have up to this many rows more than the model has positions: OPT's has 2 more."""
NAMES = ("pos", "wpe")
"""One of these is in the name of every position table."""
FIXED = ("mpt",)
"""Models whose ALiBi is built for a fixed number of positions; that of others grows with the row."""

PLAIN = re.compile(r"[<|\w][\w<>|/.-]*")
"""A token that needs no quotes in a setting."""
SHOWN = 3
"""Tokens listed in a message."""


def _config(folder: Path, *, trust_remote_code: bool) -> Any:
    """The configuration of the text part; None if transformers cannot read it (loading reports why)."""
    try:
        with quiet_transformers():
            config = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
        return config.get_text_config()
    except Exception:  # code that comes with a model may raise anything
        return None


def tokens(folder: Path, *, trust_remote_code: bool = False) -> int | None:
    """The number of rows in a base's embeddings; None if its configuration does not say."""
    config = _config(folder, trust_remote_code=trust_remote_code)
    size = getattr(config, "vocab_size", None)
    if size is None:
        try:
            size = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("vocab_size")
        except (OSError, ValueError, AttributeError):
            return None
    return int(size) if isinstance(size, int) and size > 0 else None


def made_for(folder: Path, *, trust_remote_code: bool = False) -> int | None:
    """The number of positions a base was made for. Most can read more; `positions` says which cannot."""
    return _limit(_config(folder, trust_remote_code=trust_remote_code))


def _limit(config: Any) -> int | None:
    limit = next((value for name in LIMITS if (value := getattr(config, name, None))), None)
    return int(limit) if isinstance(limit, int) and limit > 0 else None


def positions(model: Any) -> int | None:
    """The number of positions that a model can read at most: the rows of its position table.

    GPT-2, OPT and GPT-J have such a table; MPT has none, but is limited, too. Models with rotary positions, ALiBi or a
    state have no limit: None. The model may be on the meta device, and have an adapter.
    """
    config = model.config.get_text_config()
    limit = _limit(config)
    if limit is None or getattr(config, "rope_parameters", None):
        return None
    if config.model_type in FIXED:
        return limit
    for name, table in (*model.named_parameters(), *model.named_buffers()):
        is_table = table.dim() == 2 and limit <= len(table) <= limit + SPARE and any(part in name for part in NAMES)
        if not is_table:
            continue
        owner = model.get_submodule(name.rpartition(".")[0])
        if not hasattr(owner, "make_weights"):  # XGLM's grows
            before = getattr(owner, "padding_idx", None)  # RoBERTa counts from the row after it
            return limit if before is None else min(limit, len(table) - before - 1)
    return None


def left(model: Any, length: int) -> int | None:
    """How many positions are left after `length` tokens and a learned prompt; None if there is no limit."""
    config = getattr(model, "active_peft_config", None)  # of a peft.PeftModel
    limit = positions(model.get_base_model() if config else model)
    learned = (config.num_virtual_tokens or 0) if config and config.is_prompt_learning else 0
    return None if limit is None else max(limit - learned - length, 0)


# --- the tokens of a tokenizer


def size(tokenizer: Any) -> int:
    """How many rows the embeddings need to cover each of the tokenizer's ids."""
    vocabulary: dict[str, int] = tokenizer.get_vocab()
    return max(len(tokenizer), max(vocabulary.values(), default=-1) + 1)


def beyond(tokenizer: Any, rows: int | None) -> dict[int, str]:
    """The tokens of a tokenizer beyond `rows` rows of embeddings, by their ids."""
    if rows is None or size(tokenizer) <= rows:
        return {}
    return {number: text for text, number in sorted(tokenizer.get_vocab().items()) if number >= rows}


def listed(tokens: Mapping[int, str]) -> str:
    """A few tokens with their ids, for a message."""
    shown = [f"{text!r} (id {number:,})" for number, text in sorted(tokens.items())]
    more = f" and {len(shown) - SHOWN:,} more" if len(shown) > SHOWN else ""
    return ", ".join(shown[:SHOWN]) + more


def add_tokens(tokens: Iterable[str]) -> str:
    """The argument that gives tokens embeddings, for a shell; ambiguous tokens are quoted."""
    names = (name if PLAIN.fullmatch(name) and name.lower() not in NONE_WORDS else f'"{name}"' for name in tokens)
    return f"--model.add_tokens {shlex.quote(','.join(names))}"


def refuse_ids(tokenizer: Any, ids: Iterable[int], *, place: str) -> None:
    """Refuse training data with tokens that the model has no embeddings for.

    `tokenizer.rows` is the number of embeddings (`tokenizers.load` sets it). `place` says where the first token is.

    Raises:
        ModelError: there is such a token.
    """
    rows: int | None = getattr(tokenizer, "rows", None)
    if rows is None:
        return
    lost = {number: str(tokenizer.convert_ids_to_tokens(number)) for number in {*ids} if number >= rows}
    if not lost:
        return
    raise ModelError(
        f"{place} contains {listed(lost)}, but the model has embeddings for {rows:,} tokens (ids 0 to {rows - 1:,})",
        hint=f"give them embeddings, which are trained: {add_tokens(lost[number] for number in sorted(lost))}; or use "
        "a template or a tokenizer that does not write them",
    )
