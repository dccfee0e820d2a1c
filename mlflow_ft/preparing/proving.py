"""The costly part of preparing rows, template, tokens and proof, in this process or, of many rows, in several."""

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
"""Rows that one process does before others are worth their start, which takes seconds."""
MOST_WORKERS = 16
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class ProvedRow:
    """A row as the trainer sees it, with its mask proved."""

    encoded: Encoded
    length: int
    """In tokens, before any cut; of a preference, of the longer answer."""
    learnable: bool
    """Something is learned of it: of a preference, of both answers."""
    ends: tuple[int, ...]
    """The tokens that end the assistant's turns."""
    unwritten: int = 0
    """Learned turns whose thoughts the template leaves out."""


def prove(encoder: Encoder, examples: Sequence[Example]) -> list[ProvedRow | MaskError]:
    """Tokenise rows and prove their masks; in place of a row that cannot be proved stands its error."""
    return [summary(one) if isinstance(one, list) else one for one in encoder.tokenise(examples)]


def summary(found: Sequence[Tokenised]) -> ProvedRow:
    """What is kept of a row's conversations."""
    from mlflow_ft.engine.tokens import masking

    encoded = masking.joined(found)
    parts = (encoded, encoded.rejected) if encoded.rejected else (encoded,)
    return ProvedRow(
        encoded=encoded,
        length=max(one.length for one in found),
        learnable=all(one.supervised for one in parts),
        ends=tuple(masking.ends(encoded)),
        unwritten=sum(len(one.unwritten) for one in found),
    )


def proved(
    batches: Iterator[T], examples_of: Callable[[T], list[Example]], encoder: Encoder, *, workers: int | None = None
) -> Generator[tuple[T, list[ProvedRow | MaskError]]]:
    """Every batch with its results, in order. After `ALONE` rows other processes help, where there are cores for it."""
    done = 0
    for batch in batches:
        examples = examples_of(batch)
        yield batch, prove(encoder, examples)
        done += len(examples)
        if done >= ALONE:
            break
    count = min(MOST_WORKERS, cores() - 1) if workers is None else workers
    if count < 1:
        yield from ((batch, prove(encoder, examples_of(batch))) for batch in batches)
    else:
        yield from _by_workers(batches, examples_of, encoder, count)


def cores() -> int:
    """Cores that this process may use."""
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
        given = (folder, encoder.max_length, clock.moment())
        executor = get_reusable_executor(max_workers=count, initializer=_start, initargs=given, timeout=60)
        pending: deque[tuple[T, Future[Any]]] = deque([(first, executor.submit(_work, examples_of(first)))])
        try:
            for batch in batches:
                pending.append((batch, executor.submit(_work, examples_of(batch))))
                if len(pending) > 2 * count:
                    yield _taken(encoder, *pending.popleft())
            while pending:
                yield _taken(encoder, *pending.popleft())
        finally:
            executor.shutdown(wait=True, kill_workers=True)


def _taken(encoder: Encoder, batch: T, future: Future[Any]) -> tuple[T, list[ProvedRow | MaskError]]:
    results, taught, dates = future.result()
    encoder.dates.update(dates)
    if taught:  # a worker met rows that need tools; all of them extend the template in the same way
        encoder.tokenizer.chat_template = taught
    return batch, results


_encoder: Encoder | None = None
"""Of a worker."""
_moment: datetime | None = None
"""At which the clock is held in a worker, too."""


def _start(folder: str, max_length: int, moment: datetime | None) -> None:
    from transformers import AutoTokenizer

    from mlflow_ft.engine.tokens.masking import Encoder

    global _encoder, _moment
    _moment = moment
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # there are as many processes as cores
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    _encoder = Encoder(tokenizer, max_length=max_length)


def _work(examples: Sequence[Example]) -> tuple[list[ProvedRow | MaskError], str, dict[str, str]]:
    """The results, the chat template where it was extended for rows with tools, and the dates that it wrote."""
    from mlflow_ft.engine.tokens import clock, tool_text

    assert _encoder is not None
    with clock.held(_moment):
        results = prove(_encoder, examples)
    taught = str(_encoder.tokenizer.chat_template) if tool_text.taught(_encoder.tokenizer) else ""
    return results, taught, _encoder.dates
