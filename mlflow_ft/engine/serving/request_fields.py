"""Which fields a chat request may have: what would change the answer and is not offered is refused, not ignored."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mlflow_ft.engine.serving import chat_model
from mlflow_ft.registry import suggest

OFFERED = frozenset({"messages", "stop", "tools", "tool_choice", "seed", "stream_options", "model"}) | {
    *chat_model.BOUNDS,
    "stream",
    "response_format",
}
WITHOUT_EFFECT = frozenset(
    {"user", "metadata", "store", "service_tier", "parallel_tool_calls", "safety_identifier"}
    | {"prompt_cache_key", "prompt_cache_options", "prompt_cache_retention"}
)
"""Fields of OpenAI's API about the account and the service: accepted, because they do not change an answer."""
NOT_OFFERED: Mapping[str, tuple[Any, ...]] = {
    **{name: (False, 0, {}) for name in chat_model.NOT_OFFERED if name != "stream"},
    "top_logprobs": (0,),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "audio": ({},),
    "modalities": ([], ["text"]),
    "prediction": ({},),
    "web_search_options": (),
    "moderation": (),
    "reasoning_effort": ("none",),
    "verbosity": ("medium",),
    "chat_template": (),
    "chat_template_kwargs": ({},),
    "enable_thinking": (),
    "add_generation_prompt": (True,),
    "continue_final_message": (False,),
    "documents": ([],),
    "repetition_penalty": (1,),
    "length_penalty": (1,),
    "min_p": (0,),
    "typical_p": (1,),
    "min_tokens": (0,),
    "bad_words": ([],),
    "stop_token_ids": ([],),
    "ignore_eos": (False,),
    "skip_special_tokens": (True,),
    "include_stop_str_in_output": (False,),
    "echo": (False,),
    "best_of": (1,),
    "use_beam_search": (False,),
}
"""Fields of OpenAI's API and of other servers that would change the answer, with the values that would not."""
KINDS: Mapping[str, tuple[type, str]] = {
    "stream": (bool, "true or false"),
    "stream_options": (dict, "an object"),
    "tool_choice": (str, "auto or none"),
}


def check(request: Mapping[str, Any]) -> None:
    """Refuse a request with a field that is not offered or not known, or with a value of the wrong type.

    Null values are left out before.

    Raises:
        MlflowException: there is such a field; the message names it.
    """
    for name, value in request.items():
        if name in NOT_OFFERED:
            if value not in NOT_OFFERED[name]:
                raise chat_model.refused(f"`{name}` is not supported")
        elif name in KINDS:
            kind, words = KINDS[name]
            if not isinstance(value, kind):
                raise chat_model.refused(f"`{name}` is {value!r}; it must be {words}")
        elif name not in OFFERED | WITHOUT_EFFECT:
            raise chat_model.refused(f"unknown field `{name}`; {suggest(name, OFFERED)}")
