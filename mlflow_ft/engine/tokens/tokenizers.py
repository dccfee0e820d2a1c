"""Load the tokenizer that encodes the rows and is saved with the model, with its chat template and pad token."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial
from typing import Any

from transformers import AddedToken, AutoTokenizer

from mlflow_ft.config.schema import Config
from mlflow_ft.engine import own_code
from mlflow_ft.engine.hub import quiet_transformers
from mlflow_ft.engine.tokens import room, template_text
from mlflow_ft.errors import ConfigError, ModelError, brief
from mlflow_ft.values import BaseModel

CANDIDATES = 3
"""Tokens that a message suggests."""


def load(config: Config, base: BaseModel) -> Any:
    """Load the base model's tokenizer with the tokens and the chat template that will be used, saved and served.

    Its `new_tokens` are the ids of `model.add_tokens`; its `rows` is the number of the model's embeddings.

    Raises:
        ModelError: the folder has no tokenizer, or only a slow one; there is no chat template, or no token to pad
        with. ConfigError: a token of `model.add_tokens` already exists, or `model.pad_token` does not.
    """
    try:
        with quiet_transformers():
            tokenizer: Any = AutoTokenizer.from_pretrained(
                base.tokenizer, trust_remote_code=config.model.trust_remote_code, use_fast=True
            )
    except (OSError, ValueError, KeyError, TypeError, ImportError) as error:
        own_code.check_tokenizer(config, base)
        raise ModelError(
            f"model {base.name!r} has no tokenizer that can be loaded: {brief(error)}",
            hint=f"looked in {base.tokenizer}; save one there with tokenizer.save_pretrained(folder)",
        ) from error
    if not tokenizer.is_fast:
        raise ModelError(
            f"model {base.name!r} has a slow tokenizer, which cannot report where a token is in the text",
            hint="convert it to tokenizer.json (transformers' PreTrainedTokenizerFast)",
        )
    if config.data.chat_template:
        tokenizer.chat_template = template_text.read(config.data.chat_template)
    if not tokenizer.chat_template:
        raise ModelError(
            f"model {base.name!r} has a tokenizer without a chat template",
            hint="give one: --data.chat_template FILE.jinja, or start from the instruct version of the model",
        )
    rows = room.tokens(base.path, trust_remote_code=config.model.trust_remote_code)
    new = add_tokens(tokenizer, config.model.add_tokens or (), known=base.start is not None, rows=rows)
    if rows is not None and (new or base.start):
        rows = max(rows, room.size(tokenizer))  # `vocabulary.grow` adds these
    choose_pad_token(tokenizer, asked=config.model.pad_token, rows=rows)
    tokenizer.new_tokens, tokenizer.rows = new, rows
    return tokenizer


def add_tokens(
    tokenizer: Any, tokens: Sequence[str], *, known: bool = False, rows: int | None = None
) -> tuple[int, ...]:
    """Add new tokens to the tokenizer and return their ids. They are not special tokens: answers show them.

    A token may already exist if `known` (training continues from an earlier run), or if the model, which has embeddings
    for `rows` tokens, has none for it.

    Raises:
        ConfigError: a token already exists, or the tokenizer splits it.
    """
    vocabulary = tokenizer.get_vocab()
    limit = sys.maxsize if rows is None else rows
    taken = [text for text in dict.fromkeys(tokens) if vocabulary.get(text, limit) < limit or tokens.count(text) > 1]
    if taken and not known:
        raise ConfigError(
            f"model.add_tokens: {', '.join(map(repr, taken))} already exists, or is listed twice",
            hint="omit it; to train the embedding of an existing token, put its id in adapter.trainable_token_indices",
        )
    if known and (missing := [token for token in tokens if token not in vocabulary]):
        raise ConfigError(
            f"model.add_tokens: {', '.join(map(repr, missing))} cannot be added to an adapter that is already trained",
            hint="merge it, and continue from the merged model",
        )
    added = [AddedToken(token, normalized=False, special=False) for token in tokens if token not in vocabulary]
    tokenizer.add_tokens(added)
    ids = [tokenizer.convert_tokens_to_ids(token) for token in tokens]
    for token, number in zip(tokens, ids, strict=True):
        if tokenizer(token, add_special_tokens=False)["input_ids"] != [number]:
            raise ConfigError(f"model.add_tokens: the tokenizer splits {token!r}", hint="use another spelling")
    return tuple(ids)


def choose_pad_token(tokenizer: Any, *, asked: str | None = None, rows: int | None = None) -> None:
    """Set a pad token that does not end a turn, if the tokenizer has one; or the one that is `asked` for.

    A pad token inside the list of end tokens makes generation from a padded batch stop at once, and a collator that
    masks every pad token unlearns stopping. Our labels never depend on the pad token, so the end token may serve as
    the last resort. `rows` is the number of the model's embeddings: the pad token must have one.

    Raises:
        ConfigError: the token `asked` for does not exist, or has no embedding. ModelError: the tokenizer's own pad
        token has no embedding, or there is no token to pad with.
    """
    if asked is not None:
        _check_asked(tokenizer, asked, rows)
        tokenizer.pad_token = asked
        return
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id == tokenizer.eos_token_id:
        free = _free(tokenizer, rows)
        tokenizer.pad_token = free[0] if free else tokenizer.eos_token
    number = tokenizer.pad_token_id
    if number is None:
        raise ModelError(
            "the tokenizer has no pad token, and no other special token to pad rows with",
            hint="name one of its tokens that does not occur in the rows: --model.pad_token TOKEN",
        )
    if rows is not None and number >= rows:
        free = [*_free(tokenizer, rows), *filter(partial(_has_row, tokenizer, rows), [tokenizer.eos_token])]
        names = " or ".join(f"--model.pad_token '{token}'" for token in free[:CANDIDATES])
        raise ModelError(
            f"the tokenizer pads with {tokenizer.pad_token!r} (id {number:,}), but the model has embeddings for "
            f"{rows:,} tokens (ids 0 to {rows - 1:,})",
            hint=f"choose a token that has one ({names or '--model.pad_token TOKEN'}), or give this one an "
            f"embedding: {room.add_tokens([tokenizer.pad_token])}",
        )


def _check_asked(tokenizer: Any, asked: str, rows: int | None) -> None:
    number = tokenizer.get_vocab().get(asked)
    if number is None:
        names = ", ".join(map(repr, _free(tokenizer, rows)[:CANDIDATES])) or "one of its tokens"
        raise ConfigError(
            f"model.pad_token: the tokenizer has no token {asked!r}",
            hint=f"name one that it has, such as {names}; {room.add_tokens([asked])} makes a new one",
        )
    if rows is not None and number >= rows:
        raise ConfigError(
            f"model.pad_token: {asked!r} has the id {number:,}, but the model has embeddings for {rows:,} tokens",
            hint=f"name another, or give it an embedding: {room.add_tokens([asked])}",
        )


def _free(tokenizer: Any, rows: int | None) -> list[str]:
    """Special tokens with an embedding that neither begin nor end a text, those named for padding first."""
    taken = {tokenizer.eos_token, tokenizer.bos_token, None}
    special = [str(token) for token in tokenizer.added_tokens_decoder.values() if token.special]
    named = [token for token in special if "pad" in token.lower()]
    return [token for token in (*named, tokenizer.unk_token) if token not in taken and _has_row(tokenizer, rows, token)]


def _has_row(tokenizer: Any, rows: int | None, token: str | None) -> bool:
    return token is not None and (rows is None or tokenizer.convert_tokens_to_ids(token) < rows)
