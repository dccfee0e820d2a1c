"""Prompts of different lengths are padded on the left and answered together: does a model read the padding as text?

Most models mask the padding, and count positions without it. Some that keep a state ignore the mask (RWKV, xLSTM), or
do so with a cache (lightning attention); some count padding as positions unless they are given positions (GPT-2), and
some keep one state for all rows (RWKV). So it is measured on the model itself.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional

from mlflow_ft.engine.batches import by_length
from mlflow_ft.engine.loss import causal_model
from mlflow_ft.engine.models import generation, loading, row_isolation
from mlflow_ft.engine.models.row_isolation import Batch, Check, Row
from mlflow_ft.errors import ConfigError
from mlflow_ft.values import Data, Job

LONGEST = 64
"""At most so many tokens of a prompt are used, from its end."""
NEW = 3
"""Tokens to generate: the second and third use the cache."""
ROUNDING, NOISE = 1e-4, 10
"""A difference of a log-probability (nats) counts above `ROUNDING` + `NOISE` times the effect of the batch size."""
BATCHED = 0.05
"""Largest mean difference (nats) that another batch size may make: rounding stays below it in any type."""
UNRELATED = ("_name_or_path", "quantization_config", "transformers_version", "use_cache")
"""Settings of a model that say nothing about padding; nor do the ids of its tokens."""
Way = Literal["padded", "alike", "alone"]
_WAYS: dict[tuple[object, ...], Way] = {}


def padded(rows: Sequence[Row], *, pad_token_id: int) -> dict[str, Tensor]:
    """Pad on the left: `input_ids` and `attention_mask`, int64 of shape (rows, longest)."""
    longest = max(map(len, rows))
    ids = [[pad_token_id] * (longest - len(row)) + list(row) for row in rows]
    mask = [[0] * (longest - len(row)) + [1] * len(row) for row in rows]
    return {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask)}


def batches(model: Any, prompts: Sequence[Row], *, batch_size: int, pad_token_id: int) -> Iterator[list[int]]:
    """Indices of prompts that can be answered together: padded, or only those of one length, or one at a time."""
    way = together(model, prompts, pad_token_id=pad_token_id) if batch_size > 1 and len(prompts) > 1 else "alike"
    lengths = [len(prompt) for prompt in prompts]
    return by_length(lengths, batch_size=1 if way == "alone" else batch_size, padding=way == "padded")


def together(model: Any, prompts: Sequence[Row], *, pad_token_id: int) -> Way:
    """How prompts can be batched so that each answer is the one it has alone; measured once for each kind of model.

    "padded": on the left; "alike": only prompts of one length; "alone": one prompt at a time.
    """
    if loading.learns_prompt(model):
        return "alike"  # padding would come between the learned prompt and the text
    kind = _kind(causal_model(model))
    if kind not in _WAYS:
        short, long = min(prompts, key=len)[-LONGEST:], max(prompts, key=len)
        long = long[-max(LONGEST, len(short) + 1) :] if len(long) > len(short) else [*long, *long]
        _WAYS[kind] = _way(model, short, long, pad_token_id)
    return _WAYS[kind]


def _kind(causal: Any) -> tuple[object, ...]:
    """What padding depends on: the code and the settings of a model, not its weights."""
    config = causal.config
    settings = {name: value for name, value in config.to_dict().items() if name not in (*UNRELATED, *generation.TOKENS)}
    return type(causal), causal.dtype, config._attn_implementation, json.dumps(settings, sort_keys=True, default=str)


def _way(model: Any, short: Row, long: Row, pad_token_id: int) -> Way:
    alone, twice, mixed = (
        _answered(model, padded(prompts, pad_token_id=pad_token_id), pad_token_id)[0]
        for prompts in ([short], [short, short], [short, long])
    )
    batched = (twice - alone).abs()
    if float(batched.mean()) > BATCHED:
        return "alone"
    same = float((mixed - alone).abs().max()) <= ROUNDING + NOISE * float(batched.max())
    return "padded" if same else "alike"


@torch.no_grad()
def _answered(model: Any, batch: Batch, pad_token_id: int) -> Tensor:
    """Log-probabilities of the first tokens of greedy answers, of shape (rows, tokens, vocabulary)."""
    device = causal_model(model).device
    with loading.quiet_peft():
        output = model.generate(
            **{name: value.to(device) for name, value in batch.items()},
            max_new_tokens=NEW,
            min_new_tokens=NEW,
            use_cache=True,
            pad_token_id=pad_token_id,
            output_logits=True,
            **{**generation.GREEDY, "return_dict_in_generate": True},
        )
    return functional.log_softmax(torch.stack(output.logits, dim=1).float(), dim=-1)


def counted(module: Any) -> Any:
    """Make a model count positions from the first real token of each row, if a batch is padded on the left.

    TRL passes no positions. Returns the hook; its `remove` undoes this.
    """

    def count(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        mask = kwargs.get("attention_mask")
        if kwargs.get("position_ids") is None and isinstance(mask, Tensor) and mask.dim() == 2 and not mask[:, 0].all():
            kwargs = kwargs | {"position_ids": (mask.long().cumsum(dim=1) - 1).clamp(min=0)}
        return args, kwargs

    return causal_model(module).register_forward_pre_hook(count, with_kwargs=True)


def proof(job: Job, data: Data, trainer: Any) -> Check:
    """A check that padding on the left changes nothing, for a trainer that samples and scores answers that way."""
    pad = data.tokenizer.pad_token_id

    def collate(rows: Sequence[Row]) -> Batch:
        return padded(rows, pad_token_id=pad)

    def check(model: Any, rough: bool) -> None:  # noqa: FBT001  # a callback
        rows = row_isolation.some(data)
        if row_isolation.see_each_other(model, rows, collate, rough=rough):
            scored = (model, getattr(trainer, "ref_model", None))
            hooks = [counted(module) for module in scored if module is not None]
            if seen := row_isolation.see_each_other(model, rows, collate, rough=rough):
                for hook in hooks:
                    hook.remove()
                raise refused(job, f"the loss of a token by up to {seen.difference:.2g} nats")
        if together(model, rows, pad_token_id=pad) != "padded":
            raise refused(job, "the sampled answers")

    return check


def refused(job: Job, how: str) -> ConfigError:
    """The error for a method that pads prompts, on a model that reads padding as text; `how` says what changes."""
    return ConfigError(
        f"{job.config.method} pads prompts on the left to answer them in batches, but this model reads the padding as "
        f"text: it changes {how}",
        hint="use a method that learns from given answers (sft, dpo, kto), or another model",
    )
