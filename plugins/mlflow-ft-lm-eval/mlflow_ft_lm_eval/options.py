"""The options of the plugin, `plugins.lm-eval.*`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


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
    batch_size: int | Literal["auto"] = "auto"
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

    def __post_init__(self) -> None:
        if self.batch_size != "auto" and self.batch_size < 1:
            raise ValueError(f"batch_size {self.batch_size} is neither a number above 0 nor auto")
        if self.limit is not None and (self.limit <= 0 or (self.limit > 1 and self.limit % 1)):
            raise ValueError(f"limit {self.limit:g} is neither a count nor a share below 1")
        if self.num_fewshot is not None and self.num_fewshot < 0:
            raise ValueError(f"num_fewshot {self.num_fewshot} is below 0")
        if self.max_new_tokens is not None and self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens {self.max_new_tokens} is below 1")
