"""Make a reward model with a learned prompt read its score at the last token of each row, not at its padding.

transformers finds the last token of a row by its ids. With a learned prompt PEFT passes embeddings instead, and
transformers uses the last position of the batch, which is padding in rows padded on the right.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mlflow_ft.engine.loss import causal_model


def read_at_end(module: Any) -> None:
    """Make a scoring model read each row at the last position of its attention mask."""
    causal = causal_model(module)
    masks: list[Tensor | None] = [None]

    def before(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        masks[0] = kwargs.get("attention_mask") if kwargs.get("inputs_embeds") is not None else None

    def after(_: Any, args: tuple[Any, ...], scores: Tensor) -> Tensor | None:
        mask = masks[0]
        if mask is None or mask.shape != scores.shape[:2]:
            return None
        places = (torch.arange(mask.shape[1], device=mask.device) * (mask != 0)).argmax(dim=1)
        ends = scores[torch.arange(len(scores), device=scores.device), places.to(scores.device)]
        return torch.cat([scores[:, :-1], ends[:, None]], dim=1)

    causal.register_forward_pre_hook(before, with_kwargs=True)
    causal.score.register_forward_hook(after)
