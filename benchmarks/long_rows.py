"""How the time to prepare a row grows with its turns: twice the turns should take about twice the time.

    python benchmarks/long_rows.py                               ChatML
    python benchmarks/long_rows.py qwen3.jinja llama3_2.jinja    other chat templates

`one render` is the template alone; its time is quadratic in the turns if it loops over all of them for each.
On a shared machine, run it twice.
"""

from __future__ import annotations

import argparse
import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from mlflow_ft.engine.tokens.masking import Encoder, MaskError
from mlflow_ft.engine.tokens.render import apply
from mlflow_ft.rows import Example
from mlflow_ft.testing import CHATML, make_tiny_tokenizer

Turns = Sequence[dict[str, Any]]


def rounds(count: int) -> Turns:
    """Alternating questions and answers."""
    return [{"role": role, "content": f"{role} {n}"} for n in range(count // 2) for role in ("user", "assistant")]


def steps(count: int) -> Turns:
    """One question, then calls and their results until the answer."""
    turns: list[dict[str, Any]] = [{"role": "user", "content": "go"}]
    for n in range(count):
        function = {"name": "look", "arguments": {"at": f"door {n}", "times": n}}
        turns += [
            {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": function}]},
            {"role": "tool", "content": f"door {n} is red"},
        ]
    return [*turns, {"role": "assistant", "content": "done"}]


def seconds(work: Callable[[], Any]) -> tuple[float, Any]:
    """How long a call takes, and its result."""
    start = time.perf_counter()
    result = work()
    return time.perf_counter() - start, result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("templates", nargs="*", type=Path, help="Jinja files; default: ChatML")
    templates = {file.stem: file.read_text(encoding="utf-8") for file in parser.parse_args().templates}
    print(f"{'template':<20}{'row':<14}{'proved':>10}{'x':>7}{'one render':>13}{'x':>7}")
    for name, template in (templates or {"chatml": CHATML}).items():
        for kind, make, count in (("turns", rounds, 1500), ("steps", steps, 200)):
            before: list[float] = []
            for size in (count, 2 * count):
                tokenizer, turns = make_tiny_tokenizer(chat_template=template), make(size)
                ends = sorted(set(re.findall(r"<\|\w+\|>", template)))
                tokenizer.add_special_tokens({"additional_special_tokens": ends})
                encoder = Encoder(tokenizer, max_length=10**9)
                proved, [row] = seconds(lambda: encoder.tokenise([Example(messages=tuple(turns))]))  # noqa: B023  # called at once
                if isinstance(row, MaskError):
                    print(f"{name:<20}{size:>6} {kind:<7}  {row}")
                    break
                written, _ = seconds(lambda: apply(encoder.tokenizer, turns, None))  # noqa: B023  # called at once
                ratios = [now / then for now, then in zip((proved, written), before, strict=False)]
                shown = [f"{ratio:.1f}" for ratio in ratios] or ["", ""]
                print(f"{name:<20}{size:>6} {kind:<7}{proved:>8.2f} s{shown[0]:>7}{written:>11.2f} s{shown[1]:>7}")
                before = [proved, written]


if __name__ == "__main__":
    main()
