"""The Modelfile: its template renders the same as the model's own, for template families of that form."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from mlflow_ft_gguf.engine import ollama
from transformers import AutoTokenizer

from mlflow_ft.testing import make_tiny_model

CHATML = (
    "{% if messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nBe kind.<|im_end|>\n' }}{% endif %}"
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
GEMMA = (
    "{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    "{{ '<start_of_turn>' + ('model' if m['role'] == 'assistant' else m['role']) + '\n' + m['content'] | trim }}"
    "{{ '<end_of_turn>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
BRACES = (
    "{% for m in messages %}{{ '{{' + m['role'] + '}}\"\"\"' + m['content'] + '\n' }}{% endfor %}"
    '{% if add_generation_prompt %}{{ \'{{assistant}}"""\' }}{% endif %}'
)
NUMBERED = (
    "{% for m in messages %}{{ loop.index ~ m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)
TALKS = [
    [{"role": "user", "content": "Hello"}],
    [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why?"}],
    [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b"},
        {"role": "user", "content": "c\n\nd"},
    ],
]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return AutoTokenizer.from_pretrained(make_tiny_model(tmp_path_factory.mktemp("tiny")))


class Go:
    """The part of Go's template language that we write: range, if, else if, not, eq, and quoted texts."""

    def __init__(self, template: str, messages: list[dict[str, str]]) -> None:
        self.parts = re.split(r"\{\{(.*?)\}\}", template, flags=re.DOTALL)
        self.messages = messages
        self.at = 0

    def block(self, turn: dict[str, str] | None = None) -> str:
        """The text up to the next `end` or `else`, which is not consumed."""
        text = ""
        while self.at < len(self.parts):
            part, action = self.parts[self.at], self.at % 2 == 1
            if action and part.split()[0] in ("end", "else"):
                break
            self.at += 1
            text += self.run(part.strip(), turn) if action else part
        return text

    def run(self, action: str, turn: dict[str, str] | None) -> str:
        if action == "range .Messages":
            begin, text = self.at, ""
            for message in self.messages:
                self.at = begin
                text += self.block(message)
            self.at += 1
            return text
        if action.startswith("if"):
            return self.branches(action, turn)
        if action == ".Content":
            assert turn is not None
            return turn["content"]
        return str(json.loads(action))

    def branches(self, action: str, turn: dict[str, str] | None) -> str:
        chosen = None
        while action != "end":
            if action == "if not .System":
                wanted = all(message["role"] != "system" for message in self.messages)
            else:
                wanted = turn is not None and f'"{turn["role"]}"' in action
            block = self.block(turn)
            chosen = block if wanted and chosen is None else chosen
            action = self.parts[self.at].strip()
            self.at += 1
        return chosen or ""


@pytest.mark.parametrize("template", [CHATML, GEMMA, BRACES], ids=["chatml", "gemma", "braces"])
def test_it_renders_the_same_as_the_models_own(tokenizer: Any, tmp_path: Path, template: str) -> None:
    tokenizer.chat_template = template
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [3, 0]}))
    text = ollama.modelfile(tokenizer, tmp_path, "model-q8_0.gguf")
    assert text is not None
    assert text.startswith("FROM ./model-q8_0.gguf\n")
    assert 'PARAMETER stop "<|im_end|>"\nPARAMETER stop "<unk>"\n' in text
    match = re.search(r'TEMPLATE """(.*?)"""\n', text, flags=re.DOTALL)
    assert match
    for talk in TALKS:
        if template is GEMMA and talk[0]["role"] == "system":
            continue
        own = tokenizer.apply_chat_template(talk, add_generation_prompt=True, tokenize=False)
        assert Go(match[1], talk).block() == own


def test_a_folder_without_generation_settings_stops_at_the_end_tokens_of_model_and_tokenizer(
    tokenizer: Any, tmp_path: Path
) -> None:
    assert ollama.end_texts(tokenizer, tmp_path) == ["<|im_end|>"]
    (tmp_path / "config.json").write_text(json.dumps({"eos_token_id": 0}))
    assert ollama.end_texts(tokenizer, tmp_path) == ["<unk>", "<|im_end|>"]


def test_a_template_that_ollama_cannot_express_is_not_written(tokenizer: Any, tmp_path: Path) -> None:
    tokenizer.chat_template = NUMBERED
    assert ollama.modelfile(tokenizer, tmp_path, "model.gguf") is None
