from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlflow_ft import plugins
from mlflow_ft.config.schema import DataSection
from mlflow_ft.data import convert, sources, split
from mlflow_ft.errors import DataError
from mlflow_ft.job import Encoded
from mlflow_ft.rows import Example
from mlflow_ft.registry import Registry

REGISTRY = Registry(plugins.load({}))


@given(count=st.integers(2, 300), share=st.floats(0.01, 0.5), seed=st.integers(0, 2**32))
def test_the_sides_are_disjoint_cover_all_rows_and_are_the_same_again(count: int, share: float, seed: int) -> None:
    kept, held = split.hold_out(count, test_size=share, seed=seed)
    assert sorted([*kept, *held]) == list(range(count))
    assert kept == sorted(kept)
    assert held == sorted(held)
    assert len(held) == max(1, round(count * share))
    assert (kept, held) == split.hold_out(count, test_size=share, seed=seed)


def test_another_seed_holds_out_other_rows() -> None:
    assert split.hold_out(100, test_size=0.2, seed=1) != split.hold_out(100, test_size=0.2, seed=2)


def test_a_test_size_of_one_or_more_is_a_count() -> None:
    assert len(split.hold_out(10, test_size=3, seed=0)[1]) == 3
    assert len(split.hold_out(10, test_size=1, seed=0)[1]) == 1


@pytest.mark.parametrize(("count", "test_size"), [(1, 0.1), (10, 10), (10, 11), (2, 0.9)])
def test_a_side_without_rows_is_refused(count: int, test_size: float) -> None:
    with pytest.raises(DataError, match=rf"data\.test_size {test_size:g} holds out \d+ of {count} rows") as error:
        split.hold_out(count, test_size=test_size, seed=0)
    assert "data.eval_path" in error.value.hint


def example(question: str, answer: str) -> Example:
    return Example(messages=({"role": "user", "content": question}, {"role": "assistant", "content": answer}))


EXAMPLES = [example("one", "1"), example("two", "2")]
ENCODED = [Encoded(input_ids=(1, 2), labels=(-100, 2)), Encoded(input_ids=(3, 4), labels=(-100, 4))]


def digest(examples: list[Example], encoded: list[Encoded], template: str = "t") -> str:
    return split.digest(examples, encoded, template=template)


CHANGES: dict[str, Callable[[], str]] = {
    "a turn": lambda: digest([example("one", "1 "), EXAMPLES[1]], ENCODED),
    "a role": lambda: digest([Example(messages=({"role": "system", "content": "one"},)), EXAMPLES[1]], ENCODED),
    "tools": lambda: digest([dataclasses.replace(EXAMPLES[0], tools=({"name": "f"},)), EXAMPLES[1]], ENCODED),
    "the order": lambda: digest(EXAMPLES[::-1], ENCODED[::-1]),
    "the template": lambda: digest(EXAMPLES, ENCODED, "t "),
    "a label": lambda: digest(EXAMPLES, [dataclasses.replace(ENCODED[0], labels=(1, 2)), ENCODED[1]]),
    "a token": lambda: digest(EXAMPLES, [dataclasses.replace(ENCODED[0], input_ids=(9, 2)), ENCODED[1]]),
    "a row less": lambda: digest(EXAMPLES[:1], ENCODED[:1]),
    "a row twice": lambda: digest([*EXAMPLES, EXAMPLES[1]], [*ENCODED, ENCODED[1]]),
}


@pytest.mark.parametrize("change", CHANGES)
def test_the_digest_changes_with(change: str) -> None:
    assert CHANGES[change]() != digest(EXAMPLES, ENCODED)


def test_the_digest_is_of_content_alone_and_fits_mlflow() -> None:
    again = [
        example("one", "1"),
        Example(messages=tuple(dict(reversed(turn.items())) for turn in EXAMPLES[1].messages)),
    ]
    assert digest(again, ENCODED) == digest(EXAMPLES, ENCODED)
    assert len(digest(EXAMPLES, ENCODED)) == split.DIGEST_LENGTH <= 36


def test_text_that_utf_8_cannot_hold_has_a_digest() -> None:
    assert digest([example("\ud800", "1")], ENCODED[:1]) != digest([example("\ud801", "1")], ENCODED[:1])


def test_the_digest_is_the_same_for_the_same_rows_in_another_file(tmp_path: Path) -> None:
    found = []
    for name in ("here.jsonl", "there.json"):
        (tmp_path / name).write_text('\n{"prompt": "one", "completion": "1"}\n')
        rows = sources.read(str(tmp_path / name), DataSection())
        found.append(digest(convert.convert(rows, REGISTRY.formats["prompt-completion"]), ENCODED[:1]))
    assert found[0] == found[1] == digest(EXAMPLES[:1], ENCODED[:1])
