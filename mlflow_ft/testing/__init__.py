"""Fixtures for plugin tests, and for our own: a tiny real model, a private MLflow store, a contract for plugins.

# conftest.py
pytest_plugins = ["mlflow_ft.testing"]

def test_contract(plugin_contract):
    import my_plugin
    plugin_contract(my_plugin, rows={"my-format": [{"front": "one", "back": "two"}]})

def test_my_trainer(tiny_model, tiny_rows, fine_tune):
    outcome = fine_tune("my-method", model=tiny_model, data=tiny_rows)
    assert outcome.versions
"""

from __future__ import annotations

import json
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import pytest

from mlflow_ft.testing.samples import WORDS, make_candidacy, make_rows, rows_of_kind, write_jsonl

if TYPE_CHECKING:
    from mlflow_ft.pipeline import Outcome

__all__ = [
    "CHATML",
    "WORDS",
    "copy_store",
    "make_candidacy",
    "make_rows",
    "make_tiny_model",
    "make_tiny_tokenizer",
    "rows_of_kind",
    "write_jsonl",
]

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def make_tiny_tokenizer(*, chat_template: str | None = CHATML) -> Any:
    """A tokenizer of 512 tokens trained on the rows; it encodes any text, and `<|im_end|>` ends a turn."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    special = ["<unk>", "<pad>", "<|im_start|>", "<|im_end|>"]
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=512,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([json.dumps(row) for row in make_rows()], trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", pad_token="<pad>", eos_token="<|im_end|>"
    )
    fast.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    fast.chat_template = chat_template
    return fast


def make_tiny_model(folder: Path, *, chat_template: str | None = CHATML, seed: int = 0) -> Path:
    """Write a Llama with 2 layers and about 100,000 random weights, with the tiny tokenizer, to `folder`."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    fast = make_tiny_tokenizer(chat_template=chat_template)
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=512,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        eos_token_id=fast.eos_token_id,
        pad_token_id=fast.pad_token_id,
        bos_token_id=None,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    fast.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny real model and its tokenizer."""
    return make_tiny_model(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture
def tiny_rows(tmp_path: Path) -> Path:
    """A JSONL file of 48 conversations."""
    return write_jsonl(tmp_path / "rows.jsonl", make_rows())


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An SQLite store without runs, to be copied: its tables take a second to create."""
    from mlflow_ft.tracking import connect

    file = tmp_path_factory.mktemp("store") / "mlflow.db"
    connect(f"sqlite:///{file}").search_experiments()
    return file


def copy_store(empty_store: Path, folder: Path) -> str:
    """Copy a store to `folder/mlflow.db`, with its artifacts beside it as if MLflow had created it there; its URI."""
    file = Path(shutil.copy(empty_store, folder / "mlflow.db"))
    with closing(sqlite3.connect(file)) as database, database:
        database.execute("UPDATE experiments SET artifact_location = ?", (str(folder / "mlruns" / "0"),))
    return f"sqlite:///{file}"


@pytest.fixture
def tracking_store(empty_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A private MLflow store in SQLite, in the test's working folder; yields its URI."""
    import mlflow

    uri = copy_store(empty_store, tmp_path)
    for name in ("MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_ID", "MLFLOW_EXPERIMENT_NAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.chdir(tmp_path)
    yield uri
    while mlflow.active_run():
        mlflow.end_run()


@pytest.fixture
def fine_tune(tracking_store: str) -> Callable[..., Outcome]:
    """Run a whole job on a tiny model: `fine_tune("lora", model=folder, data=file, **{"adapter.r": 4})`."""
    from mlflow_ft import pipeline, plugins
    from mlflow_ft.cli.asked import asked
    from mlflow_ft.progress import Progress

    def run(method: str, *modules: ModuleType, **settings: Any) -> Outcome:
        loaded = plugins.load()
        for module in modules:
            info = loaded.add(module, name=module.__name__, version="test")
            assert info.status == "active", info.error
        quick: dict[str, Any] = {"max_steps": 2, "max_new_tokens": 8, "evaluation.max_rows": 4, "eval_steps": 1}
        quick["package.round_trip"] = "false"  # importing torch and MLflow in a process takes longer than the training
        pairs = [f"--{key}={value}" for key, value in (quick | settings).items()]
        return pipeline.run(asked([method, *pairs], loaded), loaded, progress=Progress(quiet=True))

    return run


@pytest.fixture
def plugin_contract(request: pytest.FixtureRequest) -> Callable[..., None]:
    """Check what any plugin must keep: `plugin_contract(my_plugin, rows={"my-format": [...]})`; see `testing.contract`.

    A failure names what is wrong. What the plugin registers is used in short trainings of a tiny real model.
    """
    from mlflow_ft.testing import contract

    def check(module: ModuleType, **given: Any) -> None:
        contract.check(module, contract.Given(**given), fixtures=request)

    return check
