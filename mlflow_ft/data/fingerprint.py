"""Hashes that identify the data a model was trained on: of each row, of each side, of everything together."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from mlflow_ft.hashes import canonical
from mlflow_ft.rows import Example, Message

Answer = tuple[Sequence[int], Sequence[int]]
"""The tokens of an answer, with those before it, and their labels."""
DIGEST_LENGTH = 32
"""Hex digits; MLflow refuses digests over 36 characters."""


def key(value: Any) -> int:
    """A 64-bit hash of a value, by which rows are grouped."""
    return int.from_bytes(hashlib.blake2b(canonical(value), digest_size=8).digest(), "little")


def prompt_key(example: Example) -> int:
    """A 64-bit hash of the prompt: rows with the same prompt have the same, whatever their answers."""
    prompt: Sequence[Message] | str | None = example.text if example.text is not None else example.prompt
    return key(prompt)


def content_hash(example: Example, *answers: Answer) -> bytes:
    """16 bytes over the prepared row: every turn, and every token and label of each of its answers."""
    import numpy as np

    content = hashlib.blake2b(canonical(_content(example)), digest_size=16)
    for ids, labels in answers:
        for numbers in ((len(ids),), ids, labels):
            content.update(np.asarray(numbers, np.int64).tobytes())
    return content.digest()


def _content(example: Example) -> list[Any]:
    rest = [example.chosen, example.rejected, example.label, example.text, example.columns]
    return [list(example.messages), example.tools, *(value for value in rest if value not in (None, (), {}))]


def digest(hashes: Iterable[bytes], *, template: str) -> str:
    """Sha256, cut to 32 digits, over the chat template and the content of every row, in order."""
    total = hashlib.sha256(template.encode())
    for content in hashes:
        total.update(content)
    return total.hexdigest()[:DIGEST_LENGTH]


def fingerprint(parts: Mapping[str, Any]) -> str:
    """Sha256, cut to 32 digits, over everything that decides what is learned; `parts` is kept with it, for people."""
    return hashlib.sha256(canonical(parts)).hexdigest()[:DIGEST_LENGTH]
