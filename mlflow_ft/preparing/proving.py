"""The expensive part of preparing rows (template, tokens, proof), in one process or, for many rows, in several."""

from __future__ import annotations

import os
import tempfile
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, TypeVar

from mlflow_ft.rows import Encoded, Example

if TYPE_CHECKING:
    from concurrent.futures import Future

    from mlflow_ft.engine.tokens.masking import Encoder, Tokenised
    from mlflow_ft.engine.tokens.render import MaskError

ALONE = 20_000
"""Rows that one process does before more are worth starting, which takes seconds."""
MOST_WORKERS = 16
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class ProvedRow:
    """A row as the trainer sees it, with its mask proved."""

    encoded: Encoded
    length: int
    """In tokens, before any cut; for a preference, with the longer answer."""
    learnable: bool
    """Whether any token is learned; for a preference, in both answers."""
    ends: tuple[int, ...]
    """The tokens that end the assistant's turns."""
    unwritten: int = 0
    """Learned turns whose thoughts the template leaves out."""


def prove(encoder: Encoder, examples: Sequence[Example]) -> list[ProvedRow | MaskError]:
    """Tokenise rows and prove their masks; a row whose mask cannot be proved becomes its error."""
    return [summary(result) if isinstance(result, list) else result for result in encoder.tokenise(examples)]


def summary(conversations: Sequence[Tokenised]) -> ProvedRow:
    """A row's conversations as one row."""
    from mlflow_ft.engine.tokens import masking

    encoded = masking.joined(conversations)
    parts = (encoded, encoded.rejected) if encoded.rejected else (encoded,)
    return ProvedRow(
        encoded=encoded,
        length=max(conversation.length for conversation in conversations),
        learnable=all(part.supervised for part in parts),
        ends=tuple(masking.ends(encoded)),
        unwritten=sum(len(conversation.unwritten) for conversation in conversations),
    )


def prove_batches(
    batches: Iterator[T], examples_of: Callable[[T], list[Example]], encoder: Encoder, *, workers: int | None = None
) -> Generator[tuple[T, list[ProvedRow | MaskError]]]:
    """Every batch with its results, in order. After `ALONE` rows more processes help if there are cores for them."""
    rows = 0
    for batch in batches:
        examples = examples_of(batch)
        yield batch, prove(encoder, examples)
        rows += len(examples)
        if rows >= ALONE:
            break
    count = min(MOST_WORKERS, cores() - 1) if workers is None else workers
    if count < 1:
        yield from ((batch, prove(encoder, examples_of(batch))) for batch in batches)
    else:
        yield from _by_workers(batches, examples_of, encoder, count)


def cores() -> int:
    """The number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _by_workers(
    batches: Iterator[T], examples_of: Callable[[T], list[Example]], encoder: Encoder, count: int
) -> Generator[tuple[T, list[ProvedRow | MaskError]]]:
    first = next(batches, None)
    if first is None:
        return

    from joblib.externals.loky import get_reusable_executor  # its workers do not run the main program again

    from mlflow_ft.engine.tokens import clock

    with tempfile.TemporaryDirectory() as folder:
        encoder.tokenizer.save_pretrained(folder)
        arguments = (folder, encoder.max_length, clock.moment())
        executor = get_reusable_executor(max_workers=count, initializer=_start, initargs=arguments, timeout=60)
        pending: deque[tuple[T, Future[Any]]] = deque([(first, executor.submit(_work, examples_of(first)))])
        try:
            for batch in batches:
                pending.append((batch, executor.submit(_work, examples_of(batch))))
                if len(pending) > 2 * count:
                    yield _finished(encoder, *pending.popleft())
            while pending:
                yield _finished(encoder, *pending.popleft())
        finally:
            executor.shutdown(wait=True, kill_workers=True)


def _finished(encoder: Encoder, batch: T, future: Future[Any]) -> tuple[T, list[ProvedRow | MaskError]]:
    results, extended_template, dates = future.result()
    encoder.dates.update(dates)
    if extended_template:  # a worker met rows that need tools; all workers extend the template in the same way
        encoder.tokenizer.chat_template = extended_template
    return batch, results


_encoder: Encoder | None = None
"""Set in a worker."""
_moment: datetime | None = None
"""The time at which the clock of a worker is held."""


def _start(folder: str, max_length: int, moment: datetime | None) -> None:
    from transformers import AutoTokenizer

    from mlflow_ft.engine.tokens.masking import Encoder

    global _encoder, _moment
    _moment = moment
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # there are as many processes as cores
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    _encoder = Encoder(tokenizer, max_length=max_length)


def _work(examples: Sequence[Example]) -> tuple[list[ProvedRow | MaskError], str, dict[str, str]]:
    """The results, the chat template if it was extended for rows with tools (else ""), and the dates that it wrote."""
    from mlflow_ft.engine.tokens import clock, tool_text

    assert _encoder is not None
    with clock.held(_moment):
        results = prove(_encoder, examples)
    extended_template = str(_encoder.tokenizer.chat_template) if tool_text.taught(_encoder.tokenizer) else ""
    return results, extended_template, _encoder.dates
