"""Several processes give what one gives, in the same order."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from mlflow_ft.engine.tokens import clock
from mlflow_ft.engine.tokens.masking import Encoder
from mlflow_ft.engine.tokens.render import MaskError
from mlflow_ft.preparing import proving
from mlflow_ft.preparing.proving import ProvedRow
from mlflow_ft.rows import Example

CALL = {"role": "assistant", "tool_calls": [{"type": "function", "function": {"name": "lamp", "arguments": {}}}]}
BATCH = 7


def row(number: int) -> Example:
    """Answers of many lengths, tool calls, and conversations that nobody began, which cannot be proved."""
    user = {"role": "user", "content": f"ask {number}"}
    answer = {"role": "assistant", "content": f"answer {number} " * (number % 5 + 1)}
    return Example(messages={3: (user, CALL), 5: (answer,)}.get(number % 7, (user, answer)))


ROWS = [row(number) for number in range(60)]
EncoderOf = Callable[[], Encoder]


@pytest.fixture
def encoder(tiny_model: Path) -> EncoderOf:
    return lambda: Encoder(AutoTokenizer.from_pretrained(tiny_model), max_length=40)


def run(encoder: Encoder, workers: int) -> list[ProvedRow | tuple[str, str]]:
    batches = iter([ROWS[start : start + BATCH] for start in range(0, len(ROWS), BATCH)])
    outcomes: list[ProvedRow | tuple[str, str]] = []
    for batch, results in proving.prove_batches(batches, lambda batch: batch, encoder, workers=workers):
        assert len(batch) == len(results)
        outcomes += [(str(result), result.text) if isinstance(result, MaskError) else result for result in results]
    return outcomes


@pytest.mark.slow
def test_several_processes_give_what_one_gives(encoder: EncoderOf, monkeypatch: pytest.MonkeyPatch) -> None:
    alone, helped = encoder(), encoder()
    expected = run(alone, 0)
    assert [isinstance(outcome, tuple) for outcome in expected] == [number % 7 == 5 for number in range(60)]
    monkeypatch.setattr(proving, "ALONE", 1)
    monkeypatch.setattr(proving, "prove", only_once(proving.prove))
    assert run(helped, 2) == expected
    assert "<tool_call>" in helped.tokenizer.chat_template
    assert helped.tokenizer.chat_template == alone.tokenizer.chat_template


@pytest.mark.slow
def test_other_processes_are_told_the_same_time(encoder: EncoderOf, monkeypatch: pytest.MonkeyPatch) -> None:
    def dated() -> Encoder:
        template_encoder = encoder()
        template_encoder.tokenizer.chat_template = "{{ strftime_now('%d %b %Y') }}" + str(
            template_encoder.tokenizer.chat_template
        )
        return template_encoder

    alone, helped = dated(), dated()
    with clock.held(datetime.fromisoformat("2026-05-06T23:59")):
        expected = run(alone, 0)
        monkeypatch.setattr(proving, "ALONE", 1)
        monkeypatch.setattr(proving, "prove", only_once(proving.prove))
        assert run(helped, 2) == expected
    assert alone.dates == helped.dates == {"%d %b %Y": "06 May 2026"}
    with clock.held(datetime.fromisoformat("2026-05-07")):
        monkeypatch.undo()
        assert run(dated(), 0) != expected


def only_once(prove: Callable[..., list[ProvedRow | MaskError]]) -> Callable[..., list[ProvedRow | MaskError]]:
    """This process proves the first batch; the rest is for the others."""
    calls = iter([prove])
    return lambda *given: next(calls)(*given)


def test_few_rows_need_no_other_process(encoder: EncoderOf, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        proving, "_by_workers", lambda *given: pytest.fail("it was asked") if list(given[0]) else iter(())
    )
    assert len(run(encoder(), 2)) == 60


def test_the_next_batch_is_made_while_the_others_work_and_not_all_at_once(
    encoder: EncoderOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The batches are an iterator over a source of any size: at most a few of them wait."""
    monkeypatch.setattr(proving, "ALONE", 1)
    taken = 0

    def batches() -> Iterator[list[Example]]:
        nonlocal taken
        for _ in range(12):
            taken += 1
            yield ROWS[:1]

    ahead = []
    for done, _ in enumerate(proving.prove_batches(batches(), lambda batch: batch, encoder(), workers=1), 1):
        ahead.append(taken - done)
    assert max(ahead) <= 4
