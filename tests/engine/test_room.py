"""For how many tokens and positions a base has room, and which tokens have none."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PromptTuningConfig, get_peft_model
from transformers import AutoTokenizer

from mlflow_ft.engine import room
from mlflow_ft.engine.skeleton import bare_model
from mlflow_ft.errors import ModelError
from mlflow_ft.testing import make_tiny_tokenizer
from tests.engine.foreign import base_model

pytestmark = pytest.mark.filterwarnings("ignore:.*:UserWarning", "ignore:.*:FutureWarning")
Small = Callable[..., Path]


@pytest.mark.parametrize("kind", ["gpt2", "opt"])
def test_a_table_of_positions_ends(small: Small, kind: str) -> None:
    """What `positions` says is what the model itself can read, and no more."""
    model = base_model(small(kind))
    limit = room.positions(model)
    assert limit == 256 == room.made_for(small(kind)) == room.positions(bare_model(small(kind)))
    model(input_ids=torch.ones(1, limit, dtype=torch.long))
    with pytest.raises((IndexError, RuntimeError)):
        model(input_ids=torch.ones(1, limit + 1, dtype=torch.long))


@pytest.mark.parametrize("kind", ["llama", "bloom", "mamba"])
def test_others_read_on(small: Small, kind: str) -> None:
    model = base_model(small(kind))
    assert room.positions(model) is None
    model(input_ids=torch.ones(1, 300, dtype=torch.long))
    assert room.made_for(small(kind)) == (256 if kind == "llama" else None)


def test_a_learned_prompt_takes_positions(small: Small) -> None:
    model = base_model(small("gpt2"))
    assert room.left(model, 250) == 6
    assert room.left(model, 300) == 0
    assert room.left(base_model(small("llama")), 300) is None
    with_prompt = get_peft_model(model, PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4))
    assert room.left(with_prompt, 250) == 2


def test_the_rows_of_the_embeddings(small: Small, tmp_path: Path) -> None:
    assert room.tokens(small("llama")) == 512 == room.tokens(small("gemma3"))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "of its own", "vocab_size": 7}))
    assert room.tokens(tmp_path) == 7, "transformers does not know it"
    (tmp_path / "config.json").write_text("{")
    assert room.tokens(tmp_path) is None


def tokenizer(*more: str) -> Any:
    """The tests' tokenizer, of 512 tokens and then these."""
    made = make_tiny_tokenizer()
    made.add_tokens([f"<spare {number}>" for number in range(512 - len(made))])
    made.add_tokens(list(more))
    return made


def test_tokens_beyond_the_rows() -> None:
    four = tokenizer("<a>", "<b>", "<c>", "<d>")
    assert room.size(four) == 516
    assert room.beyond(four, 516) == room.beyond(four, None) == {}
    assert room.beyond(four, 514) == {514: "<c>", 515: "<d>"}
    told = room.told(room.beyond(four, 512))
    assert told == "'<a>' (id 512), '<b>' (id 513), '<c>' (id 514) and 1 more"


def test_ids_with_a_gap_count_by_the_highest(tmp_path: Path) -> None:
    made = tokenizer()
    made.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "tokenizer.json").read_text())
    saved["model"]["vocab"]["far"] = 600
    (tmp_path / "tokenizer.json").write_text(json.dumps(saved))
    far: Any = AutoTokenizer.from_pretrained(tmp_path)
    assert len(far) < 600
    assert room.size(far) == 601


def test_ids_without_embeddings_are_refused() -> None:
    made = tokenizer("<a>", "<b>")
    room.refuse_ids(made, [513], place="rows.jsonl:3")  # how many rows the model has is not known
    made.rows = 512
    room.refuse_ids(made, [0, 511], place="rows.jsonl:3")
    with pytest.raises(ModelError, match=r"rows\.jsonl:3 holds '<a>' \(id 512\), '<b>' \(id 513\)") as raised:
        room.refuse_ids(made, [513, 512, 5, 513], place="rows.jsonl:3")
    assert "--model.add_tokens '<a>,<b>'" in str(raised.value.hint)
