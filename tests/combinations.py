"""Every objective with every kind of adapter and quantisation: trained for two steps, saved, reloaded and compared.

python -m tests.combinations        tries all of them and writes docs/combinations.md
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from mlflow_ft import plugins
from mlflow_ft.engine.judging import parity
from mlflow_ft.engine.judging.reference import Loaded
from mlflow_ft.engine.merging import fold
from mlflow_ft.engine.models import loading
from mlflow_ft.errors import ConfigError
from mlflow_ft.rows import Example
from mlflow_ft.stages import start
from mlflow_ft.testing import WORDS, make_rows, make_tiny_model
from tests.engine.conftest import lay

PAGE = Path(__file__).parents[1] / "docs" / "combinations.md"
OBJECTIVES = ("sft", "dpo", "cpo", "simpo", "orpo", "kto", "reward", "grpo", "rloo", "ppo")
ADAPTERS = (
    *("none", "lora", "dora", "adalora", "loha", "oft", "vera", "ia3"),
    *("prompt", "prefix", "ptuning", "adaption-prompt"),
)
QUANTISED = ("none", "nf4", "int8")
TITLES = {"none": "The base in 16 or 32 bits", "nf4": "The base in 4 bits (nf4)", "int8": "The base in 8 bits (int8)"}
SAME = 1e-6
"""Largest KL divergence (nats) of a reloaded model from the one in memory."""
NEAR = {"none": 1e-6, "nf4": 1e-3, "int8": 2e-2}
"""The same of a merged one, whose base is dequantised."""
INTRO = """# Combinations

<!-- Made by `python -m tests.combinations`, which trains each for two steps; tests hold the page to what they find. -->

Every objective was trained with each of these adapters and kinds of base on a small model, saved, and loaded back: the
loaded model gives the same logits as the one in memory. *merges* means that the merged model does too. A number is the
reason why a combination is refused, before anything is loaded. The other [adapters](methods.md#adapters) are tried with
sft only. TRL's and PEFT's own limits may change with their versions."""


def examples(objective: str) -> list[Example]:
    """Rows of the kind that the objective learns from."""
    rows = []
    for number, row in enumerate(make_rows(16)):
        asked, answered = row["messages"]
        asked = asked | {"content": f"{asked['content']} {number}"}
        worse = {"role": "assistant", "content": WORDS[number % len(WORDS)]}
        if objective == "sft":
            rows.append(Example(messages=(asked, answered)))
        elif objective == "kto":
            rows.append(Example(messages=(asked, worse if number % 2 else answered), label=not number % 2))
        elif objective in ("grpo", "rloo", "ppo"):
            rows.append(Example(messages=(asked,)))
        else:
            rows.append(Example(messages=(asked,), chosen=(answered,), rejected=(worse,)))
    return rows


def length(completions: list[list[Mapping[str, Any]]], **_: Any) -> list[float]:
    """A reward that differs from answer to answer."""
    return [len(turns[-1]["content"]) / 100 for turns in completions]


@cache
def _loaded() -> plugins.Plugins:
    return plugins.load({"MLFLOW_FT_PLUGINS": "ppo"})


def outcome(objective: str, adapter: str, quantise: str, *, model: Path, folder: Path) -> str:
    """`merges`, `works`, or why it is refused; anything else is an error."""
    settings: dict[str, Any] = {"adapter.kind": adapter, "model.quantize": quantise, "learning_rate": 1e-3}
    settings |= {"max_steps": 2, "eval_steps": 2, "evaluation.samples": 0, "package.dtype": "float32"}
    if objective in ("grpo", "rloo", "ppo"):
        settings |= {"reward_funcs": "tests.combinations.length", "max_completion_length": 6, "num_generations": 2}
    one = lay(folder, objective, model=model, rows=examples(objective), loaded=_loaded(), **settings)
    try:
        start.check_names(one.job.config, one.job.registry)
    except ConfigError as error:
        return error.message.partition(": ")[2] or error.message
    trained = one.train()
    reference = trained.folder / "reference.safetensors"
    again = distances(loading.load_trained(one.job, one.data, trained), reference)
    assert again["kl_max"] <= SAME, f"the model that was loaded is not the one that was trained: {again}"
    if trained.adapter is None or not one.job.registry.adapters[adapter].merges:
        return "works"
    fold.merge(one.job, trained, folder / "merged")
    merged = loading.load_saved(one.job.config, one.base, folder / "merged")
    found = distances(merged, reference)
    assert found["kl_mean"] <= NEAR[quantise], f"the merged model is not the one that was trained: {found}"
    return "merges"


def distances(module: Any, reference: Path) -> Mapping[str, float]:
    """How far a model is from the one in memory, by its logits alone: answers take most of the time."""
    return parity.measure(Loaded(module), reference, answers=False).numbers


def every() -> Iterator[tuple[str, str, str]]:
    """Every combination: objective, adapter, quantisation."""
    return ((o, a, q) for q in QUANTISED for a in ADAPTERS for o in OBJECTIVES)


def page(found: Mapping[tuple[str, str, str], str]) -> str:
    """The tables, and the reasons below them."""
    reasons: dict[str, int] = {}
    parts = [INTRO]
    for quantise in QUANTISED:
        lines = [f"| | {' | '.join(OBJECTIVES)} |", "|---" * (len(OBJECTIVES) + 1) + "|"]
        for adapter in ADAPTERS:
            cells = [found[objective, adapter, quantise] for objective in OBJECTIVES]
            told = [
                cell if cell in ("merges", "works") else str(reasons.setdefault(cell, len(reasons) + 1))
                for cell in cells
            ]
            lines.append(f"| `{adapter}` | {' | '.join(told)} |")
        parts += [f"## {TITLES[quantise]}", "\n".join(lines)]
    parts += ["## Reasons", "\n".join(f"{number}. {reason}" for reason, number in reasons.items())]
    return "\n\n".join(parts) + "\n"


def read(text: str) -> dict[tuple[str, str, str], str]:
    """What a page says."""
    reasons = dict(re.findall(r"(?m)^(\d+)\. (.+)$", text))
    found = {}
    for quantise, title in TITLES.items():
        section = text.partition(f"## {title}\n")[2].partition("\n## ")[0]
        for line in re.findall(r"(?m)^\| `.+$", section):
            adapter, *cells = (cell.strip().strip("`") for cell in line.strip("|").split("|"))
            for objective, cell in zip(OBJECTIVES, cells, strict=True):
                found[objective, adapter, quantise] = reasons.get(cell, cell)
    return found


def main() -> None:
    """Try all of them, and write the page."""
    found = {}
    with tempfile.TemporaryDirectory() as name:
        model = make_tiny_model(Path(name) / "tiny")
        for number, (objective, adapter, quantise) in enumerate(every()):
            try:
                told = outcome(objective, adapter, quantise, model=model, folder=Path(name) / str(number))
            except Exception as error:  # a table of what fails is what is wanted
                told = f"FAILED {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
            print(objective, adapter, quantise, told, flush=True)  # noqa: T201  # for who waits for it
            found[objective, adapter, quantise] = told
    PAGE.write_text(page(found))


if __name__ == "__main__":
    main()
