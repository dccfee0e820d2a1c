"""A request whose settings cannot be followed is refused, and not answered as if they had not been given."""

from __future__ import annotations

from typing import Any

import pytest
from mlflow.exceptions import MlflowException
from openai.types.chat.completion_create_params import CompletionCreateParamsStreaming

from mlflow_ft.engine.serving import request_fields

MESSAGES = [{"role": "user", "content": "red"}]


@pytest.mark.parametrize(
    ("field", "words"),
    [
        ({"chat_template_kwargs": {"enable_thinking": False}}, "`chat_template_kwargs` is not supported"),
        ({"enable_thinking": False}, "`enable_thinking` is not supported"),
        ({"repetition_penalty": 1.1}, "`repetition_penalty` is not supported"),
        ({"min_p": 0.1}, "`min_p` is not supported"),
        ({"continue_final_message": True}, "`continue_final_message` is not supported"),
        ({"add_generation_prompt": False}, "`add_generation_prompt` is not supported"),
        ({"reasoning_effort": "high"}, "`reasoning_effort` is not supported"),
        ({"functions": [{}]}, "`functions` is not supported"),
        ({"frequency_penalty": 0.5}, "`frequency_penalty` is not supported"),
        ({"temprature": 1}, r"unknown field `temprature`; did you mean temperature\?"),
        ({"max_token": 1}, r"unknown field `max_token`; did you mean max_tokens\?"),
        ({"zzzzzzzz": 1}, "unknown field `zzzzzzzz`; known: max_completion_tokens, "),
        ({"stream": "false"}, "`stream` is 'false'; it must be true or false"),
        ({"stream_options": [1]}, "`stream_options` is"),
        ({"tool_choice": {"type": "function"}}, "`tool_choice` is"),
    ],
)
def test_what_would_be_ignored_is_refused(field: dict[str, Any], words: str) -> None:
    """Rapid-MLX#387, ollama#16240."""
    with pytest.raises(MlflowException, match=words) as refused:
        request_fields.check({"messages": MESSAGES, **field})
    assert refused.value.get_http_status_code() == 400


def test_what_changes_nothing_is_accepted() -> None:
    neutral = {"repetition_penalty": 1.0, "min_p": 0, "chat_template_kwargs": {}, "logprobs": False, "logit_bias": {}}
    neutral |= {"frequency_penalty": 0.0, "presence_penalty": 0, "add_generation_prompt": True, "modalities": ["text"]}
    of_openai = {"user": "me", "metadata": {"a": "b"}, "store": True, "parallel_tool_calls": False}
    asked = {"temperature": 1, "top_k": 3, "n": 1, "stop": "a", "seed": 1, "stream": True, "stream_options": {}}
    request_fields.check({"messages": MESSAGES, "model": "one", "tools": [], **neutral, **of_openai, **asked})


def test_every_field_of_openais_client_is_known() -> None:
    known = request_fields.OFFERED | request_fields.WITHOUT_EFFECT | request_fields.NOT_OFFERED.keys()
    assert not CompletionCreateParamsStreaming.__annotations__.keys() - known
    assert not request_fields.OFFERED & request_fields.NOT_OFFERED.keys()
