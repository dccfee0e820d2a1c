"""Save reference outputs of the trained model while it is in memory, to compare every later form with.

For the first held-out rows: the logits at the learned tokens, the base model's divergence from them, and greedy
continuations of the first prompts. One safetensors file, at most about 50 MiB.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional

from mlflow_ft.engine.judging import greedy
from mlflow_ft.engine.loss import causal_model, keeps_last
from mlflow_ft.engine.models import loading
from mlflow_ft.errors import ModelError
from mlflow_ft.rows import Encoded
from mlflow_ft.values import Data, Form

ROWS = 8
FIRST = 1000
"""Held-out rows that are searched for them."""
POSITIONS = 96
"""At most so many learned tokens are compared: 96 x a vocabulary of 128,000 x 4 bytes are 47 MiB."""
PROMPTS = 4
"""Rows whose prompts are continued."""
LEAST = 1e-9
"""Least probability left for tokens that a program does not report: it rounds those that it reports."""
LENGTH = 24
"""Most tokens of a continuation."""
AT_ONCE_BYTES = 16 << 20
"""Bytes of the rows (float64) whose divergence is computed at the same time."""


class Loaded:
    """A model in memory as a `mlflow_ft.job.Form`."""

    def __init__(self, model: Any) -> None:
        self.model = model

    def logits(self, input_ids: Tensor, positions: Tensor) -> Tensor:
        return logits_at(self.model, input_ids, positions)

    def continued(self, input_ids: Tensor, length: int) -> list[int]:
        return continued(self.model, [input_ids], length)[0]

    def all_continued(self, prompts: Sequence[Tensor], length: int) -> list[list[int]]:
        return continued(self.model, prompts, length)


def keep(model: Any, data: Data, file: Path) -> None:
    """Write the reference of a model in memory."""
    rows = [row for row in itertools.islice(data.eval.encoded, FIRST) if len(row.input_ids) > 1][:ROWS]
    kept = of_rows(model, rows)
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file(kept, file)


def keep_answers(model: Any, tokenizer: Any, questions: Sequence[str], file: Path) -> None:
    """Write the reference of a model in memory: its own answers to questions, with its chat template.

    Raises:
        ModelError: the tokenizer has no chat template.
    """
    if not tokenizer.chat_template:
        raise ModelError(
            "the model has no chat template, so it cannot answer prompts", hint="add chat_template.jinja to its folder"
        )
    asked = [[{"role": "user", "content": question}] for question in questions]
    prompts = [
        tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False) for messages in asked
    ]
    answers = continued(model, [torch.tensor(prompt_ids) for prompt_ids in prompts], LENGTH)
    rows = [
        Encoded(input_ids=(*prompt_ids, *answer), labels=(*[-100] * len(prompt_ids), *answer))
        for prompt_ids, answer in zip(prompts, answers, strict=True)
    ]
    save_file(of_rows(model, rows), file)


def of_rows(model: Any, rows: list[Encoded]) -> dict[str, Tensor]:
    """The reference: `N.input_ids`, `N.positions`, `N.logits` of row N, `N.base_kl` (nats, one per position) if there
    is an adapter that can be switched off, and `N.continued` of the first rows.
    """
    kept: dict[str, Tensor] = {}
    prompts: list[Tensor] = []
    left = POSITIONS
    for index, row in enumerate(rows):
        places = compared(row)[:left]
        if not places:
            break
        left -= len(places)
        ids, positions = torch.tensor(row.input_ids), torch.tensor(places)
        logits = logits_at(model, ids, positions)
        kept |= {f"{index}.input_ids": ids, f"{index}.positions": positions, f"{index}.logits": logits}
        if comes_off(model):
            with loading.quiet_peft(), model.disable_adapter():
                bare = logits_at(model, ids, positions)
            width = min(bare.shape[1], logits.shape[1])
            kept[f"{index}.base_kl"] = kl(logits[:, :width], bare[:, :width])
        prompts.append(prompt(ids, positions))
    if causal_model(model).can_generate():
        for index, answer in enumerate(continued(model, prompts[:PROMPTS], LENGTH)):
            kept[f"{index}.continued"] = torch.tensor(answer, dtype=torch.int64)
    return kept


def comes_off(model: Any) -> bool:
    """Whether there is an adapter that can be switched off.

    Trained biases would stay; and PEFT 0.21 cannot switch off a learned prompt on a model that scores.
    """
    configs = getattr(model, "peft_config", {}).values()
    if loading.learns_prompt(model) and not causal_model(model).can_generate():
        return False
    return bool(configs) and all(getattr(config, "bias", None) in (None, "none", False) for config in configs)


def compared(row: Encoded) -> list[int]:
    """The positions before the learned tokens; for a prompt, where nothing is learned, every position."""
    learned = [place - 1 for place, label in enumerate(row.labels) if label != -100 and place]
    return learned or list(range(len(row.input_ids)))


def prompt(input_ids: Tensor, positions: Tensor) -> Tensor:
    """The tokens before the first compared one; all of a row that is only a prompt."""
    return input_ids[: int(positions[0]) + 1] if int(positions[0]) else input_ids


@torch.no_grad()
def logits_at(model: Any, input_ids: Tensor, positions: Tensor) -> Tensor:
    """Logits, float32 on the CPU, of shape (positions, vocabulary), for one row of token ids.

    Those of tokens before the first position are not computed, if the model can leave them out; nor are tokens after
    the last one, which it does not depend on.

    For a model that scores, shape (1, 2) for the whole row: the answer's score, and 0 for an average answer; their
    softmax is the probability that the answer is preferred (Bradley and Terry).
    """
    causal = causal_model(model)
    scores, first, end = not causal.can_generate(), int(positions.min()), int(positions.max()) + 1
    row = input_ids if scores else input_ids[:end]
    last = {"logits_to_keep": end - first} if not scores and keeps_last(model) else {}
    output = model(
        input_ids=row[None].to(causal.device),
        attention_mask=torch.ones_like(row[None]).to(causal.device),
        use_cache=False,
        **last,
    ).logits
    if output.dim() == 2:
        return functional.pad(output, (0, 1)).float().cpu().contiguous()
    kept = output[0, first - end :]
    at: Tensor = kept[(positions - first).to(kept.device)].float().cpu().contiguous()
    return at


def continued(model: Any, prompts: Sequence[Tensor], length: int) -> list[list[int]]:
    """The most probable next tokens of each prompt, at most `length`, up to and including an end token."""
    if not prompts:  # as those of a model that scores, and has no settings for generation
        return []
    rows = [prompt.tolist() for prompt in prompts]
    pad, *_ = *loading.token_ids(causal_model(model).generation_config.pad_token_id), *greedy.ends_of(model), 0
    found: dict[int, list[int]] = {}
    for batch in greedy.batches(model, rows, length=length, batch_size=PROMPTS, pad_token_id=pad):
        found |= batch
    return [found[index] for index in range(len(rows))]


def all_continued(form: Form, prompts: Sequence[Tensor], length: int) -> list[list[int]]:
    """What a form gives after each prompt; at once, if it can."""
    together = getattr(form, "all_continued", None)
    if together is not None:
        return list(together(prompts, length))
    return [form.continued(prompt_ids, length) for prompt_ids in prompts]


def text(form: Form, tokenizer: Any, input_ids: Sequence[int]) -> str:
    """A form's greedy continuation of a prompt, at most `LENGTH` tokens, without its end token."""
    continuation = form.continued(torch.tensor(input_ids), LENGTH)
    return str(tokenizer.decode(continuation, skip_special_tokens=True)).strip()


def kl(expected: Tensor, actual: Tensor) -> Tensor:
    """Kullback-Leibler divergence D(expected || actual) of each row of logits, in nats; shape (rows,), float64.

    A row of `actual` may have only the log-probabilities of the most probable tokens, and NaN for all others: these
    count as one outcome, which makes the divergence smaller, never larger (the data processing inequality). A row with
    only NaN comes from a model that computes no logits: its divergence is NaN.

    Few rows are computed at a time: there are half a dozen copies of their logits in float64.
    """
    at_once = max(1, AT_ONCE_BYTES // (8 * max(1, expected.shape[-1])))
    parts = zip(expected.split(at_once), actual.split(at_once), strict=True)
    return torch.cat([_kl(*part) for part in parts])


def _kl(expected: Tensor, actual: Tensor) -> Tensor:
    log_expected = functional.log_softmax(expected.double(), dim=-1)
    unknown = actual.isnan()
    partial = unknown.any(dim=-1, keepdim=True)
    log_actual = torch.where(partial, actual.double(), functional.log_softmax(actual.double().nan_to_num(), dim=-1))
    log_actual = log_actual.nan_to_num(nan=0.0)
    kept = (log_expected.exp() * (log_expected - log_actual)).masked_fill(unknown, 0.0).sum(dim=-1)
    rest, actual_rest = (
        torch.where(partial[:, 0], mass, 1.0)
        for mass in (
            log_expected.exp().masked_fill(~unknown, 0.0).sum(dim=-1),
            1.0 - log_actual.exp().masked_fill(unknown, 0.0).sum(dim=-1),
        )
    )
    divergence = (kept + torch.xlogy(rest, rest / actual_rest.clamp(min=LEAST))).clamp(min=0)
    return divergence.masked_fill(unknown.all(dim=-1), torch.nan)


def filled(logits: Tensor) -> Tensor:
    """Log-probabilities in which tokens without one (NaN) share the remaining probability equally."""
    unknown = logits.isnan()
    rest = 1.0 - logits.double().exp().masked_fill(unknown, 0.0).sum(dim=-1, keepdim=True)
    share = rest.clamp(min=LEAST) / unknown.sum(dim=-1, keepdim=True).clamp(min=1)
    return torch.where(unknown, share.log().to(logits.dtype), logits)
