"""How long a batch of answers takes with rows that leave when they end, beside transformers' own loop.

    python benchmarks/generate.py
    python benchmarks/generate.py --data rows.jsonl --prompts 4 --answers 8 --new 128

The same prompts, batch, settings and random numbers in turns; answers are sampled, as a training with rewards does, and
greedy, as an evaluation does. Compare only ratios.
"""

from __future__ import annotations

import argparse
import statistics
import time
from contextlib import nullcontext
from typing import Any

from mlflow_ft import plugins
from mlflow_ft.cli.asked import asked
from mlflow_ft.preparing import one_pass
from mlflow_ft.progress import Progress
from mlflow_ft.registry import Registry


def main() -> None:
    """Generate, and print what was measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--data", default="demo")
    parser.add_argument("--prompts", type=int, default=2)
    parser.add_argument("--answers", type=int, default=8, help="to each prompt, in one batch")
    parser.add_argument("--new", type=int, default=96, help="tokens of an answer, at most")
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    from mlflow_ft.engine.models import generation

    model, batch = prepared(given)
    print(f"{len(batch['input_ids'])} rows, at most {given.new} new tokens each")
    for name, settings in {"sampled": generation.SAMPLED, "greedy": generation.GREEDY}.items():
        compare(name, model, batch, given, settings)


def compare(name: str, model: Any, batch: dict[str, Any], given: argparse.Namespace, settings: Any) -> None:
    """Print a line about both ways, after one run that is not measured."""
    generate(model, batch, given.new, settings, early=False)
    sides: dict[bool, list[tuple[float, Any]]] = {False: [], True: []}
    for _ in range(given.rounds):
        for early, runs in sides.items():
            runs.append(generate(model, batch, given.new, settings, early=early))
    plain, leaving = (statistics.median(seconds for seconds, _ in runs) for runs in sides.values())
    tokens = sides[False][0][1]
    same = all((other == tokens).all() for _, other in sides[True])
    new = tokens[:, batch["input_ids"].shape[1] :]
    filled = (new != model.generation_config.pad_token_id).float().mean()
    print(
        f"{name}: {plain:.2f} s, and {leaving:.2f} s with rows that leave: {plain / leaving:.2f} times as fast, "
        f"{'the same' if same else 'other'} tokens; an answer has {filled:.0%} of the longest one's on average"
    )


def generate(model: Any, batch: dict[str, Any], new: int, settings: Any, *, early: bool) -> tuple[float, Any]:
    """The seconds that it takes, and the tokens."""
    import torch

    from mlflow_ft.engine.models import early_leave

    torch.manual_seed(0)
    with torch.no_grad(), early_leave.leaving_early(model) if early else nullcontext():
        began = time.perf_counter()
        tokens = model.generate(**batch, max_new_tokens=new, use_cache=True, **settings)
        return time.perf_counter() - began, tokens


def prepared(given: argparse.Namespace) -> tuple[Any, dict[str, Any]]:
    """The model, and a batch of the first prompts, each as often as it is answered."""
    from mlflow_ft.engine import hub
    from mlflow_ft.engine.models import left_padding, loading
    from mlflow_ft.engine.tokens import render, tokenizers

    loaded = plugins.load({"MLFLOW_FT_PLUGINS": ""})
    config = asked([f"--data={given.data}", f"--model={given.model}"], loaded, method="lora")
    progress = Progress(quiet=True)
    base = hub.find(config.model, progress)
    tokenizer = tokenizers.load(config, base)
    paths, _ = one_pass.sources.paths(config.data)
    [source] = one_pass.open_sources(paths, config.data, plugins=loaded, registry=Registry(loaded))
    examples = [converted[1] for converted in source.examples(config.data) if isinstance(converted, tuple)]
    ids = [render.prompt_ids(tokenizer, example) for example in examples[: given.prompts]]
    model = loading.load_base(config, base)
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    rows = [row for row in ids for _ in range(given.answers)]
    return model, left_padding.padded(rows, pad_token_id=tokenizer.pad_token_id)


if __name__ == "__main__":
    main()
