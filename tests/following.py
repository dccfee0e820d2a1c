"""A tutorial of docs/ is followed word for word: its files are written, its commands run, what it shows is compared.

A block of `bash` is commands, one of `text` after it lines that they print, in this order (of numbers only the place is
compared), and any other a file, whose name ends the paragraph before it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal, NamedTuple

from tests.scaffolding.conftest import Environment

NAMED = r"`([\w./-]+\.(?:py|yaml))`:\s*\Z"
NUMBER = r"-?[0-9a-f]{32}|-?[0-9a-f]{6}(?=\.json)|[-+]?\d[\d,.]*(?:e[+-]?\d+)?"


class Step(NamedTuple):
    """A file to write, a command to run, or what the commands of the block before show."""

    kind: Literal["file", "command", "shown"]
    text: str
    file: str = ""


def steps(page: Path) -> Iterator[Step]:
    parts = re.split(r"(?ms)^```(\w+)\n(.*?)^```\n", page.read_text())
    for before, language, text in zip(parts[::3], parts[1::3], parts[2::3], strict=False):
        if language == "bash":
            yield from (Step("command", command) for command in commands(text))
        elif language == "text":
            yield Step("shown", text)
        else:
            named = re.search(NAMED, before)
            assert named, f"{page.name} does not say which file this is: {text[:60]}"
            yield Step("file", text, named[1])


def commands(block: str) -> Iterator[str]:
    r"""One command a line, unless it ends with `\`; one that begins a server is one with the rest of its block."""
    lines = block.rstrip("\n").split("\n")
    while lines:
        taken = [lines.pop(0)]
        while lines and (taken[-1].endswith("\\") or any(line.endswith(" &") for line in taken)):
            taken.append(lines.pop(0))
        yield "\n".join(taken)


def follow(
    page: Path, folder: Path, environment: Environment, change: Callable[[str], str] = str, *, may_fail: str = "\0"
) -> dict[str, tuple[int, str]]:
    """Do in a folder what the page says; every command with its exit code and what it printed.

    `change` makes another command of one (or none, ""); one that contains `may_fail` may do so. The user is Ann.
    """
    said: dict[str, tuple[int, str]] = {}
    printed = ""
    before = ""
    for kind, text, file in steps(page):
        if kind == "file":
            assert (folder / file).parent.is_dir(), file
            (folder / file).write_text(text)
        elif kind == "shown":
            line = missing(text, printed)
            assert not line, f"{page.name} shows “{line}”, which was not printed:\n{printed}"
        elif command := change(text):
            script = f"exec 2>&1\n{command}"
            done = environment.run("bash", "-c", script, cwd=folder, timeout=3000, LOGNAME="ann")
            said[text] = (done.returncode, done.stdout)
            assert done.returncode == 0 or may_fail in text, f"{text}\n{done.stdout}"
            printed = done.stdout if before != "command" else printed + done.stdout
        before = kind
    return said


def missing(shown: str, printed: str) -> str:
    """The first line that is shown, but not printed after those before it; "..." is any lines, or the end of a line."""
    rest = iter([plain(line) for line in printed.splitlines()])
    for line in shown.splitlines():
        wanted, open_end = plain(line.removesuffix("...")), line.endswith("...")
        if not any(found == wanted or (open_end and found.startswith(wanted)) for found in (rest if wanted else [""])):
            return line
    return ""


def plain(line: str) -> str:
    """A line without what differs between two runs: numbers, ids, and how wide columns are."""
    return re.sub(r"([━─\s])\1*", r"\1", re.sub(NUMBER, "#", line)).strip()
