"""Convert a model in transformers' format to a GGUF file and an Ollama Modelfile, and verify the chat template."""

from __future__ import annotations

import logging
import tempfile
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from mlflow_ft import FineTuneError, RefusedError
from mlflow_ft.engine.tokens import clock
from mlflow_ft_gguf.engine import converter, kquants, llamacpp, ollama
from mlflow_ft_gguf.engine.llamacpp import LlamaCpp

DIRECT = ("f16", "q8_0")
"""Types that the converter writes directly."""
CONVERSATIONS = (
    [{"role": "user", "content": "Hello"}],
    [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why is the sky blue?"}],
    [
        {"role": "user", "content": "1 + 1?"},
        {"role": "assistant", "content": "2"},
        {"role": "user", "content": "And\n\n2 + 2?"},
    ],
)
"""Conversations for testing the template in the file."""
log = logging.getLogger(__name__)


def refuses(folder: Path | None) -> str | None:
    """Why a model with this architecture and tokenizer cannot be converted; None if it can.

    Without a folder, only the converter itself is fetched.
    """
    try:
        if folder is None:
            converter.ensure()
        else:
            with tempfile.TemporaryDirectory() as scratch:
                converter.convert(folder, Path(scratch, "vocabulary.gguf"), kind="f16", vocabulary_only=True)
    except FineTuneError as error:
        return error.message
    return None


def export(source: Path, folder: Path, *, kind: str) -> None:
    """Write `model-KIND.gguf` and, if Ollama's language can express the chat template, a `Modelfile`.

    Raises:
        ModelError: the converter does not support the model. RefusedError: llama.cpp would prompt it differently from
        training, because its template or its special tokens were lost.
    """
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"model-{kind}.gguf"
    if kind in DIRECT:
        converter.convert(source, file, kind=kind)
    else:
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            plain = Path(scratch, "f32.gguf")
            converter.convert(source, plain, kind="f32")
            kquants.quantise(plain, file, kind=kind)
    tokenizer: Any = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    with clock.held(None), llamacpp.opened(folder) as server:  # llama.cpp gives templates the current time
        check(server, tokenizer)
    with clock.held(clock.current()) as dates_read:
        text = ollama.modelfile(tokenizer, source, file.name)
    if text and dates_read.asked:
        dates = ", ".join(dates_read.asked.values())
        log.warning("the chat template uses the date; the Modelfile fixes it at %s, as Ollama has no clock", dates)
    if text:
        (folder / "Modelfile").write_text(text, encoding="utf-8")
    else:
        log.warning("no Modelfile was written: Ollama's language cannot express the chat template")


def check(server: LlamaCpp, tokenizer: Any) -> None:
    """Let llama.cpp render and tokenise conversations, and compare both with training.

    Raises:
        RefusedError: the prompt or its tokens differ.
    """
    for messages in CONVERSATIONS:
        try:
            trained = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        except Exception:  # raised by the template: it does not support system prompts
            continue
        prompt = server.rendered(messages)
        begin = tokenizer.bos_token or ""
        if prompt.removeprefix(begin) != trained.removeprefix(begin):
            raise RefusedError(
                f"llama.cpp renders a different prompt from training: {prompt!r} instead of {trained!r}",
                hint="compare tokenizer.chat_template in the GGUF file with the model's chat_template.jinja",
            )
        wanted = tokenizer(trained, add_special_tokens=False)["input_ids"]
        tokens = server.tokens(trained)
        if tokens != wanted:
            place = next((at for at, pair in enumerate(zip(tokens, wanted, strict=False)) if pair[0] != pair[1]), 0)
            raise RefusedError(
                f"llama.cpp tokenises {trained!r} differently from training, from token {place} on: "
                f"{tokens[place : place + 5]} instead of {wanted[place : place + 5]}",
                hint="the GGUF file has lost special tokens, or the way the tokenizer splits text",
            )
