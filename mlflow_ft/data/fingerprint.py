"""What says exactly which data a model was trained on: of each row, of each side, of everything together."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from mlflow_ft.hashes import canonical
from mlflow_ft.rows import Encoded, Example, Message

DIGEST_LENGTH = 32
"""Hex digits; MLflow refuses digests over 36 characters."""


def key(value: Any) -> int:
    """64 bits over a value, by which rows are put into groups."""
    return int.from_bytes(hashlib.blake2b(canonical(value), digest_size=8).digest(), "little")


def prompt_key(example: Example) -> int:
    """64 bits over what is asked: rows with the same prompt, whatever their answers, have the same."""
    asked: Sequence[Message] | str | None = example.text if example.text is not None else example.prompt
    return key(asked)


def content_hash(example: Example, encoded: Encoded) -> bytes:
    """16 bytes over what a row became: every turn, every token, every label."""
    found = hashlib.blake2b(canonical(_content(example)), digest_size=16)
    for one in (encoded, encoded.rejected) if encoded.rejected else (encoded,):
        found.update(array("q", (len(one.input_ids), *one.input_ids, *one.labels)).tobytes())
    return found.digest()


def _content(example: Example) -> list[Any]:
    rest = [example.chosen, example.rejected, example.label, example.text, example.columns]
    return [list(example.messages), example.tools, *(one for one in rest if one not in (None, (), {}))]


def digest(hashes: Iterable[bytes], *, template: str) -> str:
    """Sha256, cut to 32 digits, over the chat template and the content of every row, in order."""
    found = hashlib.sha256(template.encode())
    for one in hashes:
        found.update(one)
    return found.hexdigest()[:DIGEST_LENGTH]


def fingerprint(parts: Mapping[str, Any]) -> str:
    """Sha256, cut to 32 digits, over all that decides what is learned; `parts` is kept beside it, for people."""
    return hashlib.sha256(canonical(parts)).hexdigest()[:DIGEST_LENGTH]
