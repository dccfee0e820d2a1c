"""Benchmark files, which no training row may come from: rows of any shape, read for their text."""

from __future__ import annotations

from collections.abc import Iterator

from mlflow_ft.config.schema import Config
from mlflow_ft.data import sources
from mlflow_ft.data.recognising.numbers import AsText, with_text
from mlflow_ft.data.recognising.recognition import Recogniser
from mlflow_ft.errors import DataError
from mlflow_ft.plugins import Plugins
from mlflow_ft.registry import Registry
from mlflow_ft.rows import Checked, Example, Row


def read(config: Config, *, plugins: Plugins, registry: Registry) -> Iterator[Checked]:
    """Every row of the benchmark files; a row of an unknown format becomes all of its text.

    Raises:
        DataError: a file is missing, empty or broken.
    """
    for name in config.checks.benchmarks or ():
        settings = config.data.model_copy(
            update={"format": "auto", "columns": None, "split_by": None, "max_rows": None, "split": "test"}
        )
        source = sources.open_source(name, settings)
        record, as_text = None, tuple[AsText, ...]()
        try:
            understood = Recogniser(settings=settings, plugins=plugins, registry=registry).understand(source)
        except DataError:
            pass  # a benchmark may have any shape
        else:
            source, record, as_text = understood.source, understood.record, understood.as_text
        for index, row in enumerate(source.rows()):
            if not isinstance(row, Row):
                continue
            try:
                example = record.convert(with_text(row.values, as_text)) if record else _words(row)
            except ValueError:
                example = _words(row)
            yield Checked(file=row.file, line=row.line, index=index, example=example, tokens=0)


def _words(row: Row) -> Example:
    return Example(text="\n".join(value for value in row.values.values() if isinstance(value, str)))
