"""What the trained model leaves behind while it is in memory, for every later form of it to be compared with.

Of the first held-out rows the logits at the learned tokens, how far the bare base model is from them, and how the
model goes on, greedily, behind the first prompts. One safetensors file, at most about 50 MiB.
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

from mlflow_ft.engine.loss import causal_model
from mlflow_ft.engine.models import generation, loading
from mlflow_ft.engine.tokens import room
from mlflow_ft.errors import ModelError
from mlflow_ft.rows import Encoded
from mlflow_ft.values import Data, Form

ROWS = 8
FIRST = 1000
"""Held-out rows that are looked at for them."""
POSITIONS = 96
"""Learned tokens that are compared, at most: 96 x a vocabulary of 128,000 x 4 bytes are 47 MiB."""
PROMPTS = 4
"""Rows behind whose prompt the model goes on."""
LEAST = 1e-9
"""Probability that is left for what a program does not tell, at least: it rounds what it tells."""
LENGTH = 24
"""Tokens that it goes on for, at most."""


class Loaded:
    """A model in memory as a `mlflow_ft.job.Form`."""

    def __init__(self, model: Any) -> None:
        self.model = model

    def logits(self, input_ids: Tensor, positions: Tensor) -> Tensor:
        return logits_at(self.model, input_ids, positions)

    def continued(self, input_ids: Tensor, length: int) -> list[int]:
        return continued(self.model, input_ids, length)


def keep(model: Any, data: Data, file: Path) -> None:
    """Write the reference of a model as it is in memory."""
    rows = [row for row in itertools.islice(data.eval.encoded, FIRST) if len(row.input_ids) > 1][:ROWS]
    kept = of_rows(model, rows)
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file(kept, file)


def keep_answers(model: Any, tokenizer: Any, questions: Sequence[str], file: Path) -> None:
    """Write the reference of a model in memory: its own answers to questions, by its chat template.

    Raises:
        ModelError: the tokenizer has no chat template.
    """
    if not tokenizer.chat_template:
        raise ModelError(
            "the model has no chat template, so it cannot answer prompts", hint="add chat_template.jinja to its folder"
        )
    rows = []
    for question in questions:
        messages = [{"role": "user", "content": question}]
        asked = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
        answer = continued(model, torch.tensor(asked), LENGTH)
        rows.append(Encoded(input_ids=(*asked, *answer), labels=(*[-100] * len(asked), *answer)))
    save_file(of_rows(model, rows), file)


def of_rows(model: Any, rows: list[Encoded]) -> dict[str, Tensor]:
    """The reference: `N.input_ids`, `N.positions`, `N.logits` of row N, `N.base_kl` (nats, one a position) where there
    is an adapter to take off, and `N.continued` of the first rows.
    """
    kept: dict[str, Tensor] = {}
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
        if index < PROMPTS and causal_model(model).can_generate():
            kept[f"{index}.continued"] = torch.tensor(
                continued(model, prompt(ids, positions), LENGTH), dtype=torch.int64
            )
    return kept


def comes_off(model: Any) -> bool:
    """Whether there is an adapter that can be switched off.

    Biases that it has trained would stay; and PEFT 0.21 cannot take a learned prompt off a model that scores.
    """
    configs = getattr(model, "peft_config", {}).values()
    if loading.learns_prompt(model) and not causal_model(model).can_generate():
        return False
    return bool(configs) and all(getattr(config, "bias", None) in (None, "none", False) for config in configs)


def compared(row: Encoded) -> list[int]:
    """The positions before the tokens that are learned; every position of a prompt, of which nothing is."""
    learned = [place - 1 for place, label in enumerate(row.labels) if label != -100 and place]
    return learned or list(range(len(row.input_ids)))


def prompt(input_ids: Tensor, positions: Tensor) -> Tensor:
    """What stands before the first token that is compared; the whole of a row that is a prompt alone."""
    return input_ids[: int(positions[0]) + 1] if int(positions[0]) else input_ids


@torch.no_grad()
def logits_at(model: Any, input_ids: Tensor, positions: Tensor) -> Tensor:
    """Logits, float32 on the CPU, of shape (positions, vocabulary), of one row of token ids.

    A model that scores has one for the whole row: the answer's score beside 0, that of a middling answer, of shape
    (1, 2); their softmax is the chance that the answer is preferred (Bradley and Terry).
    """
    causal = causal_model(model)
    output = model(
        input_ids=input_ids[None].to(causal.device),
        attention_mask=torch.ones_like(input_ids[None]).to(causal.device),
        use_cache=False,
    ).logits
    if output.dim() == 2:
        return functional.pad(output, (0, 1)).float().cpu().contiguous()
    output = output[0]
    at: Tensor = output[-len(input_ids) :][positions.to(output.device)].float().cpu().contiguous()
    return at


@torch.no_grad()
def continued(model: Any, input_ids: Tensor, length: int) -> list[int]:
    """The most probable next tokens, at most `length`, up to and with an end token."""
    device = causal_model(model).device
    if (left := room.left(model, len(input_ids))) is not None and left < length:
        length = left
    if not length:
        return []
    with loading.quiet_peft():
        output = model.generate(
            input_ids=input_ids[None].to(device),
            attention_mask=torch.ones_like(input_ids[None]).to(device),
            max_new_tokens=length,
            **generation.GREEDY,
        )
    return [int(token) for token in output[0, len(input_ids) :]]


def text(form: Form, tokenizer: Any, input_ids: Sequence[int]) -> str:
    """What a form says behind a prompt, greedily, in at most `LENGTH` tokens, without its end token."""
    found = form.continued(torch.tensor(input_ids), LENGTH)
    return str(tokenizer.decode(found, skip_special_tokens=True)).strip()


def kl(expected: Tensor, found: Tensor) -> Tensor:
    """Kullback-Leibler divergence D(expected || found) of each row of logits, in nats; shape (rows,), float64.

    A row of `found` may hold the log-probabilities of the most probable tokens alone, and NaN for all others: these
    count as one outcome, which makes the divergence smaller, never larger (the data processing inequality). A row of
    nothing but NaN is a model's that computes none: its divergence is NaN.
    """
    log_expected = functional.log_softmax(expected.double(), dim=-1)
    unknown = found.isnan()
    told = unknown.any(dim=-1, keepdim=True)
    log_found = torch.where(told, found.double(), functional.log_softmax(found.double().nan_to_num(), dim=-1))
    log_found = log_found.nan_to_num(nan=0.0)
    kept = (log_expected.exp() * (log_expected - log_found)).masked_fill(unknown, 0.0).sum(dim=-1)
    rest, found_rest = (
        torch.where(told[:, 0], mass, 1.0)
        for mass in (
            log_expected.exp().masked_fill(~unknown, 0.0).sum(dim=-1),
            1.0 - log_found.exp().masked_fill(unknown, 0.0).sum(dim=-1),
        )
    )
    divergence = (kept + torch.xlogy(rest, rest / found_rest.clamp(min=LEAST))).clamp(min=0)
    return divergence.masked_fill(unknown.all(dim=-1), torch.nan)


def filled(logits: Tensor) -> Tensor:
    """Log-probabilities with an equal part of what is left for every token that has none (NaN)."""
    unknown = logits.isnan()
    rest = 1.0 - logits.double().exp().masked_fill(unknown, 0.0).sum(dim=-1, keepdim=True)
    share = rest.clamp(min=LEAST) / unknown.sum(dim=-1, keepdim=True).clamp(min=1)
    return torch.where(unknown, share.log().to(logits.dtype), logits)
