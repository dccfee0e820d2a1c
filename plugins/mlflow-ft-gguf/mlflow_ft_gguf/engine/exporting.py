"""From a folder of transformers to a folder with a GGUF file, a Modelfile for Ollama, and a proof of the template."""

from __future__ import annotations

import logging
import tempfile
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from mlflow_ft.engine.tokens import clock
from mlflow_ft.errors import FineTuneError, RefusedError
from mlflow_ft_gguf.engine import converter, kquants, llamacpp, ollama
from mlflow_ft_gguf.engine.llamacpp import LlamaCpp

DIRECT = ("f16", "q8_0")
"""What the converter writes by itself."""
CONVERSATIONS = (
    [{"role": "user", "content": "Hello"}],
    [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why is the sky blue?"}],
    [
        {"role": "user", "content": "1 + 1?"},
        {"role": "assistant", "content": "2"},
        {"role": "user", "content": "And\n\n2 + 2?"},
    ],
)
"""What the template in the file is tried on."""
log = logging.getLogger(__name__)


def refuses(folder: Path | None) -> str | None:
    """Why a model of this architecture, with this tokenizer, cannot be converted; None where it can.

    Without a folder only the converter itself is made ready.
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
    """Write `model-KIND.gguf` and, where its template can be told in Ollama's language, a `Modelfile`.

    Raises:
        ModelError: the converter does not know the model. RefusedError: llama.cpp would ask it otherwise than it was
        trained: its template, or its special tokens, were lost.
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
    tokenizer: Any = AutoTokenizer.from_pretrained(source)
    with clock.held(None), llamacpp.opened(folder) as server:  # llama.cpp tells templates the present time
        check(server, tokenizer)
    with clock.held(clock.current()) as told:
        text = ollama.modelfile(tokenizer, source, file.name)
    if text and told.asked:
        dates = ", ".join(told.asked.values())
        log.warning("the chat template writes the date; in the Modelfile it stays %s, for Ollama has no clock", dates)
    if text:
        (folder / "Modelfile").write_text(text, encoding="utf-8")
    else:
        log.warning("no Modelfile was written: the chat template cannot be told in Ollama's language")


def check(server: LlamaCpp, tokenizer: Any) -> None:
    """Let llama.cpp write conversations as prompts, and read them; both must be what was trained.

    Raises:
        RefusedError: the prompt is another one, or its tokens are.
    """
    for messages in CONVERSATIONS:
        try:
            trained = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        except Exception:  # a template's own: it takes no system prompt
            continue
        found = server.rendered(messages)
        begin = tokenizer.bos_token or ""
        if found.removeprefix(begin) != trained.removeprefix(begin):
            raise RefusedError(
                f"llama.cpp does not write prompts as they were trained: {found!r} for {trained!r}",
                hint="look at tokenizer.chat_template in the GGUF file, and at chat_template.jinja beside the model",
            )
        wanted = tokenizer(trained, add_special_tokens=False)["input_ids"]
        tokens = server.tokens(trained)
        if tokens != wanted:
            place = next((at for at, pair in enumerate(zip(tokens, wanted, strict=False)) if pair[0] != pair[1]), 0)
            raise RefusedError(
                f"llama.cpp reads {trained!r} as other tokens than were trained, from token {place} on: "
                f"{tokens[place : place + 5]} for {wanted[place : place + 5]}",
                hint="its special tokens, or the way it splits text, were lost in the GGUF file",
            )
