"""Load the tokenizer that encodes the rows and is saved with the model: its chat template, its pad token."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, PreTrainedTokenizerFast

from mlflow_ft.config.schema import Config
from mlflow_ft.engine.hub import quiet_transformers
from mlflow_ft.errors import ModelError
from mlflow_ft.job import BaseModel

SHORTEST_TEMPLATE_TEXT = "{"


def load(config: Config, base: BaseModel) -> Any:
    """Load the base model's tokenizer with the chat template that will be used, saved and served.

    Raises:
        ModelError: the folder holds no tokenizer, a slow one, or no chat template and none was given.
    """
    try:
        with quiet_transformers():
            tokenizer: Any = AutoTokenizer.from_pretrained(
                base.tokenizer, trust_remote_code=config.model.trust_remote_code, use_fast=True
            )
    except (OSError, ValueError, KeyError, TypeError, ImportError) as error:
        raise ModelError(
            f"model {base.name!r} has no tokenizer that can be loaded: {str(error).splitlines()[0]}",
            hint=f"looked in {base.tokenizer}; save one there with tokenizer.save_pretrained(folder)",
        ) from error
    if not tokenizer.is_fast:
        raise ModelError(
            f"model {base.name!r} has a slow tokenizer, which cannot tell where a token stands in the text",
            hint="convert it to tokenizer.json (transformers' PreTrainedTokenizerFast)",
        )
    if config.data.chat_template:
        tokenizer.chat_template = _template_text(config.data.chat_template)
    if not tokenizer.chat_template:
        raise ModelError(
            f"model {base.name!r} has a tokenizer without a chat template",
            hint="give one: --data.chat_template FILE.jinja, or start from the instruct version of the model",
        )
    choose_pad_token(tokenizer)
    return tokenizer


def _template_text(given: str) -> str:
    if SHORTEST_TEMPLATE_TEXT in given:
        return given
    path = Path(given).expanduser()
    if not path.is_file():
        raise ModelError(
            f"data.chat_template: there is no file {given!r}", hint=f"looked in {Path.cwd()}; a template holds '{{'"
        )
    return path.read_text()


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
