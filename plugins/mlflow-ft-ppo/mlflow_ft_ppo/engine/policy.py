"""The policy with its value head: one model for the probabilities of tokens and the expected return.

The value head is a linear layer on the hidden states that the language model's head reads. It starts at zero (as Z19's
code; N+ starts from the reward model), is trained with the policy, and is not part of the model that is served.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from mlflow_ft import ModelError, brief
from mlflow_ft.engine.loss import causal_model

HEAD_FILE = "value_head.safetensors"


class Seen(NamedTuple):
    """The policy's outputs for every token of the answers, float32 of shape (answers, tokens).

    The numbers after an answer's end are meaningless.
    """

    logprobs: Tensor
    values: Tensor
    """The expected return before the token is chosen."""
    entropy: Tensor
    """Entropy of the choice of the token, in nats."""


class PolicyWithValue(nn.Module):
    """A causal language model, or a PeftModel around one, with a value head."""

    def __init__(self, model: Any, *, temperature: float) -> None:
        super().__init__()
        self.model = model
        self.temperature = temperature
        head = causal_model(model).get_output_embeddings()
        self.value_head = nn.Linear(head.weight.shape[-1], 1, dtype=torch.float32, device=head.weight.device)
        nn.init.zeros_(self.value_head.weight)
        nn.init.zeros_(self.value_head.bias)
        self._keeps = "logits_to_keep" in inspect.signature(causal_model(model).forward).parameters

    def forward(self, input_ids: Tensor, attention_mask: Tensor, prompt_lengths: Tensor, *, tokens: int) -> Seen:
        """Evaluate answers, each after its prompt and padded on the right, so that the positions are unchanged.

        Args:
            input_ids, attention_mask: of shape (answers, length).
            prompt_lengths: of shape (answers,), at least 1.
            tokens: length of the longest answer.

        The logits are divided by the temperature, as when the answers were sampled: at another temperature, the
        probabilities would be those of another policy (N+).
        """
        length = input_ids.shape[1]
        first = int(prompt_lengths.min()) - 1
        logits, hidden = self._outputs(input_ids, attention_mask, keep=length - first)
        before = prompt_lengths[:, None] - 1 + torch.arange(tokens, device=input_ids.device)  # where they come from
        chosen = input_ids.gather(1, (before + 1).clamp(max=length - 1))
        rows = torch.arange(len(input_ids), device=input_ids.device)[:, None]
        places = (before - first).clamp(max=length - first - 1)
        scaled = logits[rows, places].float() / self.temperature
        total = scaled.logsumexp(dim=-1)
        logprobs = scaled.gather(2, chosen[..., None])[..., 0] - total
        entropy = total - (torch.softmax(scaled, dim=-1) * scaled).sum(dim=-1)
        values = self.value_head(hidden[rows, places].to(self.value_head.weight.dtype))[..., 0]
        return Seen(logprobs, values.float(), entropy)

    def _outputs(self, input_ids: Tensor, attention_mask: Tensor, *, keep: int) -> tuple[Tensor, Tensor]:
        """Logits and the hidden states they come from, at the last `keep` positions."""
        caught: list[Tensor] = []
        head = causal_model(self.model).get_output_embeddings()
        hook = head.register_forward_pre_hook(lambda _, inputs: caught.append(inputs[0]))
        options = {"logits_to_keep": keep} if self._keeps else {}
        try:
            logits = self.model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False, **options).logits
        finally:
            hook.remove()
        return logits[:, -keep:], caught[0][:, -keep:]

    def save_head(self, folder: Path) -> None:
        """Write the value head to `folder`, for a run that continues from this one."""
        folder.mkdir(parents=True, exist_ok=True)
        save_file(
            {name: value.detach().cpu() for name, value in self.value_head.state_dict().items()}, folder / HEAD_FILE
        )

    def load_head(self, file: Path) -> None:
        """Load the value head of an earlier run.

        Raises:
            ModelError: the file does not exist, or is the head of another model.
        """
        try:
            self.value_head.load_state_dict(load_file(file))
        except (OSError, SafetensorError, RuntimeError) as error:
            raise ModelError(
                f"the value head {str(file)!r} cannot be read: {brief(error)}",
                hint=f"use {HEAD_FILE} from the folder `train` of a ppo run on the same model",
            ) from error


@contextmanager
def recomputing(model: Any, *, enabled: bool) -> Iterator[None]:
    """Inside the block, if `enabled`, activations are recomputed in the backward pass.

    The layers do so in training mode only, but the model must stay in evaluation mode, because dropout would change the
    probabilities that were sampled from: so only the mode of the layers changes, not of the modules inside them.
    """
    if not enabled:
        yield
        return
    causal = causal_model(model)
    causal.activation_checkpointing_enable({"use_reentrant": False})
    layers = [module for module in causal.modules() if isinstance(module, GradientCheckpointingLayer)]
    try:
        for layer in layers:
            layer.training = True
        yield
    finally:
        for layer in layers:
            layer.training = False
        causal.activation_checkpointing_disable()
