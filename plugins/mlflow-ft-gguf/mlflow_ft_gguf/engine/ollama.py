"""A Modelfile for Ollama: its template is found out from the model's own, and written only where both say the same.

Ollama's templates are in Go's language. A chat template is, for most models, a text before and after what each role
says. Those texts are found by rendering a conversation of marks; then conversations are put together from them and
compared with what the model's own template makes of them.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SYSTEM, USER, ASSISTANT, LAST = "\u27e8system\u27e9", "\u27e8user\u27e9", "\u27e8assistant\u27e9", "\u27e8last\u27e9"
Messages = list[dict[str, str]]


@dataclass(frozen=True, kw_only=True)
class Pieces:
    """What a template writes around the turns."""

    start: str
    """Before the first turn where there is no system prompt: many models have one by default."""
    system: tuple[str, str] | None
    """Before and after the system prompt, with what begins the whole; None where the template takes none."""
    user: tuple[str, str]
    assistant: tuple[str, str]
    """Before and after an answer; the first is also what asks for one."""

    def rendered(self, messages: Messages) -> str:
        """A conversation, as the Modelfile's template writes it."""
        around = {"system": self.system, "user": self.user, "assistant": self.assistant}
        text = "" if messages[0]["role"] == "system" else self.start
        for turn in messages:
            before, after = around[turn["role"]] or ("", "")
            text += before + turn["content"] + after
        return text + self.assistant[0]


def pieces(tokenizer: Any) -> Pieces | None:
    """The texts around the turns, without the token that begins every text (llama.cpp adds it itself).

    None where the template is not of this simple form.
    """

    def written(messages: Messages, *, asks: bool = True) -> str:
        text = str(tokenizer.apply_chat_template(messages, add_generation_prompt=asks, tokenize=False))
        begin = tokenizer.bos_token
        return text.removeprefix(begin) if begin and _adds_bos(tokenizer) else text

    try:
        found = _pieces(written)
        checks = [turns("a"), turns("a", "b", "c"), turns("x y", "1\n2", "z", "w", "{{ v }}")]
        if found and found.system:
            checks += [[{"role": "system", "content": "s"}, *one] for one in checks]
        return found if found and all(found.rendered(one) == written(one) for one in checks) else None
    except Exception:  # whatever a template raises
        return None


def _pieces(written: Callable[..., str]) -> Pieces | None:
    talk = turns(USER, ASSISTANT, LAST)
    text = written(talk)
    if any(text.count(mark) != 1 for mark in (USER, ASSISTANT, LAST)):
        return None
    first, rest = text.split(USER)
    _, rest = rest.split(ASSISTANT)
    back, end = rest.split(LAST)
    user_end = written(talk, asks=False).split(LAST)[1]
    answer_end = written(talk[:2], asks=False).split(ASSISTANT)[1]
    opening = back.removeprefix(answer_end) if back.startswith(answer_end) else _shared_tail(first, back)
    around = (opening, user_end), (end.removeprefix(user_end), back[: len(back) - len(opening)])
    return Pieces(
        start=first[: len(first) - len(opening)],
        system=_system(written, talk, opening),
        user=around[0],
        assistant=around[1],
    )


def _system(written: Callable[..., str], talk: Messages, opening: str) -> tuple[str, str] | None:
    """What stands around a system prompt; None where the template takes none."""
    try:
        text = written([{"role": "system", "content": SYSTEM}, *talk])
    except Exception:  # such a template says so in its own way
        return None
    if text.count(SYSTEM) != 1:
        return None
    before, after = text.split(SYSTEM)
    after = after.split(USER)[0]
    return (before, after[: len(after) - len(opening)]) if after.endswith(opening) else None


def _shared_tail(one: str, other: str) -> str:
    """The longest text with which both end."""
    length = 0
    while length < min(len(one), len(other)) and one[-1 - length] == other[-1 - length]:
        length += 1
    return one[len(one) - length :]


def turns(*texts: str) -> Messages:
    """A conversation that a user begins."""
    return [{"role": ("user", "assistant")[place % 2], "content": text} for place, text in enumerate(texts)]


def modelfile(tokenizer: Any, source: Path, file: str) -> str | None:
    """The text of a Modelfile for `file`; None where the template cannot be told."""
    found = pieces(tokenizer)
    if found is None:
        return None
    stops = "\n".join(f"PARAMETER stop {_quoted(stop)}" for stop in end_texts(tokenizer, source))
    return f'FROM ./{file}\n\nTEMPLATE """{go_template(found)}"""\n\n{stops}\n'


def go_template(found: Pieces) -> str:
    """The pieces in Go's template language, as Ollama runs it: with `.Messages`, and `.System` where there is one."""
    roles = [("user", found.user), ("assistant", found.assistant)]
    if found.system:
        roles.insert(0, ("system", found.system))
    start = f"{{{{ if not .System }}}}{_literal(found.start)}{{{{ end }}}}" if found.start else ""
    branches = ""
    for place, (role, (before, after)) in enumerate(roles):
        word = "if" if place == 0 else "else if"
        branches += f'{{{{ {word} eq .Role "{role}" }}}}{_literal(before)}{{{{ .Content }}}}{_literal(after)}'
    return f"{start}{{{{ range .Messages }}}}{branches}{{{{ end }}}}{{{{ end }}}}{_literal(found.assistant[0])}"


def _literal(text: str) -> str:
    """A text that Go's templates write as it is; inside a Modelfile's triple quotes none may stand."""
    if "{{" in text or '"""' in text:
        written = json.dumps(text, ensure_ascii=False)
        return "{{ " + written.replace("{{", "{\\u007b").replace("}}", "}\\u007d") + " }}"
    return text


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def end_texts(tokenizer: Any, source: Path) -> list[str]:
    """The tokens that end an answer, as texts."""
    settings = json.loads((source / "generation_config.json").read_text(encoding="utf-8"))
    ends = settings.get("eos_token_id")
    ends = ends if isinstance(ends, list) else [ends]
    return [tokenizer.decode([end]) for end in ends if end is not None]


def _adds_bos(tokenizer: Any) -> bool:
    """Whether the tokenizer, and so llama.cpp, begins every text with that token by itself."""
    ids = tokenizer("x")["input_ids"]
    return bool(ids) and ids[0] == tokenizer.bos_token_id
