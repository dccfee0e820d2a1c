"""What a request to a model needs in vLLM to be answered as in training: template, end tokens, generation settings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import AutoConfig, AutoTokenizer

from mlflow_ft import ModelError, ServedModel
from mlflow_ft.engine.models import generation, loading

SAME = {"repetition_penalty": "repetition_penalty", "min_new_tokens": "min_tokens"}
"""Settings of transformers that affect greedy answers, and their names in vLLM."""
SEARCHED = ("no_repeat_ngram_size", "suppress_tokens", "begin_suppress_tokens", "bad_words_ids", "sequence_bias")
"""Settings that affect greedy answers, too, and that vLLM does not have."""


@dataclass(frozen=True, kw_only=True)
class Trained:
    """A model's tokenizer, and the defaults of a request."""

    tokenizer: Any
    tokenizer_folder: Path
    width: int
    """Of the model's logits."""
    end_tokens: Sequence[int]
    sampling: Mapping[str, Any]
    """Greedy unless a request sets a temperature; the penalties of generation_config.json."""
    lost: Sequence[str]
    """Settings of generation_config.json that vLLM does not have."""

    @property
    def template(self) -> str:
        return str(self.tokenizer.chat_template)

    @property
    def vocabulary(self) -> bytes:
        """The tokens of the tokenizer, to compare it with another one."""
        file = self.tokenizer_folder / "tokenizer.json"
        return file.read_bytes() if file.is_file() else repr(sorted(self.tokenizer.get_vocab().items())).encode()

    def defaults(self, *, chat: bool) -> dict[str, Any]:
        """The fields of a request that it may override, except the end tokens and the template."""
        from mlflow_ft.engine.serving.chat_model import DEFAULT_MAX_TOKENS  # after loaded_models, which hushes MLflow

        fields = {**self.sampling, "max_tokens": DEFAULT_MAX_TOKENS}
        return fields | self.always(chat=chat)

    def always(self, *, chat: bool) -> dict[str, Any]:
        """The fields of every request."""
        fields: dict[str, Any] = {"stop_token_ids": list(self.end_tokens)}
        return fields | ({"chat_template": self.template} if chat else {})


def read(model: ServedModel, folder: Path) -> Trained:
    """What was trained, from the files of a model; its tokenizer is in `folder`.

    Raises:
        ModelError: it has no chat template.
    """
    tokenizer: Any = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    if not tokenizer.chat_template:
        raise ModelError(
            f"{model.uri} has no chat template, so it cannot answer messages",
            hint="serve the trained model, which has one",
        )
    if not isinstance(tokenizer.chat_template, str):
        raise ModelError(
            f"{model.uri} has several chat templates, and vLLM chooses among them", hint="use --engine transformers"
        )
    settings = dict(generation.read(model.folder).settings)
    if model.base is not None:
        settings = {**generation.read(model.base.path).settings, **settings}
    own = loading.token_ids(settings.get("eos_token_id"))
    kept = {theirs: settings[name] for name, theirs in SAME.items() if settings.get(name) not in (None, 0, 1.0)}
    config = AutoConfig.from_pretrained(
        model.folder if model.base is None else model.base.path, trust_remote_code=False
    )
    return Trained(
        width=config.get_text_config().vocab_size,
        tokenizer=tokenizer,
        tokenizer_folder=folder,
        end_tokens=list(dict.fromkeys(own or loading.token_ids(tokenizer.eos_token_id))),
        sampling={"temperature": 0, "top_p": 1.0, "top_k": 0, **kept},
        lost=[name for name in SEARCHED if settings.get(name)],
    )


def with_ends_of(trained: Trained, base: Path) -> Trained:
    """The same for the base without the adapter: with the end tokens of both."""
    own = loading.token_ids(generation.read(base).settings.get("eos_token_id"))
    return Trained(**{**vars(trained), "end_tokens": list(dict.fromkeys((*trained.end_tokens, *own)))})
