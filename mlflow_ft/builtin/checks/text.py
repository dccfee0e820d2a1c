"""Checks of the text: broken characters, a different script from the rest, and answers that refuse."""

from __future__ import annotations

import re
from array import array
from collections import Counter
from functools import cache
from typing import TYPE_CHECKING, Any

from mlflow_ft import Checked, Finding
from mlflow_ft.builtin.checks.seen import Seen, content, said
from mlflow_ft.builtin.checks.words import excerpt

if TYPE_CHECKING:
    from mlflow_ft import ChecksSection

_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")
_NO_CONTROL = bytes(code for code in range(256) if not _CONTROL.match(chr(code)) or code > 127)
_OVERRIDE = re.compile("[\u202d\u202e]")
_EMBEDDING = re.compile("[\u202a-\u202c\u2066-\u2069]")
_SURROGATE = re.compile("[\ud800-\udfff]")
_RIGHT_TO_LEFT = re.compile("[\u0590-\u08ff\ufb1d-\ufdff\ufe70-\ufeff]")
_HARMLESS = re.compile("[’‘“”–—…•]+")
_NOT_MOJIBAKE = re.compile("[¬\ufffd]")
"""¬ twice in a row is logic; U+FFFD is reported separately."""
_AROUND = 40
"""Most characters of a word to show on either side of broken text."""


def encoding(row: Checked) -> str | None:
    """Text that was read in the wrong encoding, or characters that no one typed."""
    faults = dict.fromkeys(fault for _, text in said(row) for fault in _broken(text))
    return "; ".join(faults) or None


def _broken(text: str) -> list[str]:
    if text.isascii():
        return _control(text) if text.encode().translate(None, _NO_CONTROL) else []
    # mojibake contains control characters too
    faults = _mojibake(text) or _control(text)
    if "\ufffd" in text:
        faults.append("replacement character U+FFFD: the original character is lost")
    if _SURROGATE.search(text):
        faults.append("an unpaired surrogate")
    control = _OVERRIDE.search(text) or (not _RIGHT_TO_LEFT.search(text) and _EMBEDDING.search(text))
    if control:
        faults.append(f"bidirectional control U+{ord(control[0]):04X}, which displays text in a different order")
    return faults


def _control(text: str) -> list[str]:
    control = _CONTROL.search(text)
    return [f"control character U+{ord(control[0]):04X}"] if control else []


def _mojibake(text: str) -> list[str]:
    if _HARMLESS.sub("", text).isascii():
        return []
    import ftfy
    from ftfy.badness import BADNESS_RE

    bad = BADNESS_RE.search(_NOT_MOJIBAKE.sub(" ", text))
    if not bad:
        return []
    start = text.rfind(" ", 0, bad.start()) + 1
    end = text.find(" ", bad.end())
    part = text[max(start, bad.start() - _AROUND) : min(end if end >= 0 else len(text), bad.end() + _AROUND)]
    fixed = ftfy.fix_encoding(part)
    if fixed == part and _CONTROL.search(part):  # only a control character
        return []
    return [f"mojibake: {part!r}" + (f" should read {fixed!r}" if fixed != part else "")]


_SCRIPTS = (
    *("Latin", "Cyrillic", "Greek", "Han", "Hiragana", "Katakana", "Hangul", "Arabic", "Hebrew", "Devanagari"),
    *("Bengali", "Tamil", "Telugu", "Kannada", "Malayalam", "Gujarati", "Gurmukhi", "Sinhala", "Thai", "Lao"),
    *("Khmer", "Myanmar", "Tibetan", "Georgian", "Armenian", "Ethiopic", "Mongolian"),
)
_JAPANESE = frozenset({"Hiragana", "Katakana"})
_LETTERS = 20
"""A row with fewer letters has no main script."""
_ASCII_LETTERS = re.compile(rf"(?:[A-Za-z][^A-Za-z]*+){{{_LETTERS}}}")


@cache
def _script(character: str) -> str:
    """The script of a letter; "" for any other character."""
    return next((name for name, pattern in _script_patterns().items() if pattern.match(character)), "")


@cache
def _script_patterns() -> dict[str, Any]:
    import regex

    scripts = {name: regex.compile(rf"(?=\p{{L}})\p{{Script={name}}}") for name in _SCRIPTS}
    return scripts | {"another": regex.compile(r"\p{L}")}


def main_script(text: str) -> tuple[str, float]:
    """The script of more than half of the letters, and its share; "" where there is none."""
    if text.isascii():
        return ("Latin", 1.0) if _ASCII_LETTERS.search(text) else ("", 0.0)
    counts: Counter[str] = Counter()
    for character, count in Counter(text).items():
        counts[_script(character)] += count
    del counts[""]
    letters = counts.total()
    if counts["Han"] and any(counts[kana] for kana in _JAPANESE):
        counts["Japanese"] = sum(counts.pop(script, 0) for script in ("Han", *_JAPANESE))
    [(script, count)] = counts.most_common(1) or [("", 0)]
    return (script, count / letters) if letters >= _LETTERS and count * 2 > letters else ("", 0.0)


class Language:
    """Collects the main script of every row."""

    def __init__(self, settings: ChecksSection) -> None:
        self._shown = settings.max_examples
        self._seen = Seen()
        self._names: dict[str, int] = {"": 0}
        self._scripts = array("B")
        self._percent = array("B")

    def see(self, row: Checked) -> None:
        script, share = main_script(row.text)
        self._seen.add(row)
        self._scripts.append(self._names.setdefault(script, len(self._names)))
        self._percent.append(round(100 * share))

    def join(self, later: Language) -> None:
        names = [self._names.setdefault(name, len(self._names)) for name in later._names]
        self._seen.extend(later._seen)
        self._scripts.extend(names[number] for number in later._scripts)
        self._percent.extend(later._percent)

    def found(self) -> Finding:
        names = list(self._names)
        counts = Counter({names[number]: count for number, count in Counter(self._scripts).items() if number})
        if not counts:
            return Finding(details={"scripts": {}})
        main = counts.most_common(1)[0][0]
        others = [number for number, script in enumerate(self._scripts) if script and names[script] != main]
        return Finding(
            rows=tuple(self._seen.index[number] for number in others),
            examples=tuple(self._example(number, main) for number in others[: self._shown]),
            details={"main": main, "scripts": dict(counts.most_common())},
        )

    def _example(self, number: int, main: str) -> dict[str, Any]:
        script = list(self._names)[self._scripts[number]]
        message = f"{self._percent[number]} % of the letters are {script}; the data is mainly {main}"
        return self._seen.place(number) | {"message": message}


_AS_A_MODEL = re.compile(
    r"\b(?:as|(?:I am|I[’']m)(?: just| only)?) an? (?:(?:artificial intelligence|AI|large|text-based|machine learning|"
    r"computer)[ -]?)*(?:(?:language|AI) model|(?:AI|artificial intelligence)(?: (?:assistant|chatbot|system)s?)?"
    r"(?=[,;.:]| (?:and|so|I|that|without|developed|created|trained|programmed|designed|my)\b))",
    re.IGNORECASE,
)
_REFUSED = (
    r"(?:access|answer|assist|book|browse|complete|comply|condone|create|determine|diagnose|discuss|display|engage|"
    r"execute|fulfil+|generate|help|offer|order|participate|perform|predict|process|produce|promote|provide|recommend|"
    r"respond|retrieve|suggest|support|translate|view|do (?:that|this|so))\b"
)
_PLAINLY_REFUSED = (
    r"(?:assist|comply|fulfil+|help (?:you )?with (?:that|this)|engage in|condone|promote|participate in|"
    r"provide (?:you with )?(?:any |an? |the )?(?:[\w-]+ )?(?:information|instructions|guidance|advice|assistance)|"
    r"answer (?:that|this)|generate (?:content|that|this)|create (?:content|that|this))"
)
_UNABLE = (
    r"(?:can[’']?t|cannot|can not|won[’']t|will not|"
    r"(?:am |[’']m )?(?:currently )?(?:unable|not able|not allowed|not programmed) to)(?: be able to)?"
)
_LACK = (
    r"(?:currently )?(?:do not|don[’']t)(?: currently)? have (?:the |any )?(?:ability|capability|capabilities|access)\b"
)
_REFUSAL = re.compile(
    rf"\bsorry\b[^.!?\n]{{0,60}}?\b(?:I|we) ?(?:{_UNABLE} {_REFUSED}|{_LACK})"
    rf"|(?:^|[.!?\n]\s*|\b(?:but|unfortunately|however),? )I ?{_UNABLE} {_PLAINLY_REFUSED}"
    r"|\bI (?:must|have to) (?:respectfully )?(?:decline|refuse)\b"
    r"|\b(?:goes|is|be) against (?:my|our|OpenAI[’']s|Anthropic[’']s) (?:\w+ )?(?:programming|guideline|polic)",
    re.IGNORECASE,
)
_EXCERPT = 80
_OPENING = 400
"""A refusal is at the beginning of an answer; further on it may be a line in a story."""


_MODEL_PHRASES = ("an ai", "language model", "artificial intelligence")
_REFUSAL_PHRASES = (
    *("sorry", "can't", "can’t", "cannot", "can not", "unable to", "not able", "not allowed", "not programmed"),
    *("won't", "won’t", "will not", "decline", "refuse", "against "),
)
"""Every text that a pattern matches contains one of these: most texts need no more than this look."""


def refusal(row: Checked) -> str | None:
    """An answer that says it comes from a model, or refuses, as other models were trained to."""
    example = row.example
    if example.label is False:  # a bad answer on purpose
        return None
    if example.text is not None:
        return _quoted(example.text, _as_a_model(example.text))
    for turn in (*example.messages, *example.chosen):
        text = content(turn) if turn["role"] == "assistant" else ""
        match = _as_a_model(text) or _refuses(text[:_OPENING])
        if match:
            return _quoted(text, match)
    return None


def _as_a_model(text: str) -> re.Match[str] | None:
    lowered = text.lower()
    return _AS_A_MODEL.search(text) if any(phrase in lowered for phrase in _MODEL_PHRASES) else None


def _refuses(opening: str) -> re.Match[str] | None:
    lowered = opening.lower()
    return _REFUSAL.search(opening) if any(phrase in lowered for phrase in _REFUSAL_PHRASES) else None


def _quoted(text: str, match: re.Match[str] | None) -> str | None:
    return f"“{excerpt(text[match.start() :], _EXCERPT)}”" if match else None
