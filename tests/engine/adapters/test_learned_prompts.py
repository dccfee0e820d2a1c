"""A learned prompt directly precedes the text, in training, in a batch of answers and alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from mlflow_ft.engine import batches
from mlflow_ft.engine.judging import judge
from mlflow_ft.engine.models import loading
from mlflow_ft.rows import Example

Bencher = Callable[..., Any]
WORDS = ("red", "green", "blue", "round", "flat", "heavy", "small", "apple", "stone", "river", "lamp", "door")
KINDS = ("prompt", "prefix", "ptuning")


def trained(bench: Bencher, kind: str) -> tuple[Any, Any]:
    own = {} if kind == "lora" else {"adapter.num_virtual_tokens": 6, "learning_rate": 0.3}
    setup = bench("lora", **{"adapter.kind": kind}, **own)
    return setup, loading.load_trained(setup.job, setup.data, setup.train())


@pytest.mark.parametrize(("kind", "padded"), [("prompt", False), ("ptuning", False), ("prefix", False), ("lora", True)])
def test_nothing_comes_between_the_prompt_and_questions_of_unequal_length(
    bench: Bencher, monkeypatch: pytest.MonkeyPatch, kind: str, *, padded: bool
) -> None:
    """PEFT takes the positions away that would skip the padding: the logits of a padded question are off by 0.2."""
    setup, model = trained(bench, kind)
    masks = []
    generate = model.generate

    def seen(**options: Any) -> Any:
        if "output_logits" not in options:  # the look at padding, before any answer
            masks.append(options["attention_mask"])
        return generate(**options)

    monkeypatch.setattr(model, "generate", seen)
    examples = [
        Example(messages=({"role": "user", "content": " ".join(WORDS[: 1 + n])}, {"role": "assistant", "content": "x"}))
        for n in (0, 5, 5, 11)
    ]
    together = judge.answers(model, setup.data, examples, max_new_tokens=4, batch_size=4)
    assert any(bool((mask == 0).any()) for mask in masks) is padded
    assert sum(len(mask) for mask in masks) == 4
    alone = [judge.answers(model, setup.data, [example], max_new_tokens=4, batch_size=1)[0] for example in examples]
    assert [answer.text for answer in together] == [answer.text for answer in alone]


@pytest.mark.parametrize("kind", [*KINDS, "adaption-prompt", "cpt"])
def test_generation_is_what_the_logits_say(bench: Bencher, kind: str) -> None:
    """The prompt goes through generation's cache; without one, token by token, the answer must be the same."""
    own = {"adapter.init_text": "red green"} if kind == "cpt" else {"adapter.num_virtual_tokens": 6}
    setup = bench("lora", **{"adapter.kind": kind, "learning_rate": 0.3}, **own)
    model = loading.load_trained(setup.job, setup.data, setup.train())
    ids = torch.tensor([setup.data.eval.encoded[0].input_ids[:12]])
    with torch.no_grad(), loading.quiet_peft():
        generated = model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=6, min_new_tokens=6, do_sample=False
        )
        for _ in range(6):
            logits = model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits[:, -1]
            logits[:, model.get_base_model().generation_config.eos_token_id] = -torch.inf  # as min_new_tokens does
            ids = torch.cat([ids, logits.argmax(dim=-1, keepdim=True)], dim=1)
    assert generated[0].tolist() == ids[0].tolist()


def test_batches_without_padding_are_of_one_length() -> None:
    lengths = [3, 5, 3, 3, 5, 2]
    groups = list(batches.by_length(lengths, batch_size=2, padding=False))
    assert sorted(index for batch in groups for index in batch) == list(range(6))
    assert all(len({lengths[index] for index in batch}) == 1 and len(batch) <= 2 for batch in groups)
    assert [len(batch) for batch in batches.by_length(lengths, batch_size=2)] == [2, 2, 2]
