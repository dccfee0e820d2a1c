"""Read the source of a chat template: which date formats it uses, and which tags it looks for in words.

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
"""The only function by which a template can read the time in transformers."""
ANY_FORMAT = "%Y-%m-%dT%H:%M:%S.%f"
"""Used for a format that the source does not name: it contains every part of a time."""
GENERATION = re.compile(r"(%[-+]?)\s*(end)?generation\s*([-+]?%)")
TAG = re.compile(r"\W.*\W", re.DOTALL)
SHORTEST_TAG = 3


@dataclass(frozen=True, kw_only=True)
class Code:
    """What a template's source contains."""

    formats: frozenset[str] = frozenset()
    """The formats in which it may write the time."""
    draws: bool = False
    """Whether it may draw random numbers."""
    starts: tuple[str, ...] = ()
    """Beginnings of content that it writes differently, longest first."""
    ends: tuple[str, ...] = ()
    """Endings of content that it writes differently, longest first."""
    closings: tuple[str, ...] = ()
    """Tags that separate thoughts from the words after them, longest first."""


@lru_cache(maxsize=64)
def read(template: str) -> Code:
    """Read a template; the result is empty if it is not valid Jinja (then it cannot be rendered either)."""
    # Jinja does not know transformers' generation markers
    plain = GENERATION.sub(lambda tag: f"{tag[1]} {tag[2] or ''}if {'' if tag[2] else 1} {tag[3]}", template)
    try:
        tree = Environment(extensions=[loopcontrols], autoescape=True).parse(plain)
    except TemplateError:
        return Code()
    values = _constants(tree)
    filters = {node.name for node in tree.find_all(nodes.Filter)}
    names = {node.name for node in tree.find_all(nodes.Name)}
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


def _longest_first(texts: Iterator[str]) -> tuple[str, ...]:
    return tuple(sorted({text for text in texts if text.strip()}, key=lambda text: (-len(text), text)))


def _constants(tree: nodes.Template) -> dict[str, set[str]]:
    """The values of names that are only ever set to constant texts."""
    set_to: dict[str, set[str]] = {}
    constant = set()
    for assign in tree.find_all(nodes.Assign):
        target, value = assign.target, assign.node
        if isinstance(target, nodes.Name) and isinstance(value, nodes.Const) and isinstance(value.value, str):
            set_to.setdefault(target.name, set()).add(value.value)
            constant.add(id(target))
    others = {node.name for node in tree.find_all(nodes.Name) if node.ctx != "load" and id(node) not in constant}
    return {name: texts for name, texts in set_to.items() if name not in others}


def _texts(node: Any, values: dict[str, set[str]]) -> set[str]:
    """The possible texts of an argument; empty if the source does not say."""
    if isinstance(node, nodes.Const):
        return {node.value} if isinstance(node.value, str) else set()
    if isinstance(node, nodes.Tuple):
        return {text for item in node.items for text in _texts(item, values)}
    return values.get(node.name, set()) if isinstance(node, nodes.Name) else set()


def _given(tree: nodes.Template, values: dict[str, set[str]], *methods: str) -> Iterator[str]:
    """The texts that are passed to methods of these names."""
    for call in tree.find_all(nodes.Call):
        if isinstance(call.node, nodes.Getattr) and call.node.attr in methods and call.args:
            yield from (text.strip() for text in _texts(call.args[0], values))


def _formats(tree: nodes.Template, values: dict[str, set[str]]) -> Iterator[str]:
    """The formats passed to the clock; `ANY_FORMAT` where the source does not say."""
    called = [
        call for call in tree.find_all(nodes.Call) if isinstance(call.node, nodes.Name) and call.node.name == CLOCK
    ]
    tested = [
        test.node for test in tree.find_all(nodes.Test) if isinstance(test.node, nodes.Name) and test.node.name == CLOCK
    ]
    for call in called:
        texts = _texts(call.args[0], values) if len(call.args) == 1 and not call.kwargs else set()
        yield from texts or {ANY_FORMAT}
    known = {id(call.node) for call in called} | {id(node) for node in tested}
    if any(node.name == CLOCK and id(node) not in known for node in tree.find_all(nodes.Name)):
        yield ANY_FORMAT  # it is used under another name
