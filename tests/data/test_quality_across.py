"""Checks whose rows were seen in parts, on several machines, find what they find in one pass."""

from __future__ import annotations

import pickle
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from mlflow_ft import Check, Checked, Example, Finding, PluginError
from mlflow_ft.builtin.checks import register_checks
from mlflow_ft.config.schema import ChecksSection
from mlflow_ft.data.quality import Quality
from mlflow_ft.values import Report

CHECKS = [check for check in register_checks() if check.compare is None]
WORDS = [f"{first}{middle}{last}" for first in "bdfgklm" for middle in "aeiou" for last in ("rm", "st", "lo", "nd")]


class Packed(bytes):
    """A value on another machine."""


class Here:
    """Machines in this process: every value is packed and unpacked on its way, as between processes."""

    size = 2

    def put(self, value: Any) -> Packed:
        return Packed(pickle.dumps(value))

    def run(self, function: Callable[..., Any], *arguments: Any) -> Packed:
        values = [pickle.loads(value) if isinstance(value, Packed) else value for value in arguments]
        return self.put(function(*values))

    def get(self, handles: Sequence[Packed]) -> list[Any]:
        return [pickle.loads(handle) for handle in handles]

    def flow(
        self, pieces: Sequence[Any], read: Callable[[Any], Iterable[Any]], work: Callable[[Any], Any], **_: Any
    ) -> Iterator[Packed]:
        for piece in pieces:
            for batch in read(piece):
                yield self.run(work, self.put(batch))

    def shared(self, tables: Sequence[Packed], columns: Sequence[str]) -> Any:
        import pyarrow as pa

        whole = pa.concat_tables(self.get(tables)).to_pandas()
        return pa.Table.from_pandas(whole[whole.duplicated(list(columns), keep=False)].sample(frac=1, random_state=0))


def planted(count: int, seed: int) -> list[Example]:
    """Rows with exact duplicates, near duplicates that chain, conflicting answers, other scripts, and long rows."""
    rng = random.Random(seed)
    texts = [" ".join(rng.choices(WORDS, k=rng.randint(8, 60))) for _ in range(count // 3)]
    rows: list[Example] = []
    for _ in range(count):
        text = rng.choice(texts)
        words = text.split()
        for place in rng.sample(range(len(words)), rng.choice((0, 0, 1, 2, 3))):
            words[place] = rng.choice(WORDS)
        question = f"what about {text[:40]}"
        other = rng.choice(("Это совсем другой язык. ", "Αυτή είναι άλλη γλώσσα. "))
        answer = 5 * other if rng.random() < 0.05 else " ".join(words)
        messages = ({"role": "user", "content": question}, {"role": "assistant", "content": answer})
        rows.append(rng.choice(rows) if rows and rng.random() < 0.1 else Example(messages=messages))
    return rows


def preferences(count: int) -> list[Example]:
    rng = random.Random(count)
    turns = [({"role": "assistant", "content": " ".join(rng.choices(WORDS, k=9))},) for _ in range(2 * count)]
    asked = ({"role": "user", "content": "Hi"},)
    both = zip(turns[::2], turns[1::2], strict=True)
    pairs = [Example(messages=asked, chosen=(*better, *better), rejected=worse) for better, worse in both]
    labelled = [Example(messages=(*asked, *turns[number]), label=number % 20 == 0) for number in range(count)]
    return [*pairs, *labelled]


def rows_of(examples: Sequence[Example]) -> list[Checked]:
    return [
        Checked(
            file=f"part{number % 3}.jsonl",
            line=number + 1,
            index=2 * number,
            example=example,
            tokens=10 * len(example.messages) + len(str(example)) // 4,
            max_length=120,
        )
        for number, example in enumerate(examples)
    ]


def in_one_pass(rows: Sequence[Checked], checks: Sequence[Check] = CHECKS) -> Report:
    quality = Quality(checks, ChecksSection())
    for row in rows:
        quality.see(row)
    return quality.report(len(rows))


def in_parts(rows: Sequence[Checked], cuts: Sequence[int], checks: Sequence[Check] = CHECKS) -> Report:
    machines, whole = Here(), Quality(checks, ChecksSection())
    parts = []
    for begin, end in zip([0, *cuts], [*cuts, len(rows)], strict=True):
        quality = Quality(checks, ChecksSection())
        for row in rows[begin:end]:
            quality.see(row)
        parts.append(machines.put(quality))
    whole.gather(parts, machines)
    return whole.report(len(rows))


def assert_same(whole: Report, parts: Report) -> None:
    assert parts.as_dict() == whole.as_dict()
    assert [check.rows for check in parts.checks] == [check.rows for check in whole.checks]
    assert parts.removable() == whole.removable()


@pytest.mark.parametrize("cuts", [(1,), (150, 151, 300), tuple(range(10, 600, 10)), (0, 0, 600)], ids=len)
def test_rows_in_parts_have_the_same_findings(cuts: tuple[int, ...]) -> None:
    rows = rows_of(planted(600, seed=len(cuts)))
    report = in_one_pass(rows)
    counts = {check.name: check.count for check in report.checks}
    names = ("exact-duplicate", "near-duplicate", "conflicting-answers", "language", "over-max-length")
    assert all(counts[name] for name in names), "something is planted for each"
    assert_same(report, in_parts(rows, cuts))


def test_a_part_without_rows_of_a_kind() -> None:
    rows = rows_of([*preferences(60), *planted(60, seed=1)])
    assert_same(in_one_pass(rows), in_parts(rows, (30, 60, 100, 130)))


@pytest.mark.parametrize("name", ["alpaca_en_demo", "dpo_en_demo", "kto_en_demo", "glaive_toolcall_en_demo"])
def test_real_rows_in_parts_have_the_same_findings(name: str) -> None:
    from mlflow_ft import plugins
    from mlflow_ft.config.schema import DataSection
    from mlflow_ft.preparing import one_pass
    from mlflow_ft.registry import Registry

    file = Path(__file__).parents[2].with_name("shared") / "data" / f"{name}.json"
    if not file.is_file():
        pytest.skip("the demonstration sets are not here")
    settings, loaded = DataSection(path=str(file)), plugins.load({"MLFLOW_FT_PLUGINS": ""})
    [opened] = one_pass.open_sources({str(file): None}, settings, plugins=loaded, registry=Registry(loaded))
    examples = [row[1] for row in opened.examples(settings) if isinstance(row, tuple)]
    rows = rows_of(examples)
    assert_same(in_one_pass(rows), in_parts(rows, (len(rows) // 5, len(rows) // 2)))


class Counting:
    """A collector without `join`."""

    def __init__(self, settings: ChecksSection) -> None: ...
    def see(self, row: Checked) -> None: ...
    def found(self) -> Finding:
        return Finding()


def test_a_collector_of_a_plugin_that_cannot_be_joined_is_named() -> None:
    check = Check(name="counting", summary="counts", collect=Counting)
    with pytest.raises(PluginError, match="counting cannot see rows on several machines"):
        in_parts(rows_of(planted(9, seed=1)), (3,), [check])
