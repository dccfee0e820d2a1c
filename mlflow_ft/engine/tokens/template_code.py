"""What the source of a chat template says by itself: which date formats it asks for, which tags it looks for in words.

{{ strftime_now('%d %b %Y') }}                     it writes a date
{{ ['Hi', 'Hello'] | random }}                     it draws random numbers
{% if turn.content.startswith('<tool_response>') %}   how words begin changes what it writes
{% set said = turn.content.split('</think>')[-1] %}   it takes words apart
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from jinja2 import Environment, TemplateError, nodes
from jinja2.ext import loopcontrols

CLOCK = "strftime_now"
"""The function by which transformers tells a template the time; no template has another way to it."""
ANY_FORMAT = "%Y-%m-%dT%H:%M:%S.%f"
"""Stands for a format that the source does not name: everything that a clock says."""
GENERATION = re.compile(r"(%[-+]?)\s*(end)?generation\s*([-+]?%)")
TAG = re.compile(r"\W.*\W", re.DOTALL)
SHORTEST_TAG = 3


@dataclass(frozen=True, kw_only=True)
class Code:
    """What was read in a template's source."""

    formats: frozenset[str] = frozenset()
    """The formats in which it may ask the time."""
    draws: bool = False
    """Whether it may draw random numbers."""
    starts: tuple[str, ...] = ()
    """How words may begin so that they are written otherwise, the longest first."""
    ends: tuple[str, ...] = ()
    closings: tuple[str, ...] = ()
    """The tags behind which it takes words to begin, the longest first: what stands before them was thought."""


@lru_cache(maxsize=64)
def read(template: str) -> Code:
    """Read a template; of one that is no Jinja nothing is known (it cannot be rendered either)."""
    # the tag of generation markers is transformers' own
    plain = GENERATION.sub(lambda tag: f"{tag[1]} {tag[2] or ''}if {'' if tag[2] else 1} {tag[3]}", template)
    try:
        tree = Environment(extensions=[loopcontrols], autoescape=True).parse(plain)
    except TemplateError:
        return Code()
    values = _constants(tree)
    filters = {one.name for one in tree.find_all(nodes.Filter)}
    names = {one.name for one in tree.find_all(nodes.Name)}
    return Code(
        formats=frozenset(_formats(tree, values)),
        draws="random" in filters or "lipsum" in names,
        starts=_longest_first(_given(tree, values, "startswith")),
        ends=_longest_first(_given(tree, values, "endswith")),
        closings=_longest_first(filter(_closes, _given(tree, values, "split", "rsplit", "partition", "rpartition"))),
    )


def _closes(text: str) -> bool:
    """Whether a tag ends something: `</think>`, `[/THINK]`, `<|end_of_thought|>`, `<channel|>`."""
    ends = "/" in text or "end" in text.lower() or (text.endswith("|>") and not text.startswith("<|"))
    return len(text) >= SHORTEST_TAG and TAG.fullmatch(text) is not None and ends


def _longest_first(found: Iterator[str]) -> tuple[str, ...]:
    return tuple(sorted({text for text in found if text.strip()}, key=lambda text: (-len(text), text)))


def _constants(tree: nodes.Template) -> dict[str, set[str]]:
    """What names are set to, where that is always a text in the source."""
    set_to: dict[str, set[str]] = {}
    constant = set()
    for one in tree.find_all(nodes.Assign):
        if isinstance(one.target, nodes.Name) and isinstance(one.node, nodes.Const) and isinstance(one.node.value, str):
            set_to.setdefault(one.target.name, set()).add(one.node.value)
            constant.add(id(one.target))
    others = {one.name for one in tree.find_all(nodes.Name) if one.ctx != "load" and id(one) not in constant}
    return {name: texts for name, texts in set_to.items() if name not in others}


def _texts(node: Any, values: dict[str, set[str]]) -> set[str]:
    """The texts that an argument may be; none where the source does not say."""
    if isinstance(node, nodes.Const):
        return {node.value} if isinstance(node.value, str) else set()
    if isinstance(node, nodes.Tuple):
        return {text for item in node.items for text in _texts(item, values)}
    return values.get(node.name, set()) if isinstance(node, nodes.Name) else set()


def _given(tree: nodes.Template, values: dict[str, set[str]], *methods: str) -> Iterator[str]:
    """The texts that are given to methods of these names."""
    for call in tree.find_all(nodes.Call):
        if isinstance(call.node, nodes.Getattr) and call.node.attr in methods and call.args:
            yield from (text.strip() for text in _texts(call.args[0], values))


def _formats(tree: nodes.Template, values: dict[str, set[str]]) -> Iterator[str]:
    """The formats that the clock is asked in; `ANY_FORMAT` where that is not told by the source."""
    called = [one for one in tree.find_all(nodes.Call) if isinstance(one.node, nodes.Name) and one.node.name == CLOCK]
    tested = [
        one.node for one in tree.find_all(nodes.Test) if isinstance(one.node, nodes.Name) and one.node.name == CLOCK
    ]
    for call in called:
        texts = _texts(call.args[0], values) if len(call.args) == 1 and not call.kwargs else set()
        yield from texts or {ANY_FORMAT}
    known = {id(one.node) for one in called} | {id(one) for one in tested}
    if any(one.name == CLOCK and id(one) not in known for one in tree.find_all(nodes.Name)):
        yield ANY_FORMAT  # it goes by another name
