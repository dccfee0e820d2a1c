"""Sources in pieces that several machines read at the same time, with the numbers that rows have in the whole.

pieces = cut(sources, size=2**24)
sizes = [measure(sources[piece.source], piece) for piece in pieces]     # on several machines
for piece in placed(pieces, iter(sizes)):                               # knows what is before it
    for row in rows(sources[piece.source], piece): ...
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from mlflow_ft.data.reading import readers
from mlflow_ft.data.reading.readers import Span, Unreadable
from mlflow_ft.data.sources import Source
from mlflow_ft.rows import Row


@dataclass(frozen=True, kw_only=True)
class Piece:
    """Consecutive rows of a source: all of them, those of a file, or of a part of a file."""

    source: int
    file: int | None = None
    """The number of the file in the source; None is the whole source."""
    span: Span | None = None
    index: int = 0
    """How many rows of all sources are before it."""
    line: int = 0
    """How many lines of the file are before it."""


@dataclass(frozen=True, kw_only=True)
class Size:
    """What is in a piece."""

    rows: int
    """Rows, including those that cannot be read."""
    lines: int
    """Lines, if it is a part of a file."""


def cut(sources: Sequence[Source], *, size: int) -> list[Piece]:
    """Pieces of all sources, in order; files with a row on each line in parts of about `size` bytes.

    A source of which only the first rows are read (`data.max_rows`), and one on the Hub, is a single piece.
    """
    pieces = []
    for number, source in enumerate(sources):
        if source.kind != "local" or source.settings.max_rows is not None:
            pieces.append(Piece(source=number))
            continue
        for place, file in enumerate(source.files):
            assert file.path is not None
            spans: Sequence[Span | None] = () if source.inside(file) else readers.spans(file.path, size)
            pieces += [Piece(source=number, file=place, span=span) for span in spans or (None,)]
    return pieces


def measure(source: Source, piece: Piece) -> Size:
    """Count the rows of a piece, without converting them.

    Raises:
        DataError: a file is missing, empty, or broken as a whole.
    """
    file = source.files[piece.file or 0].path
    rows, lines = readers.count(file, piece.span) if piece.span and file else (None, 0)
    if rows is None or source.shape:
        rows = sum(1 for _ in _read(source, piece))
    return Size(rows=rows, lines=lines)


def placed(pieces: Iterable[Piece], sizes: Iterator[Size]) -> Iterator[Piece]:
    """The pieces with what is before each of them; the size of a piece is taken when the next one is asked for."""
    index, line = 0, 0
    for piece in pieces:
        line = line if piece.span and piece.span.begin else 0
        yield replace(piece, index=index, line=line)
        size = next(sizes)
        index, line = index + size.rows, line + size.lines


def rows(source: Source, piece: Piece) -> Iterator[Row | Unreadable]:
    """The rows of a piece, with their lines in the whole file.

    Raises:
        DataError: a file is missing, empty, or broken as a whole.
    """
    for row in _read(source, piece):
        yield replace(row, line=row.line + piece.line) if piece.line else row


def _read(source: Source, piece: Piece) -> Iterator[Row | Unreadable]:
    return source.rows() if piece.file is None else source.of_file(source.files[piece.file], piece.span)
