"""Files whose rows a line of Python must write first: the command for that, tried on the first of them.

{"prompt": ["a", "b"], "completion": ["c", "d"]}     columns that are lists
{"prompt": {"0": "a"}, "completion": {"0": "c"}}     as pandas writes a table by default
[{"role": "user", ...}, {"role": "assistant", ...}]   a turn a row: one conversation, or many?
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
    """Makes rows of what a file holds: the same in Python here and in the command."""

    what: str
    make: Callable[[Any], Rows]
    expression: str
    """Of `d`, what the file holds."""
    uses: str = ""
    """A module that the expression needs."""


OF_OBJECTS = (
    Converter(
        what="each column is a list of its own",
        make=lambda d: [dict(zip(d, row, strict=True)) for row in zip(*_lists(d), strict=True)],
        expression="[dict(zip(d, row)) for row in zip(*d.values())]",
    ),
    Converter(
        what="each column is an object by row, as pandas writes a table by default",
        make=lambda d: [
            dict(zip(d, row, strict=True)) for row in zip(*(one.values() for one in _objects(d)), strict=True)
        ],
        expression="[dict(zip(d, row)) for row in zip(*(one.values() for one in d.values()))]",
    ),
    Converter(
        what="each row stands under a name of its own",
        make=lambda d: list(_objects(d)),
        expression="d.values()",
    ),
    Converter(
        what="the names of the columns stand apart from the rows (`columns`, `data`)",
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
        what="the first row holds the names of the columns",
        make=lambda d: [dict(zip(_texts(d[0]), row, strict=True)) for row in d[1:]],
        expression="[dict(zip(d[0], row)) for row in d[1:]]",
    ),
    Converter(
        what="each row is a pair of texts",
        make=lambda d: [dict(zip(("prompt", "completion"), _texts(row), strict=True)) for row in d],
        expression='[dict(zip(("prompt", "completion"), row)) for row in d]',
    ),
    Converter(
        what="each row is a text, to be learned whole",
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
        what="each row is a request and its response, as a log of OpenAI's API has them",
        make=lambda d: [
            {"messages": [*row["request"]["messages"], row["response"]["choices"][0]["message"]]} for row in d
        ],
        expression='[{"messages": [*row["request"]["messages"], row["response"]["choices"][0]["message"]]} '
        "for row in d]",
    ),
)
ONE = Converter(
    what="if all of them are one conversation",
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
    """What would make rows of the first values of a file; [] where nothing that is known here does."""
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
    each = "each row is one turn, and a row must be a whole conversation; " if turns else ""
    lines = [f"{each}write the rows out first{', as they are meant' if len(fitting) > 1 else ''}"]
    for converter in fitting:
        written = commands.writing(source, converter.expression, uses=converter.uses, of_object=converter in OF_OBJECTS)
        lines += (
            [f"{converter.what}:", written] if written else [f"{converter.what}: as JSON lines (.jsonl), a row a line"]
        )
    return lines


def _makes(converter: Converter, whole: Any, fits: Fits) -> bool:
    try:
        made = converter.make(whole)
    except (ValueError, TypeError, LookupError, AttributeError):
        return False
    return bool(made) and all(isinstance(row, Mapping) for row in made) and fits(made[:FEW]) is not None


def _of_turns(roots: Sequence[Any], fits: Fits) -> Iterator[Converter]:
    """Of rows that are turns: one conversation, one of every group, or one of every question and its answer."""
    turns = [turn for turn in roots if isinstance(turn, Mapping) and _names_a_role(turn)]
    if len(turns) < len(roots) or not _makes(ONE, turns, fits):
        return
    yield from (converter for converter in map(_grouped, _groups(turns)) if _makes(converter, turns, fits))
    yield ONE
    pairs = [fits([row]) for row in PAIRS.make(turns)]
    if pairs and all(record is not None and record.kind == "conversation" for record in pairs):
        yield PAIRS


def _names_a_role(turn: Mapping[str, Any]) -> bool:
    return any(isinstance(turn.get(key), str) for key in ROLE_KEYS)


def _groups(turns: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Keys whose values come several times in a row, and not everywhere."""
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
    """What takes the rows that lie at the end of steps, in each of several `rows` or in the one value of a file."""
    expression, names = "d", iter("abcdefgh")
    loops = ""
    for step in (*([EACH] if rows else []), *steps):
        if step == EACH:
            name = next(names)
            loops, expression = f"{loops} for {name} in {expression}", name
        else:
            expression = f"{expression}[{json.dumps(step)}]"
    made = f"{{{json.dumps(column)}: {expression}}}" if column else expression
    return f"[{made}{loops}]"
