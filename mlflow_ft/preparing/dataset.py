"""Everything known of the data before training: both sides of the split, proved, and what the checks found."""

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
from mlflow_ft.preparing import checking, one_pass, prepared
from mlflow_ft.preparing.checking import Removable, Side
from mlflow_ft.preparing.one_pass import LeftOut
from mlflow_ft.preparing.prepared import PreparedRows
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
    """The data, and all that a person may want to know about it."""

    data: Data
    train: Side
    eval: Side
    report: Report
    removable: Removable
    taken: Mapping[str, tuple[int, int]]
    """Of every source of a mixture how many of its rows are taken, of how many."""
    taught_tools: bool
    """The chat template was extended so that it writes tool calls."""

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

    `strict` refuses bad rows as `data.on_bad_row` says; without it they are left out and told by the report. `accept`
    sees the format before any row is prepared, and may raise.

    Raises:
        DataError: a source is missing or of no known format, rows are bad, nothing is left to learn.
    """
    from mlflow_ft.engine.tokens import tool_text

    def accepted(record: DataFormat) -> None:
        turns.check(record.kind, config.data)
        accept(record)

    context: dict[str, Any] = {
        "tokenizer": tokenizer,
        "plugins": plugins,
        "registry": registry,
        "progress": progress,
        "accept": accepted,
    }
    asked, eval_path = sources.paths(config.data)
    train = prepared.prepare(asked, config, title="prepare rows", quality=True, **context)
    held = None
    if eval_path:
        held = prepared.prepare({eval_path: None}, config, title="prepare held-out rows", quality=False, **context)
        one_pass.check_kind(held.record, train.record, eval_path)
    for one in (train, held) if held else (train,):
        refuse(one, config, strict=strict and config.data.on_bad_row == "error")
    mixed = split.mix(_hashes(train), _column(train, "source"), train.weights, seed=config.run.seed)
    kept, out = (mixed, held_out_all(held)) if held else _split(train, mixed, config, strict=strict)
    sides = Side(stored=train, indices=kept), Side(stored=held or train, indices=out)
    _check_prompt(sides[0], tokenizer)
    report, removable = checking.full_report(config, *sides, registry=registry, plugins=plugins)
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
    """Refuse tokens without embeddings in what the template writes before an answer, which no row may hold."""
    from mlflow_ft.engine.tokens import render, room

    first = next(iter(store.examples(side.stored.table, side.indices[:1])), None)
    if first is None or first.kind == "text":
        return
    with suppress(render.MaskError, *render.REFUSALS):  # what cannot be asked is reported by who asks it
        ids = render.prompt_ids(tokenizer, first)
        room.refuse_ids(tokenizer, ids, place="what the template writes before an answer")


def _column(found: PreparedRows, name: str) -> Indices:
    return found.table.column(name).to_numpy()  # type: ignore[no-any-return]  # pyarrow has no types


def _hashes(found: PreparedRows) -> Indices:
    """The first 64 bits of every row's hash."""
    import numpy as np

    joined = b"".join(found.table.column("hash").to_pylist())
    return np.frombuffer(joined, dtype="<u8").reshape(-1, 2)[:, 0] if joined else np.zeros(0, dtype="<u8")


def held_out_all(held: PreparedRows) -> Indices:
    """Every row of a source that is held out whole."""
    import numpy as np

    return np.arange(held.table.num_rows)


def _split(train: PreparedRows, mixed: Indices, config: Config, *, strict: bool) -> tuple[Indices, Indices]:
    """Hold out some rows: no prompt stands on both sides, or no group where `data.split_by` names one.

    Too few rows to split are an error where they are to be trained on.
    """
    keys = _column(train, "key")[mixed]
    if not config.data.split_by and split.crowded(keys[split.last_of_each(_column(train, "index")[mixed])]):
        keys = _hashes(train)[mixed]  # one prompt for most rows: it is the answers that differ
    try:
        kept, out = split.hold_out(keys, test_size=config.data.test_size, seed=config.run.seed)
    except DataError:
        if strict:
            raise
        return mixed, mixed[:0]
    return mixed[kept], mixed[out]


# --- what is wrong with rows


def refuse(found: PreparedRows, config: Config, *, strict: bool) -> None:
    """Raise DataError where rows are bad and `strict` says so, or none is left."""
    bad = found.bad
    if bad and (strict or not found.table.num_rows):
        raise DataError(_headline(bad, found), problems=[_problem(one) for one in bad], hint=_remedy(bad))
    if not found.table.num_rows:
        name = ", ".join(source.asked for source in found.sources)
        raise DataError(
            f"all {found.count} rows of {name} are without anything to learn",
            problems=[_problem(one) for one in found.left_out],
            hint=f"raise data.max_length (it is {config.data.max_length}), or check what is to be learned",
        )


def _problem(one: LeftOut) -> Problem:
    return Problem(place=f"{one.file}:{one.line}", message=one.reason)


def _headline(bad: Sequence[LeftOut], found: PreparedRows) -> str:
    counts = Counter(one.sort for one in bad)
    several = f"{len(bad):,} of {found.count:,} rows"
    if set(counts) == {"convert"}:
        return f"{several} are not of the format {found.record.name}"
    if set(counts) == {"prove"}:
        return f"the loss mask of {several} cannot be proved"
    return f"{several} cannot be {'read' if set(counts) == {'read'} else 'used'}"


def _remedy(bad: Sequence[LeftOut]) -> str:
    rendered = next((one for one in bad if one.text), None)
    shown = ""
    if rendered:
        text = rendered.text if len(rendered.text) <= SHOWN_TEXT else f"{rendered.text[:SHOWN_TEXT]} ..."
        shown = f"\n  {rendered.file}:{rendered.line} as the template writes it:\n" + "\n".join(
            f"    {line}" for line in text.splitlines()
        )
    ways = ["mend these rows", "leave them out (--data.on_bad_row drop)"]
    sorts = {one.sort for one in bad}
    if "convert" in sorts:
        ways.append("name another format (--data.format)")
    if "prove" in sorts:
        ways.append("give a template that fits them (--data.chat_template)")
    return f"{', or '.join(ways)}{shown}"


# --- the values that flow on


def _data(config: Config, sides: tuple[Side, Side], tokenizer: Any) -> Data:
    train, held = sides
    ends: Counter[int] = Counter()
    for found in {id(side.stored): side.stored for side in sides}.values():
        ends.update(found.ends)
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
    """The tokens with which the template would end an answer to the first prompt; in a prompt itself none is learned.

    An answer that is sampled must stop there, whatever the model's own settings name.
    """
    from mlflow_ft.engine.tokens import masking

    first = next(iter(store.examples(side.stored.table, side.indices[:1])), None)
    if first is None or first.kind != "prompt":
        return ()
    answered = replace(first, messages=(*first.messages, {"role": "assistant", "content": "Yes"}))
    found = masking.encode(tokenizer, [answered], max_length=sys.maxsize)
    return masking.end_tokens(one for one in found if isinstance(one, Encoded))


def side_of(side: Side, name: Literal["train", "eval", "guard"], tokenizer: Any) -> Split:
    """The rows of a side as a split."""
    found = side.stored
    table, indices = found.table, side.indices
    hashes: Iterable[bytes] = (
        one
        for start in range(0, side.count, store.BATCH)
        for one in table.column("content").take(indices[start : start + store.BATCH]).to_pylist()
    )
    kinds = {source.kind for source in found.sources}
    return Split(
        name=name,
        sources=tuple(source.uri for source in found.sources),
        source_type="local" if kinds == {"local"} else "hugging_face",
        rows=store.places(table, found.files, indices),
        examples=store.examples(table, indices),
        encoded=store.encoded(table, indices),
        columns=found.columns,
        counts={
            "rows": side.count,
            "dropped": len(found.left_out),
            "truncated": int(_column(found, "truncated")[indices].sum()),
            "tokens": int(_column(found, "tokens")[indices].sum()),
            "supervised_tokens": int(_column(found, "supervised")[indices].sum()),
        },
        digest=fingerprint.digest(hashes, template=json.dumps(tokenizer.chat_template)),
    )
