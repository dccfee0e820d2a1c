"""A model as vLLM serves it, as a form that is compared with the trained one: its own log-probabilities and answers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from mlflow_ft import RefusedError
from mlflow_ft_vllm.engine.process import VllmProcess
from mlflow_ft_vllm.engine.trained import Trained

KNOWN = 1000
"""The most probable next tokens that are asked for; all others count as one outcome."""
AT_ONCE = 16
"""Positions of one request."""
TOKEN = "token_id:"
SHOWN = 60


class VllmForm:
    """A `mlflow_ft.Form`: the model `name` of a vLLM process."""

    def __init__(self, process: VllmProcess, name: str, trained: Trained) -> None:
        self.process, self.name, self.trained = process, name, trained
        self.vocabulary = trained.width

    def logits(self, input_ids: Tensor, positions: Tensor) -> Tensor:
        ids, rows = input_ids.tolist(), []
        places = positions.tolist()
        for start in range(0, len(places), AT_ONCE):
            rows += self._next([ids[: place + 1] for place in places[start : start + AT_ONCE]])
        return torch.stack(rows)

    def _next(self, prompts: Sequence[Sequence[int]]) -> list[Tensor]:
        """Log-probabilities of the next tokens, each of shape (vocabulary,); NaN for those that vLLM does not return.

        These are the model's own, before temperature and penalties.
        """
        request = {"prompt": prompts, "max_tokens": 1, "temperature": 0, "logprobs": min(KNOWN, self.vocabulary)}
        answer = self.process.post("/v1/completions", model=self.name, return_tokens_as_token_ids=True, **request)
        rows = []
        for choice in sorted(answer.json()["choices"], key=lambda choice: choice["index"]):
            (known,) = choice["logprobs"]["top_logprobs"]
            row = torch.full((self.vocabulary,), math.nan)
            row[[int(token.removeprefix(TOKEN)) for token in known]] = torch.tensor(list(known.values()))
            rows.append(row)
        return rows

    def continued(self, input_ids: Tensor, length: int) -> list[int]:
        request = {
            **self.trained.defaults(chat=False),
            "prompt": input_ids.tolist(),
            "max_tokens": length,
            "temperature": 0,
        }
        answer = self.process.post("/v1/completions", model=self.name, return_token_ids=True, **request)
        return [int(token) for token in answer.json()["choices"][0]["token_ids"]]

    def check_prompts(self) -> None:
        """Compare the prompts that vLLM writes with those of training.

        Raises:
            RefusedError: vLLM writes another one.
        """
        tokenizer = self.trained.tokenizer
        for messages in CONVERSATIONS:
            try:
                ours = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
            except Exception:  # the template takes no system message, or the like: nor would training have
                continue
            request = {"messages": messages, "add_generation_prompt": True, "chat_template": self.trained.template}
            theirs = self.process.post("/tokenize", model=self.name, **request).json()["tokens"]
            if list(ours) != theirs:
                raise RefusedError(
                    f"vLLM writes the prompt {tokenizer.decode(theirs)[:SHOWN]!r} where the trained model read "
                    f"{tokenizer.decode(ours)[:SHOWN]!r}",
                    hint="serve it with --engine transformers",
                )


USER = {"role": "user", "content": "What is 17 + 25?\n\nAnd a third line: déjà vu "}
CONVERSATIONS: Sequence[Sequence[Mapping[str, str]]] = (
    [USER],
    [{"role": "system", "content": "Answer briefly."}, USER],
    [USER, {"role": "assistant", "content": "42"}, {"role": "user", "content": "Now in words."}],
)
"""Their prompts are compared."""
