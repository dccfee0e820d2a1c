"""Prepared rows, from the cache or a new pass over the sources, keyed by everything that decides the result."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlflow_ft.config.schema import Config
from mlflow_ft.data import cache, store
from mlflow_ft.data.quality import Quality
from mlflow_ft.data.sources import Source
from mlflow_ft.plugins import Plugins
from mlflow_ft.preparing import across, on_this_machine, one_pass, prepared_key
from mlflow_ft.preparing.one_pass import LeftOut
from mlflow_ft.progress import Progress
from mlflow_ft.records import DataFormat
from mlflow_ft.registry import Registry, chosen_checks
from mlflow_ft.values import Report

if TYPE_CHECKING:
    from mlflow_ft.engine.tokens.masking import Encoder

ROWS_FILE = "rows.arrow"
META_FILE = "meta.json"


@dataclass(frozen=True, kw_only=True)
class PreparedRows:
    """The rows of one or several sources, prepared."""

    sources: tuple[Source, ...]
    weights: tuple[float | None, ...]
    record: DataFormat
    formats: tuple[str, ...]
    table: Any
    """A pyarrow.Table with the columns of `data.store.schema`, memory-mapped."""
    files: tuple[str, ...]
    """Names of the files in messages; the column `file` is an index into them."""
    columns: tuple[str, ...]
    read: int
    """Rows read."""
    count: int
    """Rows after `data.turns` split them; the same number if it does not."""
    left_out: tuple[LeftOut, ...]
    ways: Mapping[str, int]
    ends: Mapping[int, int]
    report: Report | None
    parts: Mapping[str, Any]
    """The input of the fingerprint."""
    clock: Mapping[str, str]
    """By format, the date or time that the chat template wrote into rows."""

    @property
    def bad(self) -> tuple[LeftOut, ...]:
        """Rows with an error; the others are cut, or have no learned turn."""
        return tuple(row for row in self.left_out if row.sort != "cut")


@dataclass(frozen=True, kw_only=True)
class Preparation:
    """What decides how rows are prepared."""

    config: Config
    tokenizer: Any
    plugins: Plugins
    registry: Registry
    progress: Progress
    accept: Callable[[DataFormat], None] = lambda record: None
    """Called with the format before any row is prepared; may raise."""


def prepare(paths: Mapping[str, float | None], preparation: Preparation, *, title: str, quality: bool) -> PreparedRows:
    """Prepare the rows of the sources, or take them from the cache; extends the tokenizer's template if they need it.

    `paths` are the sources with their weights; `quality` runs the checks.

    Raises:
        DataError: a source is missing, empty, broken or of unknown format.
    """
    from mlflow_ft.engine.tokens import clock

    config, tokenizer, progress = preparation.config, preparation.tokenizer, preparation.progress
    plugins, registry = preparation.plugins, preparation.registry
    opened = one_pass.open_sources(paths, config.data, plugins=plugins, registry=registry)
    preparation.accept(opened[0].record)
    for sentence in dict.fromkeys(sentence for source in opened for sentence in source.sentences):
        progress.say(sentence)
    parts = prepared_key.parts(opened, config, tokenizer, registry)
    moment = clock.current()
    clock_values = clock.told_to(tokenizer, moment)
    chosen = chosen_checks(registry, config.checks.names)
    inspecting = [check for check in chosen if check.compare is None] if quality else None

    def make(folder: Path) -> None:
        from mlflow_ft.engine.tokens.masking import Encoder

        encoder = Encoder(tokenizer, max_length=config.data.max_length)
        checking = Quality(inspecting, config.checks) if inspecting is not None else None
        with ExitStack() as stack:
            engine = stack.enter_context(registry.engines[config.data.engine].machines())
            stack.enter_context(clock.held(moment))
            bar = stack.enter_context(progress.bar(title, unit="rows"))
            several = across.pass_of(engine, inspecting, config.checks) if engine else None
            run = several or on_this_machine.pass_of(inspecting, config.checks)
            file = folder / ROWS_FILE
            tally = run(opened, config.data, encoder=encoder, quality=checking, file=file, bar=bar)
        (folder / META_FILE).write_text(json.dumps(_meta(tally, checking, encoder)), encoding="utf-8")

    key = prepared_key.key(parts, opened, config, plugins, clock_values, quality=quality)
    folder, cached = cache.find_or_make(key, make)
    if cached:
        progress.say(f"{title}: taken from the cache (same data, template and settings)")
    rows = _read(folder, opened, parts, tokenizer)
    _check_ids(rows, tokenizer)
    return rows


def _check_ids(prepared: PreparedRows, tokenizer: Any) -> None:
    """Refuse rows with tokens that the model has no embeddings for, before its weights are loaded.

    Raises:
        ModelError: there is such a row.
    """
    import pyarrow.compute as pc

    from mlflow_ft.engine.tokens import room

    embeddings = getattr(tokenizer, "rows", None)
    table = prepared.table
    for column in ("input_ids", "rejected_ids"):
        ids = table.column(column)
        highest = pc.max(pc.list_flatten(ids)).as_py() if embeddings is not None else None
        if highest is None or highest < embeddings:
            continue
        over = pc.greater_equal(pc.list_flatten(ids), embeddings)
        index = pc.list_parent_indices(ids).filter(over)[0].as_py()
        place = f"{prepared.files[table.column('file')[index].as_py()]}:{table.column('line')[index].as_py()}"
        room.refuse_ids(tokenizer, pc.unique(pc.list_flatten(ids).filter(over)).to_pylist(), place=place)


def _meta(tally: one_pass.Tally, quality: Quality | None, encoder: Encoder) -> dict[str, Any]:
    report = quality.report(tally.rows) if quality else None
    return {
        "rows": tally.rows,
        "parts": tally.parts,
        "left_out": [asdict(row) for row in tally.left_out],
        "ways": tally.ways,
        "ends": list(tally.ends.items()),
        "columns": list(tally.columns),
        "files": list(tally.files),
        "chat_template": encoder.tokenizer.chat_template,
        "clock": encoder.dates,
        "report": report.as_dict() if report else None,
        "removable": report.removable() if report else {},
    }


def _read(
    folder: Path, opened: Sequence[one_pass.OpenedSource], parts: Mapping[str, Any], tokenizer: Any
) -> PreparedRows:
    meta = json.loads((folder / META_FILE).read_text(encoding="utf-8"))
    tokenizer.chat_template = meta["chat_template"]
    table = store.read(folder / ROWS_FILE)
    results = {
        "sources": prepared_key.sources(parts["sources"], table),
        "chat_template": prepared_key.hash_of(meta["chat_template"]),
    }
    return PreparedRows(
        sources=tuple(source.source for source in opened),
        weights=tuple(source.weight for source in opened),
        record=opened[0].record,
        formats=tuple(dict.fromkeys(source.record.name for source in opened)),
        table=table,
        files=tuple(meta["files"]),
        columns=tuple(meta["columns"]),
        read=meta["rows"],
        count=meta["parts"],
        left_out=tuple(LeftOut(**row) for row in meta["left_out"]),
        ways=meta["ways"],
        ends=dict(meta["ends"]),
        report=Report.from_dict(meta["report"], meta["removable"]) if meta["report"] else None,
        parts={**parts, **results, **({"clock": meta["clock"]} if meta["clock"] else {})},
        clock=meta["clock"],
    )
