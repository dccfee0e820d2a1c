"""The options of the plugin, `plugins.lm-eval.*`."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class LmEvalOptions:
    """Benchmarks of the lm-evaluation-harness."""

    tasks: list[str] | None = None
    """Tasks, groups or tags of the harness by name (`arc_easy`, `mmlu_*`), and YAML files of your own. None: no
    benchmark is run."""
    num_fewshot: int | None = None
    """Examples before each question; as each task says when not given."""
    limit: float | None = None
    """Questions of each task: a count, or a share below 1; all when not given."""
    batch_size: str = "auto"
    """A number, or auto: the largest that fits on a GPU, `evaluation.per_device_eval_batch_size` on a CPU."""
    apply_chat_template: bool = False
    """Ask through the chat template of the model."""
    fewshot_as_multiturn: bool = True
    """With the chat template, each of the examples is a turn of its own."""
    system_instruction: str | None = None
    """A system prompt for every question."""
    max_new_tokens: int | None = None
    """Longest generated answer, in tokens; as each task says when not given."""
    seed: int | None = None
    """Seed for the choice of examples; `run.seed` when not given."""
    samples: bool = True
    """Log every question with the answer and its values, as tables."""
