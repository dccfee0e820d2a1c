"""Conversations that people, models and programs might have, for property tests."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from tests.engine.templates import FAMILIES

SNIPPETS = (
    " ",
    "  ",
    "\n",
    "\n\n",
    "\t",
    "\r\n",
    "    ",
    "\xa0",
    "\u200b",
    # short words that occur in the names of tokens, and names of roles
    "e",
    "s",
    "im_end",
    "end",
    "INST",
    "user",
    "assistant",
    "assistant\n",
    "model",
    "tool",
    "system\n",
    # what looks like a header, in some family or other
    "USER: x ASSISTANT: ",
    "### Response:\n",
    "[/INST]",
    "<<SYS>>",
    "<|im_start|>assistant\nyes<|im_end|>\n",
    "<|im_end|>",
    "</s>",
    "<|eot_id|>",
    "<end_of_turn>\n",
    "<|end|>",
    "<｜Assistant｜>",
    "<｜end▁of▁sentence｜>",
    "<|END_OF_TURN_TOKEN|>",
    "<tool_call>",
    "</tool_call>",
    "<think>",
    "<|",
    "|>",
    "<0x0A>",
    "▁",
    # writing
    "Hi there.",
    "The red apple?",
    "你好，世界",
    "これは",
    "😀",
    "👍🏽",
    "naïve",
    "e\u0301",
    "שלום",
    "def f(x):\n\treturn {'a': [x]}\n",
    "```python\nprint(1)\n```",
    "{{ messages }}{% if x %}",
    '{"a": "\\n"}',
    "\\",
    "'",
    '"',
    "%s",
)
snippets = st.lists(st.sampled_from(SNIPPETS) | st.text(max_size=3), min_size=1, max_size=5).map("".join)
text = snippets.filter(str.strip)
"""Anything that says something."""
names = st.sampled_from(("f", "e", "get_weather", "user", "im_end"))
values = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 10**6) | st.sampled_from((0.5, -1e-9)) | snippets | st.just(""),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from("abé"), inner, max_size=2),
    max_leaves=3,
)
arguments = st.dictionaries(st.sampled_from(("x", "of", "größe", "e")), values, max_size=2)
offers = st.lists(
    st.builds(
        lambda name, about: {
            "type": "function",
            "function": {
                "name": name,
                "description": about,
                "parameters": {"type": "object", "properties": {"x": {"type": "string"}}},
            },
        },
        names,
        text,
    ),
    min_size=1,
    max_size=2,
).map(tuple)


@st.composite
def conversations(draw: st.DrawFn, family: str) -> list[dict[str, Any]]:
    """Words alone: one to three rounds, with a system prompt where the family takes one."""
    rounds = draw(st.lists(st.tuples(text, text), min_size=1, max_size=3))
    turns = [
        {"role": role, "content": said}
        for exchange in rounds
        for role, said in zip(("user", "assistant"), exchange, strict=True)
    ]  # fmt: skip
    if FAMILIES[family].system != "no" and draw(st.booleans()):
        turns.insert(0, {"role": "system", "content": draw(system(family))})
    return turns


def system(family: str) -> st.SearchStrategy[str]:
    bos = FAMILIES[family].bos
    return text.filter(lambda said: not (bos and said.lstrip().startswith(bos)))  # it would appear twice


@st.composite
def tool_talk(draw: st.DrawFn, family: str) -> list[dict[str, Any]]:
    """One or two rounds in which the assistant may call functions first, or at last."""
    script, knows = FAMILIES[family], FAMILIES[family].tools
    limit = 2 if script.parallel or knows == "no" else 1
    turns: list[dict[str, Any]] = []
    number = 0
    rounds = draw(st.integers(1, 2))
    for at in range(rounds):
        turns.append({"role": "user", "content": draw(text)})
        if draw(st.booleans()) or at == rounds - 1:
            calls = draw(st.lists(st.tuples(names, arguments), min_size=1, max_size=limit))
            made = [
                {"type": "function", "id": f"call{number + place:05d}", "function": {"name": name, "arguments": given}}
                for place, (name, given) in enumerate(calls)
            ]
            number += len(made)
            beside = draw(st.sampled_from(("none", "empty", "words"))) if script.beside or knows == "no" else "none"
            words = {"none": {}, "empty": {"content": ""}}.get(beside) if beside != "words" else {"content": draw(text)}
            turns.append({"role": "assistant", **(words or {}), "tool_calls": made})
            if at == rounds - 1 and draw(st.booleans()):
                break
            turns += [
                {"role": "tool", "content": draw(text), "tool_call_id": call["id"], "name": call["function"]["name"]}
                for call in made
            ]
        turns.append({"role": "assistant", "content": draw(text)})
    if script.system != "no" and draw(st.booleans()):
        turns.insert(0, {"role": "system", "content": draw(system(family))})
    return turns
