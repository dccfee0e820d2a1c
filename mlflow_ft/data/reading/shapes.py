"""Where the rows of a file are when they are not simply its objects: under a key, in lists, nested.

    {"version": "1", "data": [{"messages": [...]}, ...]}      the rows are under `data`
    {"rows": [{"row_idx": 0, "row": {"messages": [...]}}]}     under `rows`, each under `row`
    [[{"role": ...}, ...], [{"role": ...}, ...]]               each list is a conversation
    {"messages": [[{"role": ...}, ...], [...]]}                each of the lists is a separate row

Where the rows as they are have no known format, shapes are tried on the first rows; one is used only if no other fits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

from mlflow_ft.data.reading.parsing import RowError, parse
from mlflow_ft.data.reading.readers import Unreadable
from mlflow_ft.records import DataFormat
from mlflow_ft.rows import Example, Row

EACH = "[]"
"""A step to every element of a list; any other step is a key."""
MESSAGES = "messages"
DEEPEST = 4
MOST_KEYS, MOST_PLACES = 50, 200
FEW = 20
"""Rows on which a shape is tried."""
Rows = Sequence[Mapping[str, Any]]
Fits = Callable[[Rows], DataFormat | None]
"""The format that reads rows, None where none does."""


@dataclass(frozen=True, kw_only=True)
class Shape:
    """How to get from the contents of a file to its rows."""

    steps: tuple[str, ...] = ()
    column: str = ""
    """The list of turns at the end of the steps becomes this column; "" where a row is there."""
    beside: bool = False
    """The rows also get the columns passed on the way: a system prompt, tools."""
    description: str = ""
    """The shape in words."""

    @property
    def inside(self) -> tuple[str, ...]:
        """The keys of the list in a .json file whose rows can be read one by one; () where they cannot."""
        place = self.steps.index(EACH) if EACH in self.steps else 0
        return () if self.beside else self.steps[:place]

    def rows(self, read: Row | Unreadable, *, inside: bool = False) -> Iterator[Row | Unreadable]:
        """The rows in a value that was read; the value itself where it has none. `inside`: it is a list's element."""
        value = read.values if isinstance(read, Row) else read.value
        steps = self.steps[len(self.inside) + 1 :] if inside else self.steps
        ends = list(unfolded(value, steps, beside=self.beside)) if value is not None else []
        for end, others in ends:
            if self.column and isinstance(end, list):
                yield Row(values={**others, self.column: end}, file=read.file, line=read.line)
            elif isinstance(end, Mapping):
                yield Row(values={**others, **end}, file=read.file, line=read.line)
            elif not steps:
                yield read
            else:
                yield Unreadable(file=read.file, line=read.line, reason=f"no row here: {self.description}")
        if not ends:
            yield read


def unfolded(value: Any, steps: Sequence[str], *, beside: bool) -> Iterator[tuple[Any, dict[str, Any]]]:
    """The values at the end of the steps, each with the other columns on the way."""
    value = parsed(value)
    if not steps:
        yield value, {}
        return
    step, *rest = steps
    if step == EACH:
        for element in value if isinstance(value, list) else ():
            yield from unfolded(element, rest, beside=beside)
    elif isinstance(value, Mapping) and value.get(step) is not None:
        own = {key: other for key, other in value.items() if key != step} if beside else {}
        for end, others in unfolded(value[step], rest, beside=beside):
            yield end, {**own, **others}


def parsed(value: Any) -> Any:
    """JSON that is stored as text, as a list or an object; anything else as it is."""
    if isinstance(value, str) and value.lstrip()[:1] in ("[", "{"):
        parsed_value = parse(value)
        return value if isinstance(parsed_value, RowError) else parsed_value
    return value


def find(roots: Sequence[Any], fits: Fits, *, is_whole: bool, weak: bool = False) -> list[Shape]:
    """The shallowest shapes in which the first values of a file are rows.

    `is_whole` says that the file is one value, so that a list in it can only hold its rows. With `weak`, an object with
    only a text or a prompt also counts as a row; many objects that are not rows have one. Every shape that is returned
    makes rows that some format reads.
    """
    level: list[tuple[Any, tuple[str, ...]]] = [(roots[0], ())] if roots else []
    for _ in range(DEEPEST):
        shapes: list[Shape] = []
        deeper: list[tuple[Any, tuple[str, ...]]] = []
        for value, steps in level:
            here = _here(value, steps, fits, is_whole=is_whole, weak=weak)
            shapes += [shape for shape in here or () if _read(shape, roots, fits) is not None]
            deeper += _below(value, steps) if here == [] else []
        if shapes:
            return [_described(shape, roots, fits) for shape in shapes]
        level = deeper[:MOST_PLACES]
    return []


def _here(value: Any, steps: tuple[str, ...], fits: Fits, *, is_whole: bool, weak: bool) -> list[Shape] | None:
    """The shapes that end here; None where there are rows, in one of two shapes."""
    if isinstance(value, Mapping):
        return [Shape(steps=steps)] if steps and _is_row(fits([value]), weak=weak) else []
    if not isinstance(value, list) or not value or not all(isinstance(element, Mapping) for element in value[:FEW]):
        return []
    as_rows, as_turns = fits(value[:FEW]), fits([{MESSAGES: value}])
    alone = is_whole and EACH not in steps
    if as_rows and as_turns:  # questions and answers: rows, or the rounds of one conversation
        # a file of one conversation would be no training data
        return [Shape(steps=(*steps, EACH))] if alone and steps else None
    if as_turns and (not steps or steps[-1] == EACH):
        return _of_turns(value, steps, fits, is_whole=is_whole)
    if as_rows and steps and _is_row(as_rows, weak=weak or alone):
        return [Shape(steps=(*steps, EACH))]
    return []


def _of_turns(value: list[Any], steps: tuple[str, ...], fits: Fits, *, is_whole: bool) -> list[Shape]:
    """Lists of turns in a list: rows, where the list is alone or has a name for turns; else versions of one row."""
    key = steps[-2] if len(steps) > 1 else EACH
    if key != EACH and fits([{key: value}]):
        return [Shape(steps=steps, column=key, beside=True)]
    return [Shape(steps=steps, column=MESSAGES)] if key == EACH or is_whole else []


def _below(value: Any, steps: tuple[str, ...]) -> Iterator[tuple[Any, tuple[str, ...]]]:
    if isinstance(value, list):
        yield from ((parsed(element), (*steps, EACH)) for element in value[:1])
    elif isinstance(value, Mapping):
        for key in list(value)[:MOST_KEYS]:
            if (inner := parsed(value[key])) and isinstance(inner, Mapping | list):
                yield inner, (*steps, str(key))


def _is_row(record: DataFormat | None, *, weak: bool) -> bool:
    """Whether more than one column says that this is a row: a lone `text` can occur anywhere."""
    return record is not None and (weak or record.kind not in ("text", "prompt"))


def _read(shape: Shape, roots: Sequence[Any], fits: Fits) -> DataFormat | None:
    return fits(sample(shape, roots))


def sample(shape: Shape, roots: Sequence[Any]) -> list[Mapping[str, Any]]:
    """The first rows in the first values of a file."""
    rows = (row for root in roots for row in shape.rows(_as_read(root)))
    return [row.values for row, _ in zip(rows, range(FEW), strict=False) if isinstance(row, Row)]


def _as_read(root: Any) -> Row | Unreadable:
    if isinstance(root, Mapping):
        return Row(values=root, file="", line=0)
    return Unreadable(file="", line=0, reason="", value=root)


def _described(shape: Shape, roots: Sequence[Any], fits: Fits) -> Shape:
    """The shape with its description, and with the columns beside the rows where they change the examples."""
    with_others = replace(shape, beside=True)
    names = list(dict.fromkeys(name for root in roots[:1] for name in _beside(root, shape.steps)))
    record = _read(shape, roots, fits)
    if not shape.beside and names and record is not None and record == _read(with_others, roots, fits):
        pairs = zip(sample(shape, roots), sample(with_others, roots), strict=False)
        if any(_converted(record, alone) != _converted(record, both) for alone, both in pairs):
            shape = with_others
    words = _words(shape)
    if names:
        listed = ", ".join(names[:8]) + " ..." * (len(names) > 8)
        words += f" ({'each with' if shape.beside else 'left out'}: {listed})"
    return replace(shape, description=words)


def _converted(record: DataFormat, values: Mapping[str, Any]) -> Any:
    try:
        example: Example = record.convert(values)
    except ValueError as error:
        return str(error)
    return replace(example, columns={}, notes=())


def _beside(value: Any, steps: Sequence[str]) -> Iterator[str]:
    for step in steps:
        value = parsed(value)
        if step == EACH:
            value = value[0] if isinstance(value, list) and value else None
        elif isinstance(value, Mapping):
            yield from (str(key) for key in value if key != step)
            value = value.get(step)


def where(steps: Sequence[str]) -> str:
    """The place at the end of steps: "`data.items`, each under `row`"."""
    groups = [list(keys) for is_each, keys in groupby(steps, key=lambda step: step == EACH) if not is_each]
    return ", each under ".join(f"`{'.'.join(keys)}`" for keys in groups)


def _words(shape: Shape) -> str:
    place = where(shape.steps)
    if shape.column in shape.steps:
        return f"{place} holds several conversations; each is read as a separate row"
    if shape.column:
        return f"each list of turns{f' under {place}' if place else ''} is read as one conversation"
    return f"the rows are under {place}" if place else "the rows are in lists"
