"""Load the tokenizer that encodes the rows and is saved with the model: its chat template, its pad token."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from transformers import AddedToken, AutoTokenizer, PreTrainedTokenizerFast

from mlflow_ft.config.schema import Config
from mlflow_ft.engine import template_text
from mlflow_ft.engine.hub import quiet_transformers
from mlflow_ft.errors import ConfigError, ModelError, brief
from mlflow_ft.job import BaseModel


def load(config: Config, base: BaseModel) -> Any:
    """Load the base model's tokenizer with the tokens and the chat template that will be used, saved and served.

    Its `new_tokens` are the ids of `model.add_tokens`.

    Raises:
        ModelError: the folder holds no tokenizer, a slow one, or no chat template and none was given.
        ConfigError: a token of `model.add_tokens` exists already.
    """
    try:
        with quiet_transformers():
            tokenizer: Any = AutoTokenizer.from_pretrained(
                base.tokenizer, trust_remote_code=config.model.trust_remote_code, use_fast=True
            )
    except (OSError, ValueError, KeyError, TypeError, ImportError) as error:
        raise ModelError(
            f"model {base.name!r} has no tokenizer that can be loaded: {brief(error)}",
            hint=f"looked in {base.tokenizer}; save one there with tokenizer.save_pretrained(folder)",
        ) from error
    if not tokenizer.is_fast:
        raise ModelError(
            f"model {base.name!r} has a slow tokenizer, which cannot tell where a token stands in the text",
            hint="convert it to tokenizer.json (transformers' PreTrainedTokenizerFast)",
        )
    if config.data.chat_template:
        tokenizer.chat_template = template_text.read(config.data.chat_template)
    if not tokenizer.chat_template:
        raise ModelError(
            f"model {base.name!r} has a tokenizer without a chat template",
            hint="give one: --data.chat_template FILE.jinja, or start from the instruct version of the model",
        )
    choose_pad_token(tokenizer)
    tokenizer.new_tokens = add_tokens(tokenizer, config.model.add_tokens or (), known=base.start is not None)
    return tokenizer


def add_tokens(tokenizer: Any, tokens: Sequence[str], *, known: bool = False) -> tuple[int, ...]:
    """Teach the tokenizer new tokens and return their ids. They are words, not special: an answer shows them.

    `known` ones may be there already, of a training that is gone on with.

    Raises:
        ConfigError: a token exists already, or the tokenizer cannot keep it whole.
    """
    vocabulary = tokenizer.get_vocab()
    there = [token for token in dict.fromkeys(tokens) if token in vocabulary or tokens.count(token) > 1]
    if there and not known:
        raise ConfigError(
            f"model.add_tokens: {', '.join(map(repr, there))} is there already, or stands there twice",
            hint="leave it out; to train the embedding of a token that exists, give its id in "
            "adapter.trainable_token_indices",
        )
    if known and (missing := [token for token in tokens if token not in vocabulary]):
        raise ConfigError(
            f"model.add_tokens: {', '.join(map(repr, missing))} cannot come to an adapter that is trained already",
            hint="merge it, and go on from the merged model",
        )
    added = [AddedToken(token, normalized=False, special=False) for token in tokens if token not in vocabulary]
    tokenizer.add_tokens(added)
    ids = [tokenizer.convert_tokens_to_ids(token) for token in tokens]
    for token, number in zip(tokens, ids, strict=True):
        if tokenizer(token, add_special_tokens=False)["input_ids"] != [number]:
            raise ConfigError(f"model.add_tokens: the tokenizer takes {token!r} apart", hint="take another spelling")
    return tuple(ids)


def choose_pad_token(tokenizer: PreTrainedTokenizerFast) -> None:
    """Give the tokenizer a pad token that does not end a turn, where it has one to give.

    A pad token inside the list of end tokens makes generation from a padded batch stop at once, and a collator that
    masks every pad token unlearns stopping. Our labels never depend on the pad token, so the end token may serve as
    the last resort.
    """
    if tokenizer.pad_token_id is not None and tokenizer.pad_token_id != tokenizer.eos_token_id:
        return
    taken = {tokenizer.eos_token, tokenizer.bos_token, None}
    special = [str(token) for token in tokenizer.added_tokens_decoder.values() if token.special]
    named = [token for token in special if "pad" in token.lower()]
    free = [token for token in (*named, tokenizer.unk_token) if token not in taken]
    tokenizer.pad_token = free[0] if free else tokenizer.eos_token
