"""A Modelfile for Ollama: its template is derived from the model's own, and written only if both render the same.

Ollama's templates use Go's template language. For most models, a chat template adds a text before and after each turn.
Those texts are found by rendering a conversation of markers; conversations assembled from them are then compared with
what the model's own template renders.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlflow_ft.engine.models import loading

SYSTEM, USER, ASSISTANT, LAST = "\u27e8system\u27e9", "\u27e8user\u27e9", "\u27e8assistant\u27e9", "\u27e8last\u27e9"
Messages = list[dict[str, str]]
ENDS = ("generation_config.json", "config.json")
"""The files that may name the end tokens: the first that is there is read."""


@dataclass(frozen=True, kw_only=True)
class Pieces:
    """What a template writes around the turns."""

    start: str
    """Before the first turn if there is no system prompt: many models have a default one."""
    system: tuple[str, str] | None
    """Before and after the system prompt, including any prefix; None if the template does not support one."""
    user: tuple[str, str]
    assistant: tuple[str, str]
    """Before and after an answer; the first is also the generation prompt."""

    def rendered(self, messages: Messages) -> str:
        """A conversation as the Modelfile's template renders it."""
        around = {"system": self.system, "user": self.user, "assistant": self.assistant}
        text = "" if messages[0]["role"] == "system" else self.start
        for turn in messages:
            before, after = around[turn["role"]] or ("", "")
            text += before + turn["content"] + after
        return text + self.assistant[0]


def pieces(tokenizer: Any) -> Pieces | None:
    """The texts around the turns, without the BOS token, which llama.cpp adds itself.

    None if the template does not have this simple form.
    """

    def written(messages: Messages, *, asks: bool = True) -> str:
        text = str(tokenizer.apply_chat_template(messages, add_generation_prompt=asks, tokenize=False))
        begin = tokenizer.bos_token
        return text.removeprefix(begin) if begin and _adds_bos(tokenizer) else text

    try:
        derived = _pieces(written)
        talks = [turns("a"), turns("a", "b", "c"), turns("x y", "1\n2", "z", "w", "{{ v }}")]
        if derived and derived.system:
            talks += [[{"role": "system", "content": "s"}, *talk] for talk in talks]
        return derived if derived and all(derived.rendered(talk) == written(talk) for talk in talks) else None
    except Exception:  # a template may raise anything
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
    """The texts around a system prompt; None if the template does not support one."""
    try:
        text = written([{"role": "system", "content": SYSTEM}, *talk])
    except Exception:  # templates report this in different ways
        return None
    if text.count(SYSTEM) != 1:
        return None
    before, after = text.split(SYSTEM)
    after = after.split(USER)[0]
    return (before, after[: len(after) - len(opening)]) if after.endswith(opening) else None


def _shared_tail(first: str, second: str) -> str:
    """The longest common suffix."""
    length = 0
    while length < min(len(first), len(second)) and first[-1 - length] == second[-1 - length]:
        length += 1
    return first[len(first) - length :]


def turns(*texts: str) -> Messages:
    """A conversation that starts with the user."""
    return [{"role": ("user", "assistant")[place % 2], "content": text} for place, text in enumerate(texts)]


def modelfile(tokenizer: Any, source: Path, file: str) -> str | None:
    """The text of a Modelfile for `file`; None if Ollama cannot express the template."""
    template = pieces(tokenizer)
    if template is None:
        return None
    stops = "\n".join(f"PARAMETER stop {_quoted(stop)}" for stop in end_texts(tokenizer, source))
    return f'FROM ./{file}\n\nTEMPLATE """{go_template(template)}"""\n\n{stops}\n'


def go_template(template: Pieces) -> str:
    """The pieces in Go's template language as Ollama runs it: with `.Messages`, and `.System` if there is one."""
    roles = [("user", template.user), ("assistant", template.assistant)]
    if template.system:
        roles.insert(0, ("system", template.system))
    start = f"{{{{ if not .System }}}}{_literal(template.start)}{{{{ end }}}}" if template.start else ""
    branches = ""
    for place, (role, (before, after)) in enumerate(roles):
        word = "if" if place == 0 else "else if"
        branches += f'{{{{ {word} eq .Role "{role}" }}}}{_literal(before)}{{{{ .Content }}}}{_literal(after)}'
    return f"{start}{{{{ range .Messages }}}}{branches}{{{{ end }}}}{{{{ end }}}}{_literal(template.assistant[0])}"


def _literal(text: str) -> str:
    """A text that Go's templates write unchanged, escaped if it would end the Modelfile's triple quotes."""
    if "{{" in text or '"""' in text:
        written = json.dumps(text, ensure_ascii=False)
        return "{{ " + written.replace("{{", "{\\u007b").replace("}}", "}\\u007d") + " }}"
    return text


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def end_texts(tokenizer: Any, source: Path) -> list[str]:
    """The tokens that end an answer, as text: those of the model's settings, and the tokenizer's."""
    file = next((source / name for name in ENDS if (source / name).is_file()), None)
    settings = json.loads(file.read_text(encoding="utf-8")) if file else {}
    ends = [*loading.token_ids(settings.get("eos_token_id")), *loading.token_ids(tokenizer.eos_token_id)]
    return [tokenizer.decode([end]) for end in dict.fromkeys(ends)]


def _adds_bos(tokenizer: Any) -> bool:
    """Whether the tokenizer, and therefore llama.cpp, starts every text with the BOS token."""
    ids = tokenizer("x")["input_ids"]
    return bool(ids) and ids[0] == tokenizer.bos_token_id
