"""The data before training: both sides of the split, with proved masks, and the report of the checks."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from mlflow_ft.config.schema import Config
from mlflow_ft.data import fingerprint, sources, split, store, turns
from mlflow_ft.errors import DataError, Problem
from mlflow_ft.plugins import Plugins
from mlflow_ft.preparing import checking, one_pass, opened_thoughts, prepared
from mlflow_ft.preparing.checking import Removable, Side
from mlflow_ft.preparing.one_pass import LeftOut
from mlflow_ft.preparing.prepared import Preparation, PreparedRows
from mlflow_ft.progress import Progress
from mlflow_ft.records import DataFormat
from mlflow_ft.registry import Registry
from mlflow_ft.rows import Encoded
from mlflow_ft.values import Data, Report, Split

if TYPE_CHECKING:
    import numpy

    Indices = numpy.ndarray[Any, Any]

SHOWN_TEXT = 800


@dataclass(frozen=True, kw_only=True)
class CheckedData:
    """The data and its report."""

    data: Data
    train: Side
    eval: Side
    report: Report
    removable: Removable
    taken: Mapping[str, tuple[int, int]]
    """For each source of a mixture, how many rows are taken, and of how many."""
    taught_tools: bool
    """Whether the chat template was extended to write tool calls."""

    @property
    def sides(self) -> dict[str, Side]:
        return {"train": self.train, "eval": self.eval}

    @property
    def left_out(self) -> tuple[LeftOut, ...]:
        same = self.train.stored is self.eval.stored
        return self.train.stored.left_out + (() if same else self.eval.stored.left_out)


def prepare(
    config: Config,
    tokenizer: Any,
    *,
    plugins: Plugins,
    registry: Registry,
    progress: Progress,
    strict: bool = True,
    accept: Callable[[DataFormat], None] = lambda record: None,
) -> CheckedData:
    """Prepare, split and check the data.

    `strict` refuses bad rows as `data.on_bad_row` says; without it they are left out and reported. `accept` is called
    with the format before any row is prepared, and may raise.

    Raises:
        DataError: a source is missing or its format unknown, rows are bad, or there is nothing to learn.
    """
    from mlflow_ft.engine.tokens import tool_text

    def accepted(record: DataFormat) -> None:
        turns.check(record.kind, config.data)
        accept(record)

    preparation = Preparation(
        config=config, tokenizer=tokenizer, plugins=plugins, registry=registry, progress=progress, accept=accepted
    )
    paths, eval_path = sources.paths(config.data)
    train = prepared.prepare(paths, preparation, title="prepare rows", quality=True)
    held = None
    if eval_path:
        held = prepared.prepare({eval_path: None}, preparation, title="prepare held-out rows", quality=False)
        one_pass.check_kind(held.record, train.record, eval_path)
    for rows in (train, held) if held else (train,):
        refuse(rows, config, strict=strict and config.data.on_bad_row == "error")
    mixed = split.mix(_hashes(train), _column(train, "source"), train.weights, seed=config.run.seed)
    kept, out, by_text = (mixed, held_out_all(held), False) if held else _split(train, mixed, config, strict=strict)
    sides = (
        Side(stored=train, indices=kept, by_text=by_text),
        Side(stored=held or train, indices=out, by_text=by_text),
    )
    _check_prompt(sides[0], tokenizer)
    more = opened_thoughts.find(sides[0], config, tokenizer)
    report, removable = checking.full_report(config, *sides, more=more, registry=registry, plugins=plugins)
    names = [source.asked for source in train.sources]
    return CheckedData(
        data=replace(_data(config, sides, tokenizer), report=report),
        train=sides[0],
        eval=sides[1],
        report=report,
        removable=removable,
        taken=split.counts_by_source(mixed, _column(train, "source"), names) if any(train.weights) else {},
        taught_tools=tool_text.taught(tokenizer),
    )


def _check_prompt(side: Side, tokenizer: Any) -> None:
    """Refuse tokens without embeddings in what the template writes before an answer, which may be in no row."""
    from mlflow_ft.engine.tokens import render, room

    first = next(iter(store.examples(side.stored.table, side.indices[:1])), None)
    if first is None or first.kind == "text":
        return
    with suppress(render.MaskError, *render.REFUSALS):  # whatever asks for an answer reports these
        ids = render.prompt_ids(tokenizer, first)
        room.refuse_ids(tokenizer, ids, place="the template's text before an answer")


def _column(rows: PreparedRows, name: str) -> Indices:
    return rows.table.column(name).to_numpy()  # type: ignore[no-any-return]  # pyarrow has no types


def _hashes(rows: PreparedRows) -> Indices:
    """The first 64 bits of every row's hash."""
    import numpy as np

    joined = b"".join(rows.table.column("hash").to_pylist())
    return np.frombuffer(joined, dtype="<u8").reshape(-1, 2)[:, 0] if joined else np.zeros(0, dtype="<u8")


def held_out_all(held: PreparedRows) -> Indices:
    """Every row of a source that is entirely held out."""
    import numpy as np

    return np.arange(held.table.num_rows)


def _split(train: PreparedRows, mixed: Indices, config: Config, *, strict: bool) -> tuple[Indices, Indices, bool]:
    """Hold out some rows; also returns whether they were chosen by their texts.

    No group is on both sides if `data.split_by` names one. Else no prompt is, as the checks compare prompts; if most
    rows have the same prompt, no text. Too few rows to split are an error if `strict`.
    """
    keys, by_text = (_column(train, "key")[mixed], False) if config.data.split_by else _keys(train, mixed)
    try:
        kept, out = split.hold_out(keys, test_size=config.data.test_size, seed=config.run.seed)
    except DataError:
        if strict:
            raise
        return mixed, mixed[:0], False
    return mixed[kept], mixed[out], by_text


def _keys(train: PreparedRows, mixed: Indices) -> tuple[Indices, bool]:
    """A key for every row by which the checks find no row of one side on the other, and whether it is of the text.

    Of a row that is divided the checks see the last part.
    """
    import numpy as np

    last = split.last_of_each(_column(train, "index")[mixed])
    prompts, texts = (_column(train, name)[mixed][last] for name in ("prompt_key", "text_key"))
    own = _hashes(train)[mixed][last]
    choices = [split.joined(_column(train, "key")[mixed][last], prompts, texts), split.joined(own, texts), own]
    place = next((place for place, keys in enumerate(choices) if not split.crowded(keys)), len(choices) - 1)
    return choices[place][np.searchsorted(last, np.arange(len(mixed)))], place > 0


# --- what is wrong with rows


def refuse(rows: PreparedRows, config: Config, *, strict: bool) -> None:
    """Raise DataError if rows are bad and `strict` is set, or if no row is left."""
    bad = rows.bad
    if bad and (strict or not rows.table.num_rows):
        raise DataError(_headline(bad, rows), problems=[_problem(row) for row in bad], hint=_remedy(bad))
    if not rows.table.num_rows:
        name = ", ".join(source.asked for source in rows.sources)
        raise DataError(
            f"all {rows.count} rows of {name} have nothing to learn",
            problems=[_problem(row) for row in rows.left_out],
            hint=f"raise data.max_length (it is {config.data.max_length}), or check which turns are learned",
        )


def _problem(row: LeftOut) -> Problem:
    return Problem(place=f"{row.file}:{row.line}", message=row.reason)


def _headline(bad: Sequence[LeftOut], rows: PreparedRows) -> str:
    sorts = {row.sort for row in bad}
    share = f"{len(bad):,} of {rows.count:,} rows"
    if sorts == {"convert"}:
        return f"{share} are not in the format {rows.record.name}"
    if sorts == {"prove"}:
        return f"the loss mask of {share} cannot be proved"
    return f"{share} cannot be {'read' if sorts == {'read'} else 'used'}"


def _remedy(bad: Sequence[LeftOut]) -> str:
    rendered = next((row for row in bad if row.text), None)
    shown = ""
    if rendered:
        text = rendered.text if len(rendered.text) <= SHOWN_TEXT else f"{rendered.text[:SHOWN_TEXT]} ..."
        shown = f"\n  {rendered.file}:{rendered.line} as the template renders it:\n" + "\n".join(
            f"    {line}" for line in text.splitlines()
        )
    remedies = ["fix these rows", "leave them out (--data.on_bad_row drop)"]
    sorts = {row.sort for row in bad}
    if "convert" in sorts:
        remedies.append("name another format (--data.format)")
    if "prove" in sorts:
        remedies.append("use a template that fits them (--data.chat_template)")
    return f"{', or '.join(remedies)}{shown}"


# --- the values that flow on


def _data(config: Config, sides: tuple[Side, Side], tokenizer: Any) -> Data:
    train, held = sides
    ends: Counter[int] = Counter()
    for rows in {id(side.stored): side.stored for side in sides}.values():
        ends.update(rows.ends)
    parts = {
        "train": train.stored.parts,
        "eval": held.stored.parts if held.stored is not train.stored else {"test_size": config.data.test_size},
        "seed": config.run.seed,
    }
    return Data(
        train=side_of(train, "train", tokenizer),
        eval=side_of(held, "eval", tokenizer),
        format="+".join(train.stored.formats),
        kind=train.stored.record.kind,
        tokenizer=tokenizer,
        stop_token_ids=tuple(token for token, _ in ends.most_common()) or ends_of_prompts(sides[0], tokenizer),
        fingerprint=fingerprint.fingerprint(parts),
        clock={**train.stored.clock, **held.stored.clock},
    )


def ends_of_prompts(side: Side, tokenizer: Any) -> tuple[int, ...]:
    """The tokens with which the template ends an answer, found by answering the first prompt; () for other rows.

    A sampled answer must stop there, whatever the model's own settings name.
    """
    from mlflow_ft.engine.tokens import masking

    first = next(iter(store.examples(side.stored.table, side.indices[:1])), None)
    if first is None or first.kind != "prompt":
        return ()
    answered = replace(first, messages=(*first.messages, {"role": "assistant", "content": "Yes"}))
    encoded = masking.encode(tokenizer, [answered], max_length=sys.maxsize)
    return masking.end_tokens(row for row in encoded if isinstance(row, Encoded))


def side_of(side: Side, name: Literal["train", "eval", "guard"], tokenizer: Any) -> Split:
    """The rows of a side as a split."""
    rows = side.stored
    table, indices = rows.table, side.indices
    contents = table.select(["content"])
    hashes: Iterable[bytes] = (
        content
        for start in range(0, side.count, store.BATCH)
        for content in store.take(contents, indices[start : start + store.BATCH]).column(0).to_pylist()
    )
    kinds = {source.kind for source in rows.sources}
    return Split(
        name=name,
        sources=tuple(source.uri for source in rows.sources),
        source_type="local" if kinds == {"local"} else "hugging_face",
        rows=store.places(table, rows.files, indices),
        examples=store.examples(table, indices),
        encoded=store.encoded(table, indices),
        columns=rows.columns,
        counts={
            "rows": side.count,
            "dropped": len(rows.left_out),
            "truncated": int(_column(rows, "truncated")[indices].sum()),
            "tokens": int(_column(rows, "tokens")[indices].sum()),
            "supervised_tokens": int(_column(rows, "supervised")[indices].sum()),
        },
        digest=fingerprint.digest(hashes, template=json.dumps(tokenizer.chat_template)),
    )
