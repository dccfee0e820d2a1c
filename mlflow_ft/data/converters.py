"""Files whose rows a line of Python must write first: the command for that, tried on the first of them.

{"prompt": ["a", "b"], "completion": ["c", "d"]}     columns that are lists
{"prompt": {"0": "a"}, "completion": {"0": "c"}}     as pandas writes a table by default
[{"role": "user", ...}, {"role": "assistant", ...}]   a turn a row: one conversation, or many?
"""

from __future__ import annotations

import itertools
import json
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlflow_ft.data import compressed
from mlflow_ft.data.shapes import EACH, FEW, Fits

if TYPE_CHECKING:
    from mlflow_ft.data.sources import Source

OPEN = {".gz": "gzip", ".bz2": "bz2", ".xz": "lzma"}
ROLE_KEYS = ("role", "from", "speaker", "sender")
AUTHOR_KEYS = (*ROLE_KEYS, "author", "user", "user_name", "username", "sender_name", "name", "nickname")
SAID_KEYS = ("content", "text", "message", "body", "value")
Rows = list[Mapping[str, Any]]


@dataclass(frozen=True, kw_only=True)
class Converter:
    """Makes rows of what a file holds: the same in Python here and in the command."""

    what: str
    make: Callable[[Any], Rows]
    expression: str
    """Of `d`, what the file holds."""
    uses: tuple[str, ...] = ()
    """Modules that the expression needs."""


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
ONE = Converter(
    what="each row is a turn; if all of them are one conversation",
    make=lambda d: [{"messages": d}],
    expression='[{"messages": d}]',
)
PAIRS = Converter(
    what="if a new conversation begins with every question",
    make=lambda d: [{"messages": d[at : at + 2]} for at in range(0, len(d) - len(d) % 2, 2)],
    expression='[{"messages": d[at:at + 2]} for at in range(0, len(d), 2)]',
)


def _lists(found: Mapping[str, Any]) -> list[list[Any]]:
    if len(found) < 2 or not all(isinstance(one, list) for one in found.values()):
        raise ValueError("not lists")
    return list(found.values())


def _objects(found: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    if not all(isinstance(one, Mapping) for one in found.values()):
        raise ValueError("not objects")
    return list(found.values())


def _texts(found: Any) -> list[str]:
    if not isinstance(found, list) or not found or not all(isinstance(one, str) for one in found):
        raise ValueError("not texts")
    return found


def ways(source: Source, roots: Sequence[Any], fits: Fits) -> list[str]:
    """What would make rows of the first values of a file; [] where nothing that is known here does."""
    if not roots:
        return []
    if turns := list(_of_turns(source, roots, fits)):
        return turns
    known = OF_OBJECTS if len(roots) == 1 and isinstance(roots[0], Mapping) else OF_LISTS
    whole = roots[0] if known is OF_OBJECTS else list(roots)
    for one in known:
        if _makes(one, whole, fits):
            return [f"{one.what}; write the rows out first:", command(source, one)]
    return list(_of_a_chat(roots))


def _makes(one: Converter, whole: Any, fits: Fits) -> bool:
    try:
        made = one.make(whole)
    except (ValueError, TypeError, LookupError, AttributeError):
        return False
    return bool(made) and all(isinstance(row, Mapping) for row in made) and fits(made[:FEW]) is not None


def _of_turns(source: Source, roots: Sequence[Any], fits: Fits) -> Iterator[str]:
    """Rows that are turns: of one conversation, of one a group, or of a question and its answer each."""
    turns = [one for one in roots if isinstance(one, Mapping)]
    if len(turns) < len(roots) or not _makes(ONE, turns, fits):
        return
    ways = [_grouped(key) for key in _groups(turns)]
    ways += [ONE] + [PAIRS] * all(fits(PAIRS.make(turns[at : at + 2])) for at in range(0, len(turns) - 1, 2))
    yield "each row is one turn, and a row must be a whole conversation; write conversations first"
    for one in ways:
        if _makes(one, turns, fits):
            yield f"{one.what.removeprefix('each row is a turn; ')}:"
            yield command(source, one)


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
        uses=("itertools",),
    )


def of_steps(steps: Sequence[str], *, column: str) -> Converter:
    """What takes the rows that lie at the end of steps."""
    expression, names = "d", iter("abcdefgh")
    loops = ""
    for step in steps:
        if step == EACH:
            name = next(names)
            loops, expression = f"{loops} for {name} in {expression}", name
        else:
            expression = f"{expression}[{json.dumps(step)}]"
    made = f"{{{json.dumps(column)}: {expression}}}" if column else expression
    return Converter(what="", make=lambda d: [], expression=f"[{made}{loops}]")


def command(source: Source, one: Converter) -> str:
    """What to type so that the rows are written as JSON lines, and where to find them."""
    path = source.files[0].path
    file = Path(path) if path else Path("FILE")
    module = OPEN.get(file.suffix.lower())
    opened = f'{f"{module}." if module else ""}open({json.dumps(str(file))}, "rt", encoding="utf-8")'
    is_lines = compressed.suffix(file) in (".jsonl", ".ndjson")
    read = f"[json.loads(line) for line in {opened} if line.strip()]" if is_lines else f"json.load({opened})"
    target = f"{file.name.partition('.')[0] or 'data'}-rows.jsonl"
    modules = ", ".join(sorted({"json", *one.uses, *([module] if module else [])}))
    code = (
        f"import {modules}; d = {read}; "
        f'open({json.dumps(target)}, "w", encoding="utf-8").writelines('
        f'json.dumps(row) + "\\n" for row in {one.expression})'
    )
    return f"  python -c {shlex.quote(code)}    # then --data {shlex.quote(target)}"


# --- logs of people


def _of_a_chat(roots: Sequence[Any]) -> Iterator[str]:
    """What to write, where a list of messages names people, and nobody is the user or the assistant."""
    log = next((found for found in _lists_in(roots) if len(_speakers(found)) > 1), None)
    if log is None:
        return
    speakers = list(dict.fromkeys(_speakers(log)))
    asked, answered = _first_said(log, speakers[0]), _first_said(log, speakers[1])
    turns = [{"role": "user", "content": asked}, {"role": "assistant", "content": answered}]
    named = ", ".join(repr(one[:40]) for one in speakers[:6]) + " ..." * (len(speakers) > 6)
    yield f"it is a log of what people wrote ({named}); nothing in it says whose words are to be learned"
    yield (
        "write a conversation a line (.jsonl), with the role assistant where that person speaks, and user elsewhere; "
        f"if {speakers[1][:40]!r} is meant:"
    )
    yield f"  {json.dumps({'messages': turns}, ensure_ascii=False)}"


def _lists_in(roots: Sequence[Any]) -> Iterator[list[Any]]:
    yield [one for one in roots if isinstance(one, Mapping)]
    for root in roots[:1]:
        for one in root.values() if isinstance(root, Mapping) else ():
            if isinstance(one, list):
                yield [inner for inner in one[:FEW] if isinstance(inner, Mapping)]


def _speakers(log: Sequence[Mapping[str, Any]]) -> list[str]:
    return [speaker for one in log if (speaker := _speaker(one)) and _words(one)]


def _speaker(one: Mapping[str, Any]) -> str:
    for key in AUTHOR_KEYS:
        value = one.get(key)
        found = value if isinstance(value, str) else _speaker(value) if isinstance(value, Mapping) else ""
        if found:
            return found
    return ""


def _words(one: Mapping[str, Any]) -> str:
    return next((one[key] for key in SAID_KEYS if isinstance(one.get(key), str) and one[key].strip()), "")


def _first_said(log: Sequence[Mapping[str, Any]], speaker: str) -> str:
    said = next(_words(one) for one in log if _speaker(one) == speaker and _words(one))
    return said if len(said) <= 80 else f"{said[:79]}…"
