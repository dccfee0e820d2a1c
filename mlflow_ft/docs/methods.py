"""The page of methods, made from their records: which to take, how they compare, and each in detail."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from mlflow_ft import plugins
from mlflow_ft.docs.tables import NOTE, table_row
from mlflow_ft.records import Adapter, Trainer
from mlflow_ft.registry import Catalogue, Registry

LISTED = (
    "formats",
    "checks",
    "evaluators",
    "rewards",
    "packagers",
    "exporters",
    "gates",
    "launchers",
    "engines",
    "serving_engines",
    "guards",
)
"""Kinds listed by name and summary only; methods and adapters have more."""
DECISIONS = """[`mlflow-ft plan`](plan.md) answers for your data and hardware. In general: what do you have?

- **Texts** without questions (a domain's documents): `sft` with `objective.packing`, which is continued pre-training
  ([packing](training.md)).
- **Conversations, or questions with answers**, that are good enough to imitate:
    - one GPU that holds the model in 16 bits, or a small model: `lora`, which is merged and served like any model;
    - the model only fits in 4 bits: `qlora`;
    - LoRA learns too little, and memory allows: a higher `adapter.r`, then `dora`, then `full`;
    - Axolotl or Unsloth is to train, with all else as for lora: `axolotl-lora`, `axolotl-qlora`, `unsloth-lora`,
      `unsloth-qlora` (`plugins/mlflow-ft-axolotl`, `plugins/mlflow-ft-unsloth`);
    - many tasks on one base, each a few kilobytes: `ia3`; or, if no weights may change, `prompt`,
      `ptuning` and `prefix`, which are never merged, and `adapter`.
- **Pairs** of a better and a worse answer:
    - the model is already instruction-tuned: `dpo`; if not, first `sft` on the better answers (`align` does both);
    - there is no memory for a second model: `simpo` or `cpo`; the model is not instruction-tuned: `orpo`;
    - the preferences should judge new answers: `reward`, then `ppo` (`rlhf` does both).
- **Thumbs up or down** for single answers: `kto`.
- **Prompts and a way to judge answers**, by a function (a test, a checker, a format) or a reward model:
    - start with `grpo`; `rloo` is simpler, and as good if each answer is judged as a whole;
    - `ppo` if rewards are noisy and a learned value helps; it needs the most care and the most memory.

- **A mixture of experts** (Qwen3-MoE, Mixtral, gpt-oss ...) with any of these: what trains, and how to adapt its
  experts, is in [mixtures of experts](training.md#mixtures-of-experts).

In any case, look at the data first (`mlflow-ft data check`), train a few steps, and read the sampled answers."""
AXES = (
    "A method is an objective with defaults: `-e dpo -P adapter.kind=lora -P model.quantize=nf4` is QLoRA DPO. A test "
    "tries which combinations work: [combinations](combinations.md)."
)


def methods_page() -> str:
    """Which method to take, all of them side by side, each in detail, and everything else that has a name."""
    registry = Registry(plugins.load({}))
    trainers, adapters = list(ours(registry.trainers)), list(own(registry.adapters))
    parts = [
        "# Methods",
        NOTE,
        "What is built in. Plugins add to each of these lists; `mlflow-ft show KIND` shows them all.",
        "## Which one",
        DECISIONS,
        "## Side by side",
        compared(trainers),
        AXES,
    ]
    for trainer in trainers:
        parts += list(method(trainer))
    parts += ["## Adapters", adapter_table(adapters)]
    for kind in LISTED:
        records = list(own(getattr(registry, kind)))
        heading = kind.replace("_", " ").capitalize()
        parts += [f"## {heading}", "\n".join(f"- `{record.name}`: {record.summary}" for record in records)]
    return "\n\n".join(parts) + "\n"


def compared(trainers: list[Trainer]) -> str:
    """One line per method: adapter, data, rate, memory."""
    head = [table_row("method", "trains", "from", "learning rate", "memory"), "|---|---|---|---|---|"]
    rows = []
    for trainer in trainers:
        adapter = trainer.defaults.get("adapter.kind", "none")
        base = f", base in {trainer.defaults['model.quantize']}" if "model.quantize" in trainer.defaults else ""
        weights = "every weight" if adapter == "none" else f"`{adapter}`{base}"
        rate = str(trainer.defaults.get("training.learning_rate") or "")
        link = f"[`{trainer.name}`](#{trainer.name})"
        rows.append(table_row(link, weights, ", ".join(trainer.kinds), rate, trainer.memory))
    return "\n".join(head + rows)


def method(trainer: Trainer) -> Iterator[str]:
    """One method: what it does and is for, how to start it, its defaults, usual values."""
    yield f"### `{trainer.name}`"
    yield sentence(trainer.summary) + (f" [Paper]({trainer.paper})." if trainer.paper else "")
    if trainer.use_for:
        yield f"For: {trainer.use_for}."
    measured = f" Measured by {' or '.join(f'`{name}`' for name in trainer.scores)}." if trainer.scores else ""
    yield f"Needs {trainer.needs}." + (f" Memory: {trainer.memory}." if trainer.memory else "") + measured
    yield "\n".join(
        [
            f"    mlflow run . -e {trainer.name} -P model=MODEL -P data=/path/to/rows.jsonl",
            f"    mlflow-ft train {trainer.name} --model MODEL --data rows.jsonl",
        ]
    )
    yield table(trainer.defaults, trainer.ranges)


def table(defaults: Mapping[str, Any], ranges: Mapping[str, str]) -> str:
    """A method's own defaults, and usual values."""
    rows = [
        table_row(f"`{key}`", f"`{str(defaults[key]).lower()}`" if key in defaults else "", ranges.get(key, ""))
        for key in dict.fromkeys((*defaults, *ranges))
    ]
    return "\n".join([table_row("setting", "default", "usual"), "|---|---|---|", *rows])


def adapter_table(adapters: list[Adapter]) -> str:
    """One line per adapter: what it does, whether it merges, what it is for."""
    head = [table_row("adapter.kind", "what it does", "merges", "for"), "|---|---|---|---|"]
    rows = [
        table_row(
            f"[`{adapter.name}`]({adapter.paper})" if adapter.paper else f"`{adapter.name}`",
            adapter.summary,
            "yes" if adapter.merges else "no",
            adapter.use_for,
        )
        for adapter in adapters
    ]
    return "\n".join(head + rows)


def sentence(words: str) -> str:
    """A summary as a sentence."""
    return f"{words[0].upper()}{words[1:]}."


def own(catalogue: Catalogue[Any]) -> Iterator[Any]:
    """The records of the built-in plugins, whatever else is installed."""
    return (record for record in catalogue if catalogue.provider(record.name).startswith("builtin."))


def ours(catalogue: Catalogue[Any]) -> Iterator[Any]:
    """The same, and those of the plugins in this repository."""
    return (record for record in catalogue if catalogue.provider(record.name).startswith(("builtin.", "ppo")))
