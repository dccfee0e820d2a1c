"""Files whose rows one line of Python must write first: the command for that, tried on the first rows.

{"prompt": ["a", "b"], "completion": ["c", "d"]}     columns that are lists
{"prompt": {"0": "a"}, "completion": {"0": "c"}}     as pandas writes a table by default
[{"role": "user", ...}, {"role": "assistant", ...}]   one turn per row: one conversation, or many?
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mlflow_ft.data.reading.shapes import EACH, FEW, Fits
from mlflow_ft.data.recognising import chat_logs, commands

if TYPE_CHECKING:
    from mlflow_ft.data.sources import Source

ROLE_KEYS = ("role", "from", "speaker", "sender")
Rows = list[Mapping[str, Any]]


@dataclass(frozen=True, kw_only=True)
class Converter:
    """Makes rows from the contents of a file: `make` and `expression` do the same."""

    what: str
    make: Callable[[Any], Rows]
    expression: str
    """In terms of `d`, the contents of the file."""
    uses: str = ""
    """A module that the expression needs."""


OF_OBJECTS = (
    Converter(
        what="each column is a separate list",
        make=lambda d: [dict(zip(d, row, strict=True)) for row in zip(*_lists(d), strict=True)],
        expression="[dict(zip(d, row)) for row in zip(*d.values())]",
    ),
    Converter(
        what="each column is an object by row, as pandas writes a table by default",
        make=lambda d: [
            dict(zip(d, row, strict=True)) for row in zip(*(cells.values() for cells in _objects(d)), strict=True)
        ],
        expression="[dict(zip(d, row)) for row in zip(*(cells.values() for cells in d.values()))]",
    ),
    Converter(
        what="each row is under a separate key",
        make=lambda d: list(_objects(d)),
        expression="d.values()",
    ),
    Converter(
        what="the column names are separate from the rows (`columns`, `data`)",
        make=lambda d: [dict(zip(d["columns"], row, strict=True)) for row in d["data"]],
        expression='[dict(zip(d["columns"], row)) for row in d["data"]]',
    ),
)
OF_LISTS = (
    Converter(
        what="each list is one conversation",
        make=lambda d: [{"messages": _list(turns)} for turns in d],
        expression='[{"messages": turns} for turns in d]',
    ),
    Converter(
        what="each list holds several rows",
        make=lambda d: [row for rows in d for row in _list(rows)],
        expression="[row for rows in d for row in rows]",
    ),
    Converter(
        what="the first row holds the column names",
        make=lambda d: [dict(zip(_texts(d[0]), row, strict=True)) for row in d[1:]],
        expression="[dict(zip(d[0], row)) for row in d[1:]]",
    ),
    Converter(
        what="each row is a pair of texts",
        make=lambda d: [dict(zip(("prompt", "completion"), _texts(row), strict=True)) for row in d],
        expression='[dict(zip(("prompt", "completion"), row)) for row in d]',
    ),
    Converter(
        what="each row is a text, learned as a whole",
        make=lambda d: [{"text": text} for text in _texts(d)],
        expression='[{"text": text} for text in d]',
    ),
)
OF_ROWS = (
    Converter(
        what="the turns are Gemini's, with `parts`",
        make=lambda d: [{"messages": [_of_parts(turn) for turn in _gemini(row)]} for row in d],
        expression='[{"messages": [{"role": turn.get("role", "system"), "content": "".join(part["text"] for part in '
        'turn["parts"])} for turn in [row.get("systemInstruction") or row.get("system_instruction") or {"parts": []}, '
        '*row["contents"]] if turn["parts"]]} for row in d]',
    ),
    Converter(
        what="each row is a request and its response, as in a log of OpenAI's API",
        make=lambda d: [
            {"messages": [*row["request"]["messages"], row["response"]["choices"][0]["message"]]} for row in d
        ],
        expression='[{"messages": [*row["request"]["messages"], row["response"]["choices"][0]["message"]]} '
        "for row in d]",
    ),
)
ONE_CONVERSATION = Converter(
    what="if all turns are one conversation",
    make=lambda d: [{"messages": d}],
    expression='[{"messages": d}]',
)
PAIRS = Converter(
    what="if a new conversation begins with every question",
    make=lambda d: [{"messages": d[at : at + 2]} for at in range(0, len(d) - len(d) % 2, 2)],
    expression='[{"messages": d[at:at + 2]} for at in range(0, len(d), 2)]',
)


def _lists(value: Mapping[str, Any]) -> list[list[Any]]:
    if len(value) < 2 or not all(isinstance(inner, list) for inner in value.values()):
        raise ValueError("not lists")
    return list(value.values())


def _objects(value: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    if not all(isinstance(inner, Mapping) for inner in value.values()):
        raise ValueError("not objects")
    return list(value.values())


def _gemini(row: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    system = row.get("systemInstruction") or row.get("system_instruction") or {"parts": []}
    return [turn for turn in (system, *row["contents"]) if turn["parts"]]


def _of_parts(turn: Mapping[str, Any]) -> dict[str, Any]:
    return {"role": turn.get("role", "system"), "content": "".join(part["text"] for part in turn["parts"])}


def _list(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise TypeError("not a list")
    return value


def _texts(value: Any) -> list[str]:
    if not isinstance(value, list) or not value or not all(isinstance(inner, str) for inner in value):
        raise ValueError("not texts")
    return value


def ways(source: Source, roots: Sequence[Any], fits: Fits) -> list[str]:
    """Ways to make rows from the first values of a file; [] where no known converter does."""
    if not roots:
        return []
    turns = list(_of_turns(roots, fits))
    fitting = turns or [converter for converter in OF_ROWS if _makes(converter, list(roots), fits)]
    is_object = len(roots) == 1 and isinstance(roots[0], Mapping)
    known = OF_OBJECTS if is_object else OF_LISTS
    fitting = fitting or [
        converter for converter in known if _makes(converter, roots[0] if is_object else list(roots), fits)
    ]
    if not fitting:
        return chat_logs.ways(roots, fits)
    each = "each row is one turn, but a row must be a whole conversation; " if turns else ""
    lines = [f"{each}convert the rows first{', in the way that is right for them' if len(fitting) > 1 else ''}"]
    for converter in fitting:
        written = commands.writing(source, converter.expression, uses=converter.uses, of_object=converter in OF_OBJECTS)
        lines += (
            [f"{converter.what}:", written]
            if written
            else [f"{converter.what}: as JSON lines (.jsonl), a row per line"]
        )
    return lines


def _makes(converter: Converter, whole: Any, fits: Fits) -> bool:
    try:
        rows = converter.make(whole)
    except (ValueError, TypeError, LookupError, AttributeError):
        return False
    return bool(rows) and all(isinstance(row, Mapping) for row in rows) and fits(rows[:FEW]) is not None


def _of_turns(roots: Sequence[Any], fits: Fits) -> Iterator[Converter]:
    """For rows that are turns: one conversation, one per group, or one per question and answer."""
    turns = [turn for turn in roots if isinstance(turn, Mapping) and _names_a_role(turn)]
    if len(turns) < len(roots) or not _makes(ONE_CONVERSATION, turns, fits):
        return
    yield from (converter for converter in map(_grouped, _groups(turns)) if _makes(converter, turns, fits))
    yield ONE_CONVERSATION
    pairs = [fits([row]) for row in PAIRS.make(turns)]
    if pairs and all(record is not None and record.kind == "conversation" for record in pairs):
        yield PAIRS


def _names_a_role(turn: Mapping[str, Any]) -> bool:
    return any(isinstance(turn.get(key), str) for key in ROLE_KEYS)


def _groups(turns: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Keys whose values repeat in consecutive rows, but not in all rows."""
    for key in turns[0]:
        values = [turn.get(key) for turn in turns]
        runs = sum(1 for _ in itertools.groupby(values))
        if isinstance(values[0], str | int) and runs == len(set(map(str, values))) and 1 < runs < len(turns):
            yield str(key)


def _grouped(key: str) -> Converter:
    name = json.dumps(key)
    return Converter(
        what=f"if the turns with the same `{key}` are a conversation",
        make=lambda d: [{"messages": list(turns)} for _, turns in itertools.groupby(d, key=lambda turn: turn.get(key))],
        expression='[{"messages": list(turns)} for _, turns in '
        f"itertools.groupby(d, key=lambda turn: turn.get({name}))]",
        uses="itertools",
    )


def of_steps(steps: Sequence[str], *, column: str, rows: bool) -> str:
    """The expression for the rows at the end of these steps, in each of several `rows` or in a file's one value."""
    expression, names = "d", iter("abcdefgh")
    loops = ""
    for step in (*([EACH] if rows else []), *steps):
        if step == EACH:
            name = next(names)
            loops, expression = f"{loops} for {name} in {expression}", name
        else:
            expression = f"{expression}[{json.dumps(step)}]"
    row = f"{{{json.dumps(column)}: {expression}}}" if column else expression
    return f"[{row}{loops}]"
