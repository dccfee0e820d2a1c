"""docs/importing.md: what becomes of the keys of other tools, from the tables that the import reads."""

from __future__ import annotations

from collections.abc import Iterator

from mlflow_ft.docs.tables import NOTE, table_row
from mlflow_ft.operations.importing import table, tools
from mlflow_ft.operations.importing.table import Entry, Table

ABOUT = """`mlflow-ft import` turns a configuration of another tool into one of ours.

    mlflow-ft import axolotl.yml --out config.yaml
    mlflow-ft import llamafactory.yaml --dataset-info data/dataset_info.json --out config.yaml
    mlflow-ft import train.sh --json
    mlflow-ft import -- trl sft --model_name_or_path MODEL --dataset_name DATA --use_peft
    mlflow-ft train --config config.yaml

It reads YAML and JSON, and shell scripts with the tool's command (`trl dpo`, `llamafactory-cli train`, `axolotl
train`, `tune run`, `python unsloth-cli.py`), whose options override the file that it names. The tool is recognised by
its keys or its command; `--from NAME` says it. Where a file does not say the method (TRL), `--method NAME` does.

Every key has one verdict:

| verdict | meaning |
|---|---|
| mapped | our setting means the same |
| approximated | our setting comes close; the note says what differs |
| not needed | nothing has to be set: it is off, or changes nothing that is learned |
| refused | there is no counterpart; the note says what is nearest |
| unknown | not a key of the tool: a mistake (with a suggestion), or a newer version |

The YAML goes to stdout or to `--out`, the verdicts to stderr; `--json` prints them as one object. The exit code is 1 if
a key was refused or is unknown: the configuration is written nevertheless, and lists these keys at its head. Where the
tool's own default differs from ours, it is written out, with a comment.

What differs in general:

- Only what the assistant says is learned, with the end of its turn. Tools that learn prompts too, or the line break
  after a turn, have slightly other losses.
- The tokenizer's chat template writes the turns. Where a tool has a template of its own that tokenizers do not bring
  (Alpaca, ChatML on a base model ...), it is written out as `data.chat_template`.
- Some rows are always held out. Where the tool holds out none, it is a single row: name your own with `data.eval_path`.
- Columns and roles: entries of `dataset_info.json` and `datasets:` become `data.path`, `data.format` and
  `data.columns`, which all sources share; where they differ, the later is refused.

`python benchmarks/imported.py` trains one configuration with LLaMA-Factory and, imported, with mlflow-ft, and compares
the two loss curves. Where a template ends turns with a line break (`smollm2`, `chatml`, `qwen`), LLaMA-Factory learns
it, and mlflow-ft does not: with answers of 17 tokens its losses read 6 % lower for the same model. Over the same tokens
the curves of SmolLM2 agreed to 0.3 % at the steps that were looked at."""


def importing_page() -> str:
    """Every table, by tool."""
    parts = ["# Importing", NOTE, ABOUT]
    for name in (*tools.TOOLS, "transformers"):
        parts += _section(table.load(name), own=set(table.load("transformers").entries) if name in INCLUDING else set())
    return "\n\n".join(parts) + "\n"


INCLUDING = ("llamafactory", "trl")
"""Tools whose tables include that of transformers."""


def _section(known: Table, *, own: set[str]) -> Iterator[str]:
    yield f"## {known.title}"
    included = " and those of [transformers](#transformers)" if own else ""
    yield f"Version {known.version}. These keys{included}."
    entries = {key: entry for key, entry in known.entries.items() if key not in own}
    rows = [table_row(_code(key), *_cells(known, key, entry)) for key, entry in entries.items() if _has_row(entry)]
    yield "\n".join([table_row("key", "here", "its default"), "|---|---|---|", *rows])
    lines = []
    for kind in ("refused", "approximated", "not needed"):
        reasons: dict[str, list[str]] = {}
        for key, entry in entries.items():
            if entry.kind == kind:
                reasons.setdefault(entry.about, []).append(_code(key))
        lines += [f"- {kind}: {why}: {', '.join(keys)}" for why, keys in reasons.items()]
    yield "\n".join(lines)


def _code(key: str) -> str:
    """A key of another tool; what stands in backquotes is a setting of ours."""
    return f"<code>{key}</code>"


def _has_row(entry: Entry) -> bool:
    return entry.kind in ("mapped", "rule", "option")


def _cells(known: Table, key: str, entry: Entry) -> tuple[str, str]:
    default = known.default(key, "")
    shown = "" if default is None else f"`{default}`"
    if entry.kind == "mapped":
        return f"`{entry.to}`" + (f"; {entry.about}" if entry.about else ""), shown
    if entry.kind == "option":
        return f"belongs to {_code(entry.of)}", shown
    return f"read together with others: {entry.rule.replace('_', ' ')}", shown
