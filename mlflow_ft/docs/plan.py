"""The page of `mlflow-ft plan`: how to ask it, and its rules, made from their records."""

from __future__ import annotations

from mlflow_ft import plugins
from mlflow_ft.docs.tables import NOTE, table_row
from mlflow_ft.records import PlanRule
from mlflow_ft.registry import Registry
from mlflow_ft.values.planning import AIMS, TRAINED_ON, USUAL_AIM

ASKING = """    mlflow-ft plan --data rows.jsonl --model MODEL --out plan.yaml
    mlflow run . -e plan -P data=/path/to/rows.jsonl -P model=MODEL

It reads the data (how many rows of which kind, how long), the model's config (no weights) and the hardware, and prints
the method with its reasons, memory and time, every setting with its reason, the alternatives with what they cost, and
the command that trains. `--out` writes the configuration, for `mlflow-ft train METHOD --config plan.yaml`. Settings
that you give (`--max_length 2048`, `--config FILE`) are kept. `--json` prints all of it for programs.

Describe what you do not have yet:

    mlflow-ft plan --rows 20k --tokens 8M --kind preference --model-size 7B --gpus 2 --gpu-memory 24

- `--rows` and `--tokens` count the whole data; `--kind` is conversation, text, preference, unpaired or prompt.
- `--model-size` plans for a typical model of that size. Name the model when you can: sizes of one name differ.
- `--gpus` and `--gpu-memory` (GB each, as cards are sold) describe other hardware than this machine's; `--gpus 0` is
  this machine's CPU.
- `--aim` says what the training is for; when not given, the kind of the rows does."""
DECIDING = """Each rule is a record with its source, and is asked in the order below. The first rule's preference comes
first: method, then what trains, then how it is spread over processes. The plan takes the first combination that fits,
as the estimate of memory says, with the largest batch that fits; the rest of the rows per step is accumulated. So a
rule is overruled by memory, and never the reverse. If nothing fits, the plan says what would (larger or more GPUs,
shorter rows, a smaller model), and the exit code is 1."""
LIMITS = """## What the numbers are worth

- Memory is estimated from the model's config on torch's meta device. 7 % of a GPU are left to CUDA and fragmentation
  (20 % of the machine's memory on a CPU).
- A GPU that is only described is taken to compute in bfloat16, with recomputed activations.
- Time is floating-point operations over 35 % of the data sheet's peak. It is good for "hours or weeks", not for a
  schedule; a typical GPU of that memory is assumed unless the one here is known.
- Lengths are measured on 2,000 random rows, with the model's tokenizer where it can read them.
- The rules are where to start, not what is best for your data: compare two or three of the alternatives on the held-out
  rows.

## Rules of your own

A plugin adds rules with the hook [`register_plan_rules`](hooks.md#register_plan_rules). One with a `priority` above 0
is asked before the built-in rules. `mlflow-ft show plan_rules` lists all, with the plugins that they come from."""


def plan_page() -> str:
    """How to ask for a plan, what it decides, and every built-in rule."""
    registry = Registry(plugins.load({}))
    rules = [rule for rule in registry.plan_rules if registry.plan_rules.provider(rule.name).startswith("builtin.")]
    parts = [
        "# Which method: mlflow-ft plan",
        NOTE,
        ASKING,
        "\n".join([table_row("aim", "what for", "rows"), "|---|---|---|", *_aims()]),
        "## How it decides",
        DECIDING,
        "\n".join([table_row("rule", "what it says", "source"), "|---|---|---|", *map(_row, rules)]),
        LIMITS,
    ]
    return "\n\n".join(parts) + "\n"


def _aims() -> list[str]:
    return [
        table_row(
            f"`{aim}`",
            words,
            ", ".join(f"{kind} (its default)" if USUAL_AIM[kind] == aim else kind for kind in TRAINED_ON[aim]),
        )
        for aim, words in AIMS.items()
    ]


def _row(rule: PlanRule) -> str:
    links = ", ".join(f"[{_name(address)}]({address})" for address in rule.source.split(", "))
    return table_row(f"`{rule.name}`", rule.summary, links)


def _name(address: str) -> str:
    """An address in short: `arXiv:2305.14314`, `huggingface.co`."""
    host, _, path = address.removeprefix("https://").partition("/")
    return f"arXiv:{path.removeprefix('abs/')}" if host == "arxiv.org" else host
