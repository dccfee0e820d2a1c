"""Add tool support to chat templates that lack it: calls become text, as Hermes and Qwen write them.

Most templates print `message['content']` and silently ignore `tool_calls` and `tools`, so that calls would never be
learned. A prelude before the template rewrites the messages; the template itself is unchanged. The prelude is saved
with the tokenizer, so that every server renders what was trained.

    {"role": "assistant", "tool_calls": [...]}   <tool_call>\\n{"name": "f", "arguments": {...}}\\n</tool_call>
    {"role": "tool", "content": "..."}           <tool_response>\\n...\\n</tool_response>, as the user
    tools                                        in the system prompt, one JSON object per line (before the first
                                                 question if a template has no system prompt)

For a template that writes calls and results in its own way and ignores only `tools` (DeepSeek's), only these are added.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from transformers import PreTrainedTokenizerFast

from mlflow_ft.engine.tokens.render import MaskError, apply
from mlflow_ft.rows import Example, Message

SIGN = "{#- mlflow-ft: tools as text -#}"
OFFER = "You may call the functions below.HOW\n<tools>\n"
HOW = " Call one with a JSON object between <tool_call> and </tool_call>."
AS_SYSTEM = """
    {%- if turn['role'] == 'system' -%}
      {%- set turn = {'role': 'system', 'content': turn['content'] ~ '\n\n' ~ ft.offer} -%}
    {%- else -%}
      {%- set ft.turns = [{'role': 'system', 'content': ft.offer}] -%}
    {%- endif -%}
    {%- set ft.offer = '' -%}"""
AS_USER = """
    {%- if turn['role'] == 'user' -%}
      {%- set turn = {'role': 'user', 'content': ft.offer ~ '\n\n' ~ turn['content']} -%}
      {%- set ft.offer = '' -%}
    {%- endif -%}"""
"""For a template that rejects or drops a system prompt: the tools come before the user's first words."""
CALLS = """
  {%- if turn['tool_calls'] -%}
    {%- set ft.calls = turn['content'] or '' -%}
    {%- for call in turn['tool_calls'] -%}
      {%- set function = call['function'] or call -%}
      {%- set given = function['arguments'] or {} -%}
      {%- set ft.calls = ft.calls ~ ('\n' if ft.calls else '') ~ '<tool_call>\n{"name": '
          ~ (function['name'] | tojson) ~ ', "arguments": ' ~ (given if given is string else given | tojson)
          ~ '}\n</tool_call>' -%}
    {%- endfor -%}
    {%- set turn = {'role': 'assistant', 'content': ft.calls} -%}
  {%- elif turn['role'] == 'tool' -%}
    {%- set result = '<tool_response>\n' ~ (turn['content'] or '') ~ '\n</tool_response>' -%}
    {%- if ft.turns and ft.turns[-1]['result'] -%}
      {%- set result = ft.turns[-1]['content'] ~ '\n' ~ result -%}
      {%- set ft.turns = ft.turns[:-1] -%}
    {%- endif -%}
    {%- set turn = {'role': 'user', 'content': result, 'result': true} -%}
  {%- endif -%}"""
PRELUDE = """{%- set ft = namespace(turns=[], offer='', calls='') -%}
{%- if tools -%}
  {%- set ft.offer = 'OFFER' -%}
  {%- for tool in tools -%}{%- set ft.offer = ft.offer ~ (tool | tojson) ~ '\n' -%}{%- endfor -%}
  {%- set ft.offer = ft.offer ~ '</tools>' -%}
{%- endif -%}
{%- for turn in messages -%}
  {%- if ft.offer -%}PLACE
  {%- endif -%}CALLS
  {%- set ft.turns = ft.turns + [turn] -%}
{%- endfor -%}
{%- set messages = ft.turns -%}{%- set tools = none %}
"""
"""Ends with a line end, which Jinja removes, so that the template still begins at the start of a line."""

NAME, ARGUMENT, RESULT = "Zq7JxCall", "Zq7JxArgument", "Zq7JxResult"
TOOL = {"type": "function", "function": {"name": NAME, "description": "d", "parameters": {"type": "object"}}}
ASKED: Sequence[Message] = ({"role": "user", "content": "q"},)
CALLED: Message = {
    "role": "assistant",
    "tool_calls": [{"type": "function", "id": "call00000", "function": {"name": NAME, "arguments": {"of": ARGUMENT}}}],
}
ANSWERED: Message = {"role": "tool", "content": RESULT, "name": NAME, "tool_call_id": "call00000"}
DONE: Message = {"role": "assistant", "content": "a"}


PROBES: Mapping[str, tuple[tuple[str, ...], Sequence[Message], Sequence[Mapping[str, Any]] | None]] = {
    "offer": ((NAME,), ASKED, [TOOL]),
    "call": ((NAME, ARGUMENT), (*ASKED, CALLED), None),
    "result": ((RESULT,), (*ASKED, CALLED, ANSWERED, DONE), None),
}
"""What a row may need: for each, the words that must be written, and the turns and tools to test it with."""


def needs(example: Example) -> set[str]:
    """Which of "offer", "call" and "result" a row needs: tools, calls, results of calls."""
    turns = (*example.messages, *example.chosen, *example.rejected)
    needed = {"offer"} if example.tools else set()
    needed |= {"call" for turn in turns if turn.get("tool_calls")}
    return needed | {"result" for turn in turns if turn["role"] == "tool"}


def lacks(tokenizer: PreTrainedTokenizerFast) -> set[str]:
    """Which of these the chat template ignores or rejects."""
    return {need for need, probe in PROBES.items() if not _writes(tokenizer, *probe)}


def _writes(
    tokenizer: PreTrainedTokenizerFast,
    letters: Sequence[str],
    turns: Sequence[Message],
    tools: Sequence[Mapping[str, Any]] | None,
) -> bool:
    try:
        text = apply(tokenizer, turns, tools)
    except MaskError:
        return False
    return all(word in text for word in letters)


def teach_tools(tokenizer: PreTrainedTokenizerFast) -> set[str]:
    """Put a prelude before a template that lacks tool support; rows without tools are rendered as before.

    Returns what the template still lacks: nothing, or as much as before if a prelude does not help.
    """
    missing, template = lacks(tokenizer), tokenizer.chat_template
    if not missing or not isinstance(template, str):
        return missing
    calls, how = ("", "") if missing == {"offer"} else (CALLS, HOW)
    for place in (AS_SYSTEM, AS_USER):
        prelude = PRELUDE.replace("CALLS", calls).replace("PLACE", place).replace("OFFER", OFFER.replace("HOW", how))
        tokenizer.chat_template = SIGN + prelude + template
        if not lacks(tokenizer):
            return set()
    tokenizer.chat_template = template
    return missing


def taught(tokenizer: PreTrainedTokenizerFast) -> bool:
    """Whether this module extended the template."""
    return isinstance(tokenizer.chat_template, str) and tokenizer.chat_template.startswith(SIGN)
