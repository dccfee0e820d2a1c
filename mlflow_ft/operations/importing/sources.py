"""Several data entries of a tool as the one data section: `data.path`, and what all of its sources share."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mlflow_ft.data.sources import is_local
from mlflow_ft.operations.importing.draft import Draft

WHOLE = "train"
"""The only split of a file, and what is read where no split is named."""
FIRST = re.compile(r"(\w+)\[0?:(\d+)\]")
ROLE_KEYS = frozenset({"role", "from", "speaker"})
CONTENT_KEYS = frozenset({"content", "value", "text"})
"""Names of the role and the words of a turn that are read without a setting."""
ROLES = {
    "user": frozenset({"user", "human", "humans", "prompter", "customer"}),
    "assistant": frozenset(
        {"assistant", "gpt", "model", "bot", "chatbot", "ai", "agent", "chatgpt", "bing", "bard", "claude"}
    ),
    "system": frozenset({"system", "developer"}),
    "tool": frozenset({"tool", "tools", "observation", "function", "ipython", "environment", "tool_response"}),
    "function": frozenset({"function_call", "function-call", "tool_call", "tool-call", "tool_calls"}),
}
"""Names of roles that are read without a setting."""


@dataclass(kw_only=True)
class Source:
    """A data set, as an entry of the tool describes it, in our terms."""

    path: str
    key: str
    """The key that names it."""
    format: str = "auto"
    columns: dict[str, str] = field(default_factory=dict)
    """Our name of a column -> theirs, where they differ."""
    shared: dict[str, tuple[Any, str]] = field(default_factory=dict)
    """Setting of the data section -> its value and the key it came of; all sources must agree."""
    template: str = ""
    """The key that names a chat template for this source alone."""
    weight: float | None = None
    about: str = ""


def put(draft: Draft, sources: Sequence[Source], *, weighted: bool = False) -> None:
    """Write the sources; where they disagree on what all share, the later is refused."""
    if not sources:
        return
    for source in sources:
        read_split(draft, source)
    read = {source.path: source for source in reversed(sources)}
    for again in (source for source in sources if read[source.path] is not source):
        draft.refuse(again.key, f"{again.path} is named before, and read once: write its parts to files")
    keys = [source.key for source in sources if read[source.path] is source]
    about = "; ".join(dict.fromkeys(filter(None, (source.about for source in sources))))
    paths = list(dict.fromkeys(source.path for source in sources))
    if weighted:
        draft.set("data.path", {path: read[path].weight or 1.0 for path in paths}, *keys, about=about)
    else:
        draft.set("data.path", paths[0] if len(paths) == 1 else paths, *keys, about=about)
    formats = {source.format for source in sources}
    if len(formats) == 1 and formats != {"auto"}:
        draft.set("data.format", formats.pop(), *keys[:1])
    _columns(draft, sources)
    for setting in dict.fromkeys(name for source in sources for name in source.shared):
        _shared(draft, sources, setting)


def read_split(draft: Draft, source: Source) -> None:
    """`train[:200]` are the first rows; other parts of a split are for the Hub, and a file has a single split."""
    split, key = source.shared.get("split", (WHOLE, ""))
    if first := FIRST.fullmatch(split):
        split = first[1]
        source.shared |= {"split": (split, key), "max_rows": (int(first[2]), key)}
    if not key or not is_local(source.path):
        return
    if "[" not in split and Path(source.path).expanduser().is_dir():
        return
    del source.shared["split"]
    if split == WHOLE:
        draft.tell(key, "mapped", note="all rows of the file")
    else:
        draft.refuse(key, f"{source.path} is read whole; data.max_rows reads its first rows")


def _columns(draft: Draft, sources: Sequence[Source]) -> None:
    columns: dict[str, str] = {}
    for source in sources:
        clash = {name for name, column in source.columns.items() if columns.get(name, column) != column}
        if clash:
            names = ", ".join(f"{name}={source.columns[name]}" for name in sorted(clash))
            draft.refuse(source.key, f"its columns ({names}) differ from another source's; rename them in the file")
            continue
        columns |= source.columns
    if columns:
        draft.set("data.columns", columns, *(source.key for source in sources if source.columns))


def _shared(draft: Draft, sources: Sequence[Source], setting: str) -> None:
    values = [source.shared.get(setting) for source in sources]
    given = [value for value in values if value is not None]
    first, key = given[0]
    if all(value is not None and value[0] == first for value in values):
        draft.set(f"data.{setting}", first, *(key for _, key in given))
        return
    draft.set(f"data.{setting}", first, key)
    for value, other in given[1:]:
        if value != first:
            draft.refuse(other, f"all sources share data.{setting}, which is {first!r} from {key}")
    if len(given) < len(sources):
        draft.tell(key, "approximated", f"data.{setting}", note="applies to every source")


def renamed(columns: Mapping[str, Any], defaults: Mapping[str, str]) -> dict[str, str]:
    """Our name of a column -> theirs, where it is not already called so."""
    named = {ours: str(theirs) for ours, theirs in columns.items() if theirs}
    return {ours: theirs for ours, theirs in named.items() if defaults.get(ours, ours) != theirs}
