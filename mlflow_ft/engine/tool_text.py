"""Chat templates that know nothing of tools are taught them: calls become text, as Hermes and Qwen write them.

Most templates print `message['content']` and pass over `tool_calls` and `tools` in silence, so that a call would
never be learned. A prelude in front of the template rewrites the messages before the template sees them; the template
itself stays as it is. It is saved with the tokenizer, so that every server renders what was trained.

    {"role": "assistant", "tool_calls": [...]}   <tool_call>\\n{"name": "f", "arguments": {...}}\\n</tool_call>
    {"role": "tool", "content": "..."}           <tool_response>\\n...\\n</tool_response>, as the user
    tools                                        in the system prompt, a JSON object a line (before the first question,
                                                 where a template refuses a system prompt)
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from transformers import PreTrainedTokenizerFast

from mlflow_ft.engine.render import MaskError, apply
from mlflow_ft.rows import Example, Message

SIGN = "{#- mlflow-ft: tools as text -#}"
OFFER = "You may call the functions below. Call one with a JSON object between <tool_call> and </tool_call>.\n<tools>\n"
AS_SYSTEM = "{%- set ft.turns = ft.turns + [{'role': 'system', 'content': ft.system}] -%}"
AS_USER = "{%- set turn = {'role': turn['role'], 'content': ft.system ~ '\n\n' ~ turn['content']} -%}"
"""For a template that refuses a system prompt: the tools stand before the first words of the user."""
PRELUDE = (
    SIGN
    + """{%- set ft = namespace(turns=[], system=none, calls='') -%}
{%- if tools -%}
  {%- set ft.system = 'OFFER' -%}
  {%- for tool in tools -%}{%- set ft.system = ft.system ~ (tool | tojson) ~ '\n' -%}{%- endfor -%}
  {%- set ft.system = ft.system ~ '</tools>' -%}
{%- endif -%}
{%- for turn in messages -%}
  {%- if turn['role'] == 'system' and loop.first and ft.system -%}
    {%- set ft.turns = ft.turns + [{'role': 'system', 'content': turn['content'] ~ '\n\n' ~ ft.system}] -%}
  {%- else -%}
    {%- if loop.first and ft.system -%}INTRODUCE{%- endif -%}
    {%- if turn['tool_calls'] -%}
      {%- set ft.calls = '' -%}
      {%- for call in turn['tool_calls'] -%}
        {%- set function = call['function'] or call -%}
        {%- set given = function['arguments'] or {} -%}
        {%- set ft.calls = ft.calls ~ ('\n' if ft.calls else '') ~ '<tool_call>\n{"name": '
            ~ (function['name'] | tojson) ~ ', "arguments": ' ~ (given if given is string else given | tojson)
            ~ '}\n</tool_call>' -%}
      {%- endfor -%}
      {%- set said = turn['content'] ~ '\n' if turn['content'] else '' -%}
      {%- set ft.turns = ft.turns + [{'role': 'assistant', 'content': said ~ ft.calls}] -%}
    {%- elif turn['role'] == 'tool' -%}
      {%- set result = '<tool_response>\n' ~ turn['content'] ~ '\n</tool_response>' -%}
      {%- if ft.turns and ft.turns[-1]['tool'] -%}
        {%- set joined = ft.turns[-1]['content'] ~ '\n' ~ result -%}
        {%- set ft.turns = ft.turns[:-1] + [{'role': 'user', 'content': joined, 'tool': true}] -%}
      {%- else -%}
        {%- set ft.turns = ft.turns + [{'role': 'user', 'content': result, 'tool': true}] -%}
      {%- endif -%}
    {%- else -%}
      {%- set ft.turns = ft.turns + [turn] -%}
    {%- endif -%}
  {%- endif -%}
{%- endfor -%}
{%- set messages = ft.turns -%}{%- set tools = none %}""".replace("OFFER", OFFER)
)
NAME = "Zq7JxCall"
RESULT = "Zq7JxResult"
TOOL = {"type": "function", "function": {"name": NAME, "description": "d", "parameters": {"type": "object"}}}
ASKED: Sequence[Message] = ({"role": "user", "content": "q"},)
CALLED: Message = {
    "role": "assistant",
    "tool_calls": [{"type": "function", "id": "call00000", "function": {"name": NAME, "arguments": {}}}],
}
ANSWERED: Message = {"role": "tool", "content": RESULT, "name": NAME, "tool_call_id": "call00000"}
DONE: Message = {"role": "assistant", "content": "a"}


PROBES: Mapping[str, tuple[str, Sequence[Message], Sequence[Mapping[str, Any]] | None]] = {
    "offer": (NAME, ASKED, [TOOL]),
    "call": (NAME, (*ASKED, CALLED), None),
    "result": (RESULT, (*ASKED, CALLED, ANSWERED, DONE), None),
}
"""What a row may need of a template: the letters that must be written, and the conversation that shows it."""


def needs(example: Example) -> set[str]:
    """Whether a row offers tools, calls one, has the result of a call."""
    turns = (*example.messages, *example.chosen, *example.rejected)
    found = {"offer"} if example.tools else set()
    found |= {"call" for turn in turns if turn.get("tool_calls")}
    return found | {"result" for turn in turns if turn["role"] == "tool"}


def lacks(tokenizer: PreTrainedTokenizerFast, wanted: Iterable[str] = tuple(PROBES)) -> set[str]:
    """What of it the chat template passes over or refuses."""
    return {need for need in wanted if not _writes(tokenizer, *PROBES[need])}


def _writes(
    tokenizer: PreTrainedTokenizerFast,
    letters: str,
    turns: Sequence[Message],
    tools: Sequence[Mapping[str, Any]] | None,
) -> bool:
    try:
        return letters in apply(tokenizer, turns, tools)
    except MaskError:
        return False


def teach_tools(tokenizer: PreTrainedTokenizerFast) -> bool:
    """Put the prelude in front of a template; False where that does not help. A row without tools stays as it was."""
    template = tokenizer.chat_template
    if not isinstance(template, str):
        return False
    for introduce in (AS_SYSTEM, AS_USER):
        tokenizer.chat_template = PRELUDE.replace("INTRODUCE", introduce) + template
        if not lacks(tokenizer):
            return True
    tokenizer.chat_template = template
    return False


def taught(tokenizer: PreTrainedTokenizerFast) -> bool:
    """Whether the template was extended here."""
    return isinstance(tokenizer.chat_template, str) and tokenizer.chat_template.startswith(SIGN)
