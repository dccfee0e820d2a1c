"""Rows as well-known data sets have them are recognised and read right, or refused in words that help.

The columns are those of the data sets; the words in them are ours. `talk("u:ask", "a:say")` is a conversation.
"""

from __future__ import annotations

import contextlib
import csv
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from mlflow_ft import Example, Message, plugins
from mlflow_ft.builtin import formats
from mlflow_ft.config.schema import DataSection
from mlflow_ft.data.reading import readers
from mlflow_ft.data.recognising import convert
from mlflow_ft.data.recognising.recognition import Recogniser
from mlflow_ft.errors import DataError
from mlflow_ft.registry import Registry
from mlflow_ft.rows import Row

LOADED = plugins.load({})
REGISTRY = Registry(LOADED)
ROLES = {"s": "system", "u": "user", "a": "assistant", "t": "tool"}
WEATHER = {"name": "weather", "description": "Tells the weather.", "parameters": {"type": "object"}}
TOOLS = ({"type": "function", "function": WEATHER},)


def turns(*said: str) -> tuple[Message, ...]:
    return tuple({"role": ROLES[words[0]], "content": words[2:]} for words in said)


def talk(*said: str, **more: Any) -> Example:
    return Example(messages=turns(*said), **more)


def choice(*said: str, good: str = "a:good", bad: str = "a:bad", **more: Any) -> Example:
    return Example(messages=turns(*said), chosen=turns(good), rejected=turns(bad), **more)


def role(*said: str) -> list[dict[str, Any]]:
    return [dict(turn) for turn in turns(*said)]


def swapped(*said: str) -> list[dict[str, Any]]:
    """Turns as Parquet has them, their keys in alphabetical order."""
    return [{"content": turn["content"], "role": turn["role"]} for turn in turns(*said)]


def sharegpt(*said: str, **more: Any) -> list[dict[str, Any]]:
    names = {"s": "system", "u": "human", "a": "gpt", "t": "observation", "f": "function_call"}
    return [{"from": names[words[0]], "value": words[2:], **more} for words in said]


def rows(*values: Mapping[str, Any]) -> list[Row]:
    return [Row(values=value, file="rows.jsonl", line=number) for number, value in enumerate(values, 1)]


def recognise(*values: Mapping[str, Any], **given: Any) -> str:
    section = DataSection(**given)
    return Recogniser(settings=section, plugins=LOADED, registry=REGISTRY).recognise(rows(*values)).name


def read(name: str, values: Mapping[str, Any]) -> Example:
    return REGISTRY.formats[name].convert(values)


ASKED = talk("u:ask", "a:say")
HH = "\n\nHuman: ask\n\nAssistant: "
CALL = [{"name": "weather", "arguments": {"city": "Bonn"}}]
CALLED = {"type": "function", "id": "call00000", "function": CALL[0]}
CALLING = Example(
    messages=(
        {"role": "user", "content": "ask"},
        {"role": "assistant", "tool_calls": [CALLED]},
        {"role": "tool", "content": "rain", "tool_call_id": "call00000", "name": "weather"},
        {"role": "assistant", "content": "say"},
    ),
    tools=TOOLS,
)

# name -> (format, row, what is read)
Known = Mapping[str, tuple[str, Mapping[str, Any], Example]]
CONVERSATIONS: Known = {
    "HuggingFaceH4/ultrachat_200k": (
        "messages",
        {"prompt": "ask", "prompt_id": "f0e3", "messages": swapped("u:ask", "a:say", "u:more", "a:again")},
        talk("u:ask", "a:say", "u:more", "a:again"),
    ),
    "HuggingFaceH4/no_robots": (
        "messages",
        {"prompt": "ask", "prompt_id": "f0", "messages": swapped("s:rule", "u:ask", "a:say"), "category": "Chat"},
        talk("s:rule", "u:ask", "a:say"),
    ),
    "HuggingFaceH4/oasst1_en": ("messages", {"messages": swapped("u:ask", "a:say")}, ASKED),
    "HuggingFaceTB/smoltalk": ("messages", {"messages": swapped("u:ask", "a:say"), "source": "magpie"}, ASKED),
    "allenai/tulu-3-sft-mixture": (
        "messages",
        {"id": "oasst1_1", "messages": swapped("u:ask", "a:say"), "source": "ai2-adapt-dev/oasst1_converted"},
        ASKED,
    ),
    "trl-lib/Capybara": ("messages", {"source": "x", "messages": swapped("u:ask", "a:say"), "num_turns": 1}, ASKED),
    "LDJnr/Capybara": (
        "sharegpt",
        {"source": "x", "conversation": [{"input": "ask", "output": "say"}, {"input": "more", "output": "again"}]},
        talk("u:ask", "a:say", "u:more", "a:again"),
    ),
    "YeungNLP/moss-003-sft-data": (
        "sharegpt",
        {"conversation_id": 1, "category": "Code", "conversation": [{"human": "ask", "assistant": "say"}]},
        ASKED,
    ),
    "lmsys/lmsys-chat-1m": (
        "messages",
        {
            "conversation_id": "c1",
            "model": "vicuna-13b",
            "conversation": swapped("u:ask", "a:say"),
            "turn": 1,
            "language": "English",
            "openai_moderation": [{"categories": {"hate": False}, "flagged": False}],
            "redacted": False,
        },
        ASKED,
    ),
    "Open-Orca/SlimOrca": (
        "sharegpt",
        {
            "conversations": [
                {"from": "system", "value": "rule", "weight": None},
                {"from": "human", "value": "ask", "weight": 0.0},
                {"from": "gpt", "value": "say", "weight": 1.0},
            ]
        },
        talk("s:rule", "u:ask", "a:say"),
    ),
    "teknium/OpenHermes-2.5": (
        "sharegpt",
        {
            "custom_instruction": None,
            "topic": None,
            "model_name": None,
            "model": None,
            "skip_prompt_formatting": False,
            "category": "orca",
            "conversations": [
                {"from": "human", "value": "ask", "weight": None},
                {"from": "gpt", "value": "say", "weight": None},
            ],
            "views": None,
            "language": None,
            "id": None,
            "title": None,
            "system_prompt": None,
            "source": "airoboros2.2",
        },
        ASKED,
    ),
    "anon8231489123/ShareGPT_Vicuna_unfiltered": (
        "sharegpt",
        {"id": "QWJhYvA_0", "conversations": sharegpt("u:ask", "a:say")},
        ASKED,
    ),
    "anon8231489123/ShareGPT_Vicuna_unfiltered, a part that begins with the answer": (
        "sharegpt",
        {"id": "QWJhYvA_17", "conversations": sharegpt("a:say", "u:more", "a:again")},
        talk(
            "a:say",
            "u:more",
            "a:again",
            learned=(False, False, True),
            notes=("the conversation begins with the assistant; that turn is read, not learned",),
        ),
    ),
    "WizardLMTeam/WizardLM_evol_instruct_V2_196k": (
        "sharegpt",
        {"idx": "B1", "conversations": sharegpt("u:ask", "a:say")},
        ASKED,
    ),
    "Magpie-Align/Magpie-Pro-300K-Filtered": (
        "sharegpt",
        {
            "uuid": "u1",
            "instruction": "ask",
            "response": "say",
            "conversations": sharegpt("u:ask", "a:say"),
            "gen_input_configs": {"temperature": 1.0},
            "task_category": "Math",
            "input_quality": "good",
        },
        ASKED,
    ),
    "BAAI/Infinity-Instruct": (
        "sharegpt",
        {
            "id": 1,
            "conversations": sharegpt("u:ask", "a:say"),
            "label": {"ability_en": ["math"], "cate_ability_en": ["reasoning"]},
            "langdetect": "en",
            "source": "flan",
        },
        ASKED,
    ),
    "THUDM/AgentInstruct": (
        "sharegpt",
        {
            "id": "os_0",
            "conversations": [
                {"from": "human", "value": "ask", "loss": None},
                {"from": "gpt", "value": "yes", "loss": False},
                {"from": "human", "value": "go", "loss": None},
                {"from": "gpt", "value": "say", "loss": True},
            ],
        },
        talk("u:ask", "a:yes", "u:go", "a:say", learned=(False, False, False, True)),
    ),
    "open-thoughts/OpenThoughts-114k": (
        "sharegpt",
        {"system": "rule", "conversations": [{"from": "user", "value": "ask"}, {"from": "assistant", "value": "say"}]},
        talk("s:rule", "u:ask", "a:say"),
    ),
    "AI-MO/NuminaMath-CoT": (
        "messages",
        {"source": "cn_k12", "problem": "ask", "solution": "say", "messages": swapped("u:ask", "a:say")},
        ASKED,
    ),
    "open-r1/OpenR1-Math-220k": (
        "messages",
        {
            "problem": "ask",
            "solution": "by hand",
            "answer": "2",
            "problem_type": "Algebra",
            "question_type": "math-word-problem",
            "source": "olympiads",
            "uuid": "u1",
            "is_reasoning_complete": [True, True],
            "generations": ["<think>a</think>b", "<think>c</think>d"],
            "correctness_math_verify": [True, False],
            "correctness_llama": None,
            "finish_reasons": None,
            "correctness_count": 1,
            "messages": swapped("u:ask", "a:<think>a</think>b"),
        },
        talk("u:ask", "a:<think>a</think>b"),
    ),
    "llamafactory/glaive_toolcall_en": (
        "sharegpt",
        {
            "conversations": sharegpt("u:ask", f"f:{json.dumps(CALL[0])}", "t:rain", "a:say"),
            "tools": json.dumps([WEATHER]),
        },
        CALLING,
    ),
    "NousResearch/hermes-function-calling-v1": (
        "sharegpt",
        {
            "id": "1",
            "conversations": [
                *sharegpt("s:rule", "u:ask", "a:<tool_call>\n{}\n</tool_call>"),
                {"from": "tool", "value": "rain"},
                *sharegpt("a:say"),
            ],
            "tools": json.dumps([{"type": "function", "function": WEATHER}]),
            "category": "Weather",
        },
        talk("s:rule", "u:ask", "a:<tool_call>\n{}\n</tool_call>", "t:rain", "a:say", tools=TOOLS),
    ),
    "Team-ACE/ToolACE": (
        "sharegpt",
        {
            "system": "You may call functions.",
            "conversations": [
                {"from": "user", "value": "ask"},
                {"from": "assistant", "value": '[weather(city="Bonn")]'},
                {"from": "tool", "value": "[]"},
                {"from": "assistant", "value": "say"},
            ],
        },
        talk("s:You may call functions.", "u:ask", 'a:[weather(city="Bonn")]', "t:[]", "a:say"),
    ),
    "OpenAI fine-tuning, with tools": (
        "messages",
        {
            "messages": [
                {"role": "user", "content": "ask"},
                {
                    "role": "assistant",
                    "content": None,
                    "tool_calls": [
                        {
                            "id": "call_1",
                            "type": "function",
                            "function": {"name": "weather", "arguments": '{"city": "Bonn"}'},
                        }
                    ],
                },
                {"role": "tool", "tool_call_id": "call_1", "content": "rain"},
                {"role": "assistant", "content": "say", "weight": 1},
            ],
            "parallel_tool_calls": False,
            "tools": [{"type": "function", "function": WEATHER}],
        },
        Example(
            messages=(
                {"role": "user", "content": "ask"},
                {"role": "assistant", "tool_calls": [CALLED | {"id": "call_1"}]},
                {"role": "tool", "content": "rain", "tool_call_id": "call_1"},
                {"role": "assistant", "content": "say"},
            ),
            tools=TOOLS,
        ),
    ),
    "OpenAI fine-tuning, with functions": (
        "messages",
        {
            "messages": [
                {"role": "user", "content": "ask"},
                {"role": "assistant", "function_call": {"name": "weather", "arguments": '{"city": "Bonn"}'}},
                {"role": "function", "name": "weather", "content": "rain"},
                {"role": "assistant", "content": "say"},
            ],
            "functions": [WEATHER],
        },
        Example(
            messages=(
                {"role": "user", "content": "ask"},
                {"role": "assistant", "tool_calls": [{"type": "function", "function": CALL[0]}]},
                {"role": "tool", "content": "rain", "name": "weather"},
                {"role": "assistant", "content": "say"},
            ),
            tools=TOOLS,
        ),
    ),
    "Axolotl, with turns that are not trained on": (
        "messages",
        {
            "messages": [
                {"role": "user", "content": "ask", "training": False},
                {"role": "assistant", "content": "hm", "training": False},
                {"role": "user", "content": "go", "training": False},
                {"role": "assistant", "content": "say", "training": True},
            ]
        },
        talk("u:ask", "a:hm", "u:go", "a:say", learned=(False, False, False, True)),
    ),
}

PAIRS: Known = {
    "tatsu-lab/alpaca": (
        "alpaca",
        {"instruction": "ask", "input": "", "output": "say", "text": "Below is ... ### Response:\nsay"},
        ASKED,
    ),
    "yahma/alpaca-cleaned": (
        "alpaca",
        {"output": "say", "input": "this", "instruction": "ask"},
        talk("u:ask\n\nthis", "a:say"),
    ),
    "sahil2801/CodeAlpaca-20k": ("alpaca", {"output": "say", "instruction": "ask", "input": ""}, ASKED),
    "garage-bAInd/Open-Platypus": (
        "alpaca",
        {"input": "", "output": "say", "instruction": "ask", "data_source": "scibench"},
        ASKED,
    ),
    "WizardLMTeam/WizardLM_evol_instruct_70k": ("alpaca", {"instruction": "ask", "output": "say"}, ASKED),
    "TIGER-Lab/MathInstruct": ("alpaca", {"source": "cot/x", "output": "say", "instruction": "ask"}, ASKED),
    "iamtarun/python_code_instructions_18k_alpaca": (
        "alpaca",
        {"instruction": "ask", "input": "", "output": "say", "prompt": "Below is ... ### Output:\nsay"},
        ASKED,
    ),
    "BelleGroup/generated_chat_0.4M": ("alpaca", {"instruction": "ask", "input": "", "output": "say"}, ASKED),
    "LLaMA-Factory alpaca, with history and system": (
        "alpaca",
        {"instruction": "ask", "input": "", "output": "say", "system": "rule", "history": [["hi", "ho"], ["a", "b"]]},
        talk("s:rule", "u:hi", "a:ho", "u:a", "a:b", "u:ask", "a:say"),
    ),
    "databricks/databricks-dolly-15k": (
        "instruction-response",
        {"instruction": "ask", "context": "this", "response": "say", "category": "closed_qa"},
        talk("u:ask\n\nthis", "a:say"),
    ),
    "ise-uiuc/Magicoder-Evol-Instruct-110K": ("instruction-response", {"instruction": "ask", "response": "say"}, ASKED),
    "teknium/GPTeacher-General-Instruct": (
        "instruction-response",
        {"instruction": "ask", "input": "this", "response": "say"},
        talk("u:ask\n\nthis", "a:say"),
    ),
    "bitext/Bitext-customer-support-llm-chatbot-training-dataset": (
        "instruction-response",
        {"flags": "B", "instruction": "ask", "category": "ORDER", "intent": "cancel_order", "response": "say"},
        ASKED,
    ),
    "suolyer/webqa": ("instruction-response", {"id": 1, "input": "ask", "output": "say"}, ASKED),
    "nvidia/OpenCodeReasoning": (
        "instruction-response",
        {
            "id": "1",
            "input": "ask",
            "output": "<think>hm</think>say",
            "source": "taco",
            "license": "mit",
            "dataset": "taco",
            "split": "train",
            "difficulty": "EASY",
            "solution": "say",
        },
        talk("u:ask", "a:<think>hm</think>say"),
    ),
    "nvidia/Llama-Nemotron-Post-Training-Dataset": (
        "instruction-response",
        {
            "input": [{"role": "user", "content": "ask"}],
            "output": "say",
            "category": "math",
            "license": "cc-by-4.0",
            "reasoning": "on",
            "generator": "DeepSeek-R1",
            "used_in_training": "Ultra",
            "version": "v1.1",
            "system_prompt": "detailed thinking on",
        },
        talk("s:detailed thinking on", "u:ask", "a:say"),
    ),
    "HuggingFaceH4/CodeAlpaca_20K": ("prompt-completion", {"prompt": "ask", "completion": "say"}, ASKED),
    "trl-lib/tldr": (
        "prompt-completion",
        {"prompt": "SUBREDDIT: r/x\n\nPOST: y\n\nTL;DR:", "completion": " say"},
        talk("u:SUBREDDIT: r/x\n\nPOST: y\n\nTL;DR:", "a: say"),
    ),
    "trl-internal-testing/zen, conversational_prompt_completion": (
        "prompt-completion",
        {"prompt": swapped("u:ask"), "completion": swapped("a:say")},
        ASKED,
    ),
    "nvidia/HelpSteer": (
        "prompt-completion",
        {
            "prompt": "ask",
            "response": "say",
            "helpfulness": 4,
            "correctness": 4,
            "coherence": 4,
            "complexity": 2,
            "verbosity": 1,
        },
        ASKED,
    ),
    "Open-Orca/OpenOrca": (
        "question-answer",
        {"id": "niv.1", "system_prompt": "rule", "question": "ask", "response": "say"},
        talk("s:rule", "u:ask", "a:say"),
    ),
    "openai/gsm8k": (
        "question-answer",
        {"question": "ask", "answer": "1+1=<<1+1=2>>2\n#### 2"},
        talk("u:ask", "a:1+1=<<1+1=2>>2\n#### 2"),
    ),
    "meta-math/MetaMathQA": (
        "question-answer",
        {"type": "GSM_Rephrased", "query": "ask", "original_question": "first", "response": "say"},
        ASKED,
    ),
    "microsoft/orca-math-word-problems-200k": ("question-answer", {"question": "ask", "answer": "say"}, ASKED),
    "m-a-p/CodeFeedback-Filtered-Instruction": (
        "question-answer",
        {"query": "ask", "answer": "say", "resource": "evol", "lang": "python"},
        ASKED,
    ),
    "TIGER-Lab/WebInstructSub": (
        "question-answer",
        {"orig_question": "q", "orig_answer": "a", "question": "ask", "answer": "say", "source": "x", "index": 1},
        ASKED,
    ),
    "ise-uiuc/Magicoder-OSS-Instruct-75K": (
        "question-answer",
        {"lang": "python", "raw_index": 1, "index": 1, "seed": "x", "problem": "ask", "solution": "say"},
        ASKED,
    ),
    "lighteval/MATH": (
        "question-answer",
        {"problem": "ask", "level": "Level 5", "type": "Algebra", "solution": "say"},
        ASKED,
    ),
    "b-mc2/sql-create-context": (
        "question-answer",
        {"question": "ask", "context": "CREATE TABLE t (x INTEGER)", "answer": "SELECT x FROM t"},
        talk("u:ask\n\nCREATE TABLE t (x INTEGER)", "a:SELECT x FROM t"),
    ),
    "Salesforce/xlam-function-calling-60k": (
        "question-answer",
        {"id": 0, "query": "ask", "answers": json.dumps(CALL), "tools": json.dumps([WEATHER])},
        Example(
            messages=({"role": "user", "content": "ask"}, {"role": "assistant", "tool_calls": [CALLED]}), tools=TOOLS
        ),
    ),
}

TEXTS: Known = {
    "Salesforce/wikitext": ("text", {"text": " = Title = \n"}, Example(text=" = Title = \n")),
    "allenai/c4": ("text", {"text": "words", "timestamp": "2019-04-25T12:57:54Z", "url": "x"}, Example(text="words")),
    "HuggingFaceFW/fineweb": (
        "text",
        {
            "text": "words",
            "id": "<urn:uuid:1>",
            "dump": "CC-MAIN-2013-20",
            "url": "x",
            "date": "2013-05-18T05:48:54Z",
            "file_path": "s3://x",
            "language": "en",
            "language_score": 0.92,
            "token_count": 142,
        },
        Example(text="words"),
    ),
    "wikimedia/wikipedia": ("text", {"id": "1", "url": "x", "title": "T", "text": "words"}, Example(text="words")),
    "timdettmers/openassistant-guanaco": (
        "text",
        {"text": "### Human: ask### Assistant: say"},
        Example(text="### Human: ask### Assistant: say"),
    ),
    "monology/pile-uncopyrighted": (
        "text",
        {"text": "words", "meta": {"pile_set_name": "Pile-CC"}},
        Example(text="words"),
    ),
}

PREFERENCES: Known = {
    "HuggingFaceH4/ultrafeedback_binarized": (
        "preference",
        {
            "prompt": "ask",
            "prompt_id": "p1",
            "chosen": swapped("u:ask", "a:good"),
            "rejected": swapped("u:ask", "a:bad"),
            "messages": swapped("u:ask", "a:good"),
            "score_chosen": 8.5,
            "score_rejected": 4.0,
        },
        choice("u:ask"),
    ),
    "trl-lib/ultrafeedback_binarized": (
        "preference",
        {
            "chosen": swapped("u:ask", "a:good"),
            "rejected": swapped("u:ask", "a:bad"),
            "score_chosen": 8.0,
            "score_rejected": 6.0,
        },
        choice("u:ask"),
    ),
    "Anthropic/hh-rlhf": ("preference", {"chosen": f"{HH}good", "rejected": f"{HH}bad"}, choice("u:ask")),
    "Anthropic/hh-rlhf, several turns": (
        "preference",
        {"chosen": f"{HH}hm\n\nHuman: more\n\nAssistant: good", "rejected": f"{HH}hm\n\nHuman: more\n\nAssistant: bad"},
        choice("u:ask", "a:hm", "u:more"),
    ),
    "Dahoas/full-hh-rlhf": (
        "preference",
        {"prompt": HH.rstrip(" "), "response": " good", "chosen": " good", "rejected": " bad"},
        choice("u:ask", good="a: good", bad="a: bad"),
    ),
    "Intel/orca_dpo_pairs": (
        "preference",
        {"system": "rule", "question": "ask", "chosen": "good", "rejected": "bad"},
        choice("s:rule", "u:ask"),
    ),
    "Intel/orca_dpo_pairs, without a system prompt": (
        "preference",
        {"system": "", "question": "ask", "chosen": "good", "rejected": "bad"},
        choice("u:ask"),
    ),
    "argilla/dpo-mix-7k": (
        "preference",
        {
            "dataset": "argilla/ultrafeedback",
            "chosen": swapped("u:ask", "a:hm", "u:more", "a:good"),
            "chosen_rating": 5.0,
            "rejected": swapped("u:ask", "a:hm", "u:more", "a:bad"),
            "rejected_rating": 4.0,
        },
        choice("u:ask", "a:hm", "u:more"),
    ),
    "argilla/distilabel-intel-orca-dpo-pairs": (
        "preference",
        {
            "system": "rule",
            "input": "ask",
            "chosen": "good",
            "rejected": "bad",
            "generations": ["good", "bad"],
            "order": ["chatgpt", "llama2"],
            "rating": [9.0, 5.0],
            "status": "unchanged",
            "original_chosen": "good",
            "original_rejected": "bad",
            "chosen_score": 9.0,
            "in_gsm8k_train": False,
        },
        choice("s:rule", "u:ask"),
    ),
    "argilla/distilabel-capybara-dpo-7k-binarized": (
        "preference",
        {
            "source": "Know-Logic",
            "conversation": [{"input": "ask", "output": "from the source"}],
            "original_response": "from the source",
            "generation_prompt": ["<s> [INST] ask [/INST]"],
            "raw_generation_responses": ["good", "bad"],
            "new_generations": ["good", "bad"],
            "prompt": "...",
            "chosen": swapped("u:ask", "a:good"),
            "rejected": swapped("u:ask", "a:bad"),
            "rating_chosen": 5,
            "rating_rejected": 3,
        },
        choice("u:ask"),
    ),
    "mlabonne/orpo-dpo-mix-40k": (
        "preference",
        {
            "source": "Airoboros",
            "chosen": swapped("u:ask", "a:good"),
            "rejected": swapped("u:ask", "a:bad"),
            "prompt": "ask",
            "question": "ask",
        },
        choice("u:ask"),
    ),
    "jondurbin/truthy-dpo-v0.1": (
        "preference",
        {"id": "1", "source": "truthy_dpo", "system": "rule", "prompt": "ask", "chosen": "good", "rejected": "bad"},
        choice("s:rule", "u:ask"),
    ),
    "snorkelai/Snorkel-Mistral-PairRM-DPO-Dataset": (
        "preference",
        {
            "prompt_id": "1",
            "prompt": "ask",
            "chosen": swapped("u:ask", "a:good"),
            "rejected": swapped("u:ask", "a:bad"),
            "all_generated_responses": ["good", "bad"],
            "all_rm_scores": [0.5, -0.5],
        },
        choice("u:ask"),
    ),
    "CarperAI/openai_summarize_comparisons": (
        "preference",
        {"prompt": "ask", "chosen": "good", "rejected": "bad"},
        choice("u:ask"),
    ),
    "openbmb/UltraInteract_pair": (
        "preference",
        {
            "task": "Math_CoT",
            "dataset": "mathqa",
            "trajectory": [{"from": "user", "value": "ask"}],
            "chosen": "Step 1: good",
            "rejected": "Step 1: bad",
            "id": "1",
            "parent_id": "0",
        },
        choice("u:ask", good="a:Step 1: good", bad="a:Step 1: bad"),
    ),
    "LLaMA-Factory alpaca, of preferences": (
        "preference",
        {"instruction": "ask", "input": "this", "chosen": "good", "rejected": "bad"},
        choice("u:ask\n\nthis"),
    ),
    "LLaMA-Factory ShareGPT, of preferences": (
        "preference",
        {
            "conversations": sharegpt("u:ask", "a:hm", "u:more"),
            "chosen": sharegpt("a:good")[0],
            "rejected": sharegpt("a:bad")[0],
        },
        choice("u:ask", "a:hm", "u:more"),
    ),
    "llamafactory/ultrafeedback_binarized": (
        "preference",
        {"instruction": "ask", "chosen": "good", "rejected": "bad"},
        choice("u:ask"),
    ),
    "trl-internal-testing/zen, standard_implicit_prompt_preference": (
        "preference",
        {"chosen": "The sky is blue.", "rejected": "The sky is green."},
        choice(
            "u:The sky is",
            good="a:blue.",
            bad="a:green.",
            notes=("no column holds the prompt: the words that both answers begin with are used as the prompt",),
        ),
    ),
}

JUDGED: Known = {
    "trl-lib/kto-mix-14k": (
        "unpaired-preference",
        {"prompt": swapped("u:ask"), "completion": swapped("a:say"), "label": True},
        talk("u:ask", "a:say", label=True, learned=(False, True)),
    ),
    "argilla/kto-mix-15k": (
        "unpaired-preference",
        {
            "dataset": "x",
            "prompt": "ask",
            "completion": swapped("u:ask", "a:say"),
            "rating": 2.0,
            "label": False,
        },
        talk("u:ask", "a:say", label=False, learned=(False, True)),
    ),
    "argilla/ultrafeedback-binarized-preferences-cleaned-kto": (
        "unpaired-preference",
        {"source": "x", "prompt": "ask", "completion": "say", "label": False, "rating": 2.0, "model": "llama"},
        talk("u:ask", "a:say", label=False, learned=(False, True)),
    ),
    "LLaMA-Factory kto_en_demo": (
        "unpaired-preference",
        {"messages": swapped("u:ask", "a:say", "u:more", "a:again"), "label": True},
        talk("u:ask", "a:say", "u:more", "a:again", label=True, learned=(False, False, False, True)),
    ),
    "LLaMA-Factory alpaca, with kto_tag": (
        "unpaired-preference",
        {"instruction": "ask", "input": "this", "output": "say", "kto_tag": False},
        talk("u:ask\n\nthis", "a:say", label=False, learned=(False, True)),
    ),
}

PROMPTS: Known = {
    "trl-lib/ultrafeedback-prompt": ("prompt-only", {"prompt": swapped("u:ask")}, talk("u:ask")),
    "trl-lib/DeepMath-103K": (
        "prompt-only",
        {"prompt": swapped("u:ask"), "solution": "2"},
        talk("u:ask", columns={"solution": "2"}),
    ),
    "allenai/RLVR-GSM": (
        "prompt-only",
        {"messages": swapped("u:ask"), "ground_truth": "2", "dataset": "gsm8k"},
        talk("u:ask", columns={"ground_truth": "2", "dataset": "gsm8k"}),
    ),
    "BytedTsinghua-SIA/DAPO-Math-17k": (
        "prompt-only",
        {
            "data_source": "math_dapo",
            "prompt": swapped("u:ask"),
            "ability": "MATH",
            "reward_model": {"ground_truth": "34", "style": "rule-lighteval/MATH_v2"},
            "extra_info": {"index": "9a9b"},
        },
        talk(
            "u:ask",
            columns={
                "data_source": "math_dapo",
                "ability": "MATH",
                "reward_model": {"ground_truth": "34", "style": "rule-lighteval/MATH_v2"},
                "extra_info": {"index": "9a9b"},
            },
        ),
    ),
    "TRL's GRPO guide": ("prompt-only", {"prompt": "ask", "answer": "2"}, talk("u:ask", columns={"answer": "2"})),
    "CarperAI/openai_summarize_tldr": (
        "prompt-only",
        {"prompt": "ask", "label": "a summary"},
        talk("u:ask", columns={"label": "a summary"}),
    ),
    "berkeley-nest/Nectar": (
        "prompt-only",
        {"prompt": HH, "answers": [{"answer": "x", "model": "gpt-4", "rank": 1.0}], "turns": 1, "num_responses": 7},
        talk(
            "u:ask",
            columns={"answers": [{"answer": "x", "model": "gpt-4", "rank": 1.0}], "turns": 1, "num_responses": 7},
        ),
    ),
    "PKU-Alignment/PKU-SafeRLHF": (
        "prompt-only",
        {"prompt": "ask", "response_0": "x", "response_1": "y", "safer_response_id": 0},
        talk("u:ask", columns={"response_0": "x", "response_1": "y", "safer_response_id": 0}),
    ),
}
KNOWN: Known = {**CONVERSATIONS, **PAIRS, **TEXTS, **PREFERENCES, **JUDGED, **PROMPTS}
KIND_OF = {"text": "text", "preference": "preference", "unpaired-preference": "unpaired", "prompt-only": "prompt"}


@pytest.mark.parametrize("name", KNOWN)
def test_a_known_data_set_is_recognised_and_read_right(name: str) -> None:
    format_, values, expected = KNOWN[name]
    assert recognise(values, values) == format_
    assert read(format_, values) == expected
    assert REGISTRY.formats[format_].kind == expected.kind == KIND_OF.get(format_, "conversation")


@pytest.mark.parametrize("name", KNOWN)
def test_it_is_recognised_among_rows_that_lack_something(name: str) -> None:
    """Arrow gives every row the columns that others have; nothing stands in them."""
    format_, values, _ = KNOWN[name]
    assert recognise(dict.fromkeys(values), values, dict.fromkeys(values)) == format_


@pytest.mark.parametrize("name", KNOWN)
def test_it_is_read_the_same_out_of_a_csv_file(name: str, tmp_path: Path) -> None:
    format_, values, expected = KNOWN[name]
    file = tmp_path / "rows.csv"
    with file.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, list(values))
        writer.writeheader()
        writer.writerow({column: cell(value) for column, value in values.items()})
    [row] = readers.read_file(file)
    assert isinstance(row, Row)
    assert recognise(row.values) == format_
    example = read(format_, row.values)
    assert example.columns.keys() == expected.columns.keys()
    assert without_columns(example) == without_columns(expected)


def cell(value: Any) -> str:
    """A value as pandas or a spreadsheet writes it."""
    if value is None:
        return ""
    return json.dumps(value) if isinstance(value, list | dict) else str(value)


def without_columns(example: Example) -> tuple[Any, ...]:
    message = example
    return (
        message.messages,
        message.tools,
        message.learned,
        message.chosen,
        message.rejected,
        message.label,
        message.text,
        message.notes,
    )


@pytest.mark.parametrize("name", KNOWN)
def test_it_is_read_the_same_out_of_a_parquet_file(name: str, tmp_path: Path) -> None:
    format_, values, expected = KNOWN[name]
    parquet.write_table(pa.Table.from_pylist([values, dict.fromkeys(values)]), tmp_path / "rows.parquet")
    rows = [row for row in readers.read_file(tmp_path / "rows.parquet") if isinstance(row, Row)]
    assert len(rows) == 2
    assert recognise(*(row.values for row in rows)) == format_
    assert read(format_, rows[0].values) == expected


def test_what_arrow_fills_in_because_other_rows_have_it_is_left_out(tmp_path: Path) -> None:
    _, calling, expected = CONVERSATIONS["OpenAI fine-tuning, with tools"]
    other = json.loads(json.dumps(calling))
    other["messages"][1]["tool_calls"][0]["function"] = {"name": "add", "arguments": {"x": 1, "y": None}}
    other["tools"] = [
        {"type": "function", "function": {"name": "add", "parameters": {"properties": {"x": {"type": "int"}}}}}
    ]
    plain = {"messages": role("u:ask", "a:say")}
    calling = json.loads(json.dumps(calling))
    calling["messages"][1]["tool_calls"][0]["function"]["arguments"] = {"city": "Bonn"}
    parquet.write_table(pa.Table.from_pylist([calling, other, plain]), tmp_path / "rows.parquet")
    rows = [row.values for row in readers.read_file(tmp_path / "rows.parquet") if isinstance(row, Row)]
    assert parquet.read_table(tmp_path / "rows.parquet").to_pylist()[0]["messages"][0]["tool_calls"] is None
    assert rows[2]["messages"] == plain["messages"]
    assert rows[0]["messages"][1]["tool_calls"][0]["function"]["arguments"] == {"city": "Bonn"}
    assert recognise(*rows) == "messages"
    first, second, third = (read("messages", values) for values in rows)
    assert first.messages == expected.messages
    assert second.messages[1]["tool_calls"][0]["function"]["arguments"] == {"x": 1}
    assert second.tools is not None
    assert second.tools[0]["function"] == {"name": "add", "parameters": {"properties": {"x": {"type": "int"}}}}
    assert third == ASKED


def test_wildchat_keeps_what_a_turn_says_of_itself_but_nothing_that_is_null() -> None:
    turn = {"country": "Bonn", "hashed_ip": None, "header": {"accept-language": None}, "language": "English"}
    values = {
        "conversation_hash": "x",
        "model": "gpt-4",
        "conversation": [{**turn, **words, "toxic": False, "state": None} for words in role("u:ask", "a:say")],
        "turn": 1,
        "language": "English",
        "detoxify_moderation": [{"toxicity": 0.1}],
    }
    assert recognise(values) == "messages"
    example = read("messages", values)
    assert [(message["role"], message["content"]) for message in example.messages] == [
        ("user", "ask"),
        ("assistant", "say"),
    ]
    assert {key for message in example.messages for key in message} == {
        *("role", "content", "country", "header"),
        "language",
        "toxic",
    }


# name -> (row, words of the message)
NO_TYPO = "to name the columns, for example: --data.columns prompt=COLUMN,completion=COLUMN"
UNKNOWN: Mapping[str, tuple[Mapping[str, Any], Sequence[str]]] = {
    "stanfordnlp/imdb": ({"text": "words", "label": 0}, ["to read them anyway: --data.format text\n"]),
    "fancyzhx/ag_news": ({"text": "words", "label": 3}, ["to read them anyway: --data.format text\n"]),
    "google-research-datasets/go_emotions": (
        {"text": "words", "labels": [27], "id": "x"},
        ["--data.format text"],
    ),
    "nyu-mll/glue sst2": ({"sentence": "words", "label": 1, "idx": 0}, [NO_TYPO]),
    "nyu-mll/glue mnli": ({"premise": "x", "hypothesis": "y", "label": 1, "idx": 0}, [NO_TYPO]),
    "nyu-mll/glue qqp": ({"question1": "x", "question2": "y", "label": 1, "idx": 0}, [NO_TYPO]),
    "nyu-mll/glue qnli": ({"question": "x", "sentence": "y", "label": 1, "idx": 0}, ["--data.format prompt-only"]),
    "rajpurkar/squad": (
        {
            "id": "1",
            "title": "T",
            "context": "words",
            "question": "ask",
            "answers": {"text": ["x"], "answer_start": [1]},
        },
        ["they are not question-answer: turn 1 of `answers` has no `role`; its keys are text, answer_start"],
    ),
    "google/boolq": (
        {"question": "ask", "answer": True, "passage": "words"},
        ["they are not question-answer: `answer` is true, not text"],
    ),
    "cais/mmlu": (
        {"question": "ask", "subject": "law", "choices": ["a", "b", "c", "d"], "answer": 1},
        ["they are not question-answer: `answer` is a number, not text"],
    ),
    "allenai/ai2_arc": (
        {"id": "1", "question": "ask", "choices": {"text": ["a"], "label": ["A"]}, "answerKey": "A"},
        ["--data.format prompt-only"],
    ),
    "wmt/wmt16": ({"translation": {"de": "x", "en": "y"}}, ["their columns are translation", NO_TYPO]),
    "trl-lib/prm800k": (
        {"prompt": "ask", "completions": ["one", "two"], "labels": [True, False]},
        ["to read them anyway: --data.format prompt-only\n"],
    ),
    "peiyi9979/Math-Shepherd": ({"input": "ask step", "label": "ask step +", "task": "GSM8K"}, [NO_TYPO]),
    "GAIR/lima": (
        {"conversations": ["ask", "say"], "source": "stackexchange"},
        ["turn 1 of `conversations` is text, not an object with `role` and `content`"],
    ),
    "stingning/ultrachat": ({"id": "1", "data": ["ask", "say"]}, [NO_TYPO]),
    "glaiveai/glaive-function-calling-v2": (
        {"system": "SYSTEM: rule", "chat": "USER: ask\n\n\nASSISTANT: say <|endoftext|>"},
        ["they are not messages: `chat` is text, not a list of turns"],
    ),
    "OpenAssistant/oasst1": (
        {
            "message_id": "1",
            "parent_id": None,
            "user_id": "u",
            "text": "ask",
            "role": "prompter",
            "lang": "en",
            "message_tree_id": "1",
            "labels": None,
        },
        ["to read them anyway: --data.format text\n"],
    ),
    "knkarthick/samsum": (
        {"id": "1", "dialogue": "A: hi\nB: ho", "summary": "They greet."},
        ["`dialogue` is text, not a list of turns"],
    ),
    "abisee/cnn_dailymail": ({"article": "words", "highlights": "x", "id": "1"}, [NO_TYPO]),
    "FiscalNote/billsum": ({"text": "words", "summary": "x", "title": "T"}, ["--data.format text"]),
    "eriktks/conll2003": ({"id": "0", "tokens": ["x"], "ner_tags": [3]}, [NO_TYPO]),
    "bigcode/the-stack": ({"content": "x = 1", "size": 5, "lang": "Python"}, [NO_TYPO]),
    "Muennighoff/flan": (
        {"inputs": "ask", "targets": "say", "task": "x"},
        ["if these are the right columns: --data.columns prompt=inputs,completion=targets"],
    ),
    "openbmb/UltraFeedback": (
        {"source": "x", "instruction": "ask", "models": ["a"], "completions": [{"response": "say"}]},
        ["--data.format prompt-only"],
    ),
    "stanfordnlp/SHP": (
        {"post_id": "1", "history": "ask", "human_ref_A": "x", "human_ref_B": "y", "labels": 1},
        [NO_TYPO],
    ),
    "nvidia/HelpSteer3": (
        {"domain": "code", "context": role("u:ask"), "response1": "x", "response2": "y", "overall_preference": -1},
        [NO_TYPO],
    ),
    "lmsys/chatbot_arena_conversations": (
        {"question_id": "1", "conversation_a": role("u:ask", "a:x"), "conversation_b": [], "winner": "model_a"},
        [NO_TYPO],
    ),
    "lvwerra/stack-exchange-paired": (
        {"qid": 1, "question": "ask", "response_j": "good", "response_k": "bad", "metadata": []},
        ["--data.format prompt-only"],
    ),
    "Josephgflowers/Finance-Instruct-500k": (
        {"system": "rule", "user": "ask", "assistant": "say"},
        ["if these are the right columns: --data.columns prompt=user,completion=assistant"],
    ),
    "keivalya/MedQuad-MedicalQnADataset": (
        {"qtype": "x", "Question": "ask", "Answer": "say"},
        [
            "did you mean `question` where it says `Question`, `answer` where it says `Answer` (format question",
            "--data.columns question=Question,answer=Answer",
        ],
    ),
    "argilla/ultrafeedback-binarized-preferences": (
        {"source": "x", "instruction": "ask", "chosen_response": "good", "rejected_response": "bad"},
        [
            "did you mean `chosen` where it says `chosen_response`, `rejected` where it says `rejected_response`",
            "--data.columns chosen=chosen_response,rejected=rejected_response",
        ],
    ),
    "liuhaotian/LLaVA-Instruct-150K, with its turns as text": (
        {"id": "1", "image": "1.jpg", "conversations": "words"},
        ["`conversations` is text, not a list of turns"],
    ),
    "stanfordnlp/web_questions, as CSV": (
        {"url": "x", "question": "ask", "answers": "['a', 'b']"},
        ["did you mean `answer` where it says `answers` (format question-answer)?"],
    ),
    "calls of tools that the row does not have": (
        {"query": "ask", "answers": json.dumps(CALL)},
        ["to read them anyway: --data.format question-answer or --data.format prompt-only\n"],
    ),
    "answers that are no calls of the row's tools": (
        {"query": "ask", "answers": ["say"], "tools": [WEATHER]},
        ["they are not question-answer: turn 1 of `answers` is text, not an object with `role` and `content`"],
    ),
    "a prompt that is answered already": (
        {"prompt": role("u:ask", "a:say")},
        ["they are not prompt-only: the prompt ends with an assistant turn"],
    ),
    "an answer to nothing": ({"completion": "say", "label": True}, ["their columns are completion, label\n"]),
    "half of a preference": ({"prompt": "ask", "chosen": "good"}, ["--data.format prompt-only"]),
    "an answer that is no text": (
        {"prompt": "ask", "completion": 4},
        ["they are not prompt-completion: `completion` is a number, not text", "--data.format prompt-only\n"],
    ),
    "a misspelt column": (
        {"instuction": "ask", "output": "say"},
        ["did you mean `instruction` where it says `instuction` (format alpaca)?", "instruction=instuction"],
    ),
    "a misspelt key of a turn": (
        {"messages": [{"rolle": "user", "content": "ask"}]},
        ["turn 1 of `messages` has no `role`; did you mean `role` where it says `rolle`?"],
    ),
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_rows_of_no_known_format_are_refused_in_words_that_help(name: str) -> None:
    values, words = UNKNOWN[name]
    with pytest.raises(DataError, match=r"rows\.jsonl:1: the rows have no known format; their columns are ") as error:
        recognise(values, values)
    told = str(error.value)
    assert [word for word in words if word not in told] == []
    assert formats.detect_format(columns=list(values), sample=[values]) is None


# name -> (rows, formats or columns that are told)
AMBIGUOUS: Mapping[str, tuple[Sequence[Mapping[str, Any]], str]] = {
    "HuggingFaceTB/cosmopedia": (
        [{"prompt": "ask", "text_token_length": 1, "text": "say", "seed_data": "x", "format": "blog"}],
        "fit several formats: text, prompt-only\n.*completion=text",
    ),
    "AI-MO/NuminaMath-1.5": (
        [{"problem": "ask", "solution": "long", "answer": "2", "problem_type": "Algebra", "source": "x"}],
        "either `answer` or `solution` could be its `answer`\n.* reads `answer`, --data.columns answer=solution reads",
    ),
    "agentica-org/DeepScaleR-Preview-Dataset": (
        [{"problem": "ask", "answer": "2", "solution": "long"}],
        "format question-answer, but either `answer` or `solution` could be its `answer`",
    ),
    "microsoft/wiki_qa": (
        [
            {"question_id": "Q0", "question": "ask", "document_title": "T", "answer": "say", "label": label}
            for label in (0, 1)
        ],
        "fit several formats: unpaired-preference, question-answer",
    ),
    "two pairs": (
        [{"instruction": "a", "output": "b", "question": "c", "answer": "d"}],
        "fit several formats: alpaca, question-answer",
    ),
    "a conversation about something else": (
        [{"messages": role("u:a", "a:b"), "prompt": "c", "completion": "d"}],
        "fit several formats: messages, prompt-completion",
    ),
    "two conversations": (
        [{"messages": role("u:a", "a:b"), "conversations": sharegpt("u:c", "a:d")}],
        "either `messages` or `conversations` could be its `messages`\n.*--data.columns messages=conversations",
    ),
    "conversations that repeat the first question": (
        [{"messages": role("u:a", "a:b", "u:a"), "ground_truth": "d"}],
        "fit several formats: messages, prompt-only",
    ),
    "a preference about something else": (
        [{"messages": role("u:x", "a:y"), "prompt": "a", "chosen": "c", "rejected": "d"}],
        "fit several formats: preference, messages",
    ),
    "two questions": (
        [{"question": "a", "query": "b", "answer": "c"}],
        "either `question` or `query` could be its `question`",
    ),
    "two responses": (
        [{"instruction": "a", "response": "b", "completion": "c"}],
        "either `response` or `completion` could be its `response`",
    ),
    "two prompts of a preference": (
        [{"prompt": "a", "question": "b", "chosen": "c", "rejected": "d"}],
        "either `prompt` or `question` could be its `prompt`\n.*--data.columns prompt=question reads `question`",
    ),
    "two answers that are judged": (
        [{"prompt": "a", "completion": "b", "response": "c", "label": True}],
        "either `completion` or `response` could be its `completion`",
    ),
    "conversations that all end with a question": (
        [{"messages": role("u:a", "a:b", "u:c"), "ground_truth": "d"}] * 3,
        "fit several formats: messages, prompt-only",
    ),
    "gsm8k with a prompt that was added to it": (
        [{"question": "ask", "answer": "say", "prompt": role("s:think", "u:ask")}],
        "fit several formats: question-answer, prompt-only",
    ),
    "rows of two formats": (
        [{"question": "a", "answer": "b"}] * 3 + [{"messages": role("u:a", "a:b")}] * 2,
        "the first 5 rows have several formats: 3 question-answer, 2 messages\n.*on_bad_row drop",
    ),
}


@pytest.mark.parametrize("name", AMBIGUOUS)
def test_what_fits_several_formats_is_reported_with_the_candidates(name: str) -> None:
    values, words = AMBIGUOUS[name]
    with pytest.raises(DataError, match=rf"(?s)^rows\.jsonl:1: .*{words}.*; the columns are "):
        recognise(*values)


SETTLED: Mapping[str, tuple[str, dict[str, Any]]] = {
    "cosmopedia as plain text": ("HuggingFaceTB/cosmopedia", {"format": "text"}),
    "cosmopedia as answers": ("HuggingFaceTB/cosmopedia", {"columns": {"completion": "text"}}),
    "the short answer": ("AI-MO/NuminaMath-1.5", {"format": "question-answer"}),
    "the long answer": ("AI-MO/NuminaMath-1.5", {"columns": {"answer": "solution"}}),
    "for a reward": ("AI-MO/NuminaMath-1.5", {"format": "prompt-only"}),
    "the other conversation": ("two conversations", {"columns": {"messages": "conversations"}}),
}
READ: Mapping[str, Example] = {
    "cosmopedia as plain text": Example(text="say"),
    "cosmopedia as answers": ASKED,
    "the short answer": talk("u:ask", "a:2"),
    "the long answer": talk("u:ask", "a:long"),
    "for a reward": talk(
        "u:ask",
        columns={"problem": "ask", "solution": "long", "answer": "2", "problem_type": "Algebra", "source": "x"},
    ),
    "the other conversation": talk("u:c", "a:d"),
}


@pytest.mark.parametrize("name", SETTLED)
def test_what_the_message_says_settles_it(name: str) -> None:
    case, section = SETTLED[name][0], DataSection(**SETTLED[name][1])
    there = rows(*AMBIGUOUS[case][0])
    record = Recogniser(settings=section, plugins=LOADED, registry=REGISTRY).recognise(there)
    [(_, example)] = [pair for pair in convert.convert(there, record, section) if isinstance(pair, tuple)]
    assert example == READ[name]


def test_a_row_that_lacks_something_does_not_hide_the_format_of_the_others() -> None:
    assert recognise({"prompt": "ask"}, {"prompt": "ask", "completion": "say"}) == "prompt-completion"
    assert recognise({"messages": role("u:ask")}, {"messages": role("u:ask", "a:say")}) == "messages"
    assert recognise({"text": "x"}, {"messages": role("u:ask", "a:say")}) == "messages"
    assert recognise({"prompt": "ask", "chosen": "x"}, {"prompt": "ask", "chosen": "x", "rejected": ""}) == "preference"


def test_turns_of_both_sorts_may_be_in_one_file() -> None:
    openai, other = {"messages": role("u:ask", "a:say")}, {"conversations": sharegpt("u:ask", "a:say")}
    assert recognise(openai, other, other) == "sharegpt"
    assert recognise(other, openai, openai) == "messages"
    assert read("messages", other) == read("sharegpt", openai) == ASKED


def test_conversations_that_end_with_a_question_are_read_where_others_end_with_an_answer() -> None:
    open_, closed = role("u:ask", "a:say", "u:more"), role("u:ask", "a:say")
    assert recognise({"messages": open_}, {"messages": closed}) == "messages"
    assert recognise({"messages": role("u:ask")}) == "prompt-only"


def test_a_role_that_is_not_known_makes_no_prompts_of_conversations() -> None:
    values = {"messages": [{"role": "user", "content": "ask"}, {"role": "asistant", "content": "say"}]}
    assert recognise(values) == "messages"
    with pytest.raises(
        ValueError, match=r"turn 2 of `messages` has the unknown role 'asistant'; did you mean `assistant`"
    ):
        read("messages", values)


@pytest.mark.parametrize("label", [True, False, "True", "False", "true", "FALSE "])
def test_a_label_that_is_true_or_false_judges_an_answer(label: Any) -> None:
    for values in ({"prompt": "ask", "completion": "say"}, {"messages": role("u:ask", "a:say")}):
        assert recognise(values | {"label": label}) == "unpaired-preference"
        assert read("unpaired-preference", values | {"label": label}).label is (str(label).strip().lower() == "true")


def test_a_label_of_a_prompt_judges_no_answer() -> None:
    assert recognise({"prompt": "ask", "label": True}) == "prompt-only"
    assert recognise({"prompt": "ask", "answer": "2", "label": 1}) == "prompt-only"
    assert recognise({"prompt": "ask", "answer": "2", "label": True}) == "unpaired-preference"


def test_a_role_that_is_not_known_makes_no_conversation_of_a_preference() -> None:
    asked = [{"from": "narrator", "value": "x"}, *sharegpt("u:ask")]
    assert recognise({"conversations": asked, "chosen": "good", "rejected": "bad"}) == "preference"


def test_text_under_the_name_of_turns_is_not_a_second_conversation() -> None:
    assert recognise({"messages": role("u:a", "a:b"), "dialogue": "A: hi"}) == "messages"


def test_lists_of_roles_and_contents_are_recognised() -> None:
    values = {"messages": {"role": ["user", "assistant"], "content": ["ask", "say"]}}
    assert recognise(values) == "messages"
    assert read("messages", values) == ASKED
    values = {"conversations": {"from": ["human", "gpt"], "value": ["ask", "say"]}}
    assert recognise(values) == "sharegpt"
    assert read("sharegpt", values) == ASKED


@pytest.mark.parametrize("labels", [[0, 1, 2], ["sports", "world"], [None], [0.5], [[True]]])
def test_a_label_that_is_a_class_judges_nothing(labels: list[Any]) -> None:
    assert (
        recognise(*({"prompt": "ask", "completion": "say", "label": label} for label in labels)) == "prompt-completion"
    )


@pytest.mark.parametrize(
    "labels",
    [[0, 1], ["1", "0"], [1.0, 0.0], ["1.0"], ["yes", "no"], ["Good", "BAD "], ["desirable", "undesirable"], ["no"]],
)
def test_a_label_that_may_be_either_is_reported(labels: list[Any]) -> None:
    with pytest.raises(DataError, match="fit several formats: unpaired-preference, prompt-completion"):
        recognise(*({"prompt": "ask", "completion": "say", "label": label} for label in labels))
    assert (
        recognise(*({"prompt": "ask", "completion": "say", "kto_tag": label} for label in labels))
        == "unpaired-preference"
    )
    read_as = [read("unpaired-preference", {"prompt": "ask", "completion": "say", "label": label}) for label in labels]
    assert [example.label for example in read_as] == [str(label).strip()[:1].lower() in "1ygd" for label in labels]


def test_a_text_next_to_a_prompt_and_a_label_is_not_one_to_learn() -> None:
    assert recognise({"prompt": "ask", "text": "x", "label": "y"}) == "prompt-only"


def test_texts_among_labelled_rows_are_not_taken_for_texts_to_learn() -> None:
    with pytest.raises(DataError, match="no known format"):
        recognise({"text": "x", "label": None}, {"text": "y", "label": 1})


def test_the_same_content_under_two_names_is_not_ambiguous() -> None:
    assert recognise({"question": "a", "answer": "b", "response": "b"}) == "question-answer"
    assert recognise({"prompt": "a", "completion": "b", "instruction": "a", "response": "b"}) == "prompt-completion"
    assert recognise({"messages": role("u:a", "a:b"), "conversations": role("u:a", "a:b")}) == "messages"


def test_a_prompt_that_is_made_of_other_columns_is_the_prompt() -> None:
    answers = {"chosen": "good", "rejected": "bad"}
    made = {"prompt": "Say it.\n\nask\n", "instruction": "ask ", **answers}
    assert recognise(made) == "preference"
    assert read("preference", made).messages[0]["content"] == "Say it.\n\nask\n"
    assert recognise({"instruction": "ask", "input": "this", **answers}) == "preference"
    assert recognise({"prompt": "a", "question": "b", "chosen": role("u:a", "a:x"), "rejected": role("u:a", "a:y")})


def test_rows_that_are_nested_without_end_are_reported() -> None:
    deep: Any = "x"
    for _ in range(3000):
        deep = [deep]
    with pytest.raises(DataError, match=r"rows\.jsonl:1: the rows (are nested|have no known format)"):
        recognise({"messages": deep, "prompt": {"role": deep}})


def test_of_many_columns_some_are_shown() -> None:
    with pytest.raises(DataError) as error:
        recognise({f"column{number}": number for number in range(1000)})
    assert "column29 and 970 more\n" in str(error.value)
    assert "column30" not in str(error.value)


# --- whatever stands in a row, a converter says what is wrong in one sentence, or makes what its format promises

COLUMNS = sorted(
    {
        *("messages", "conversations", "conversation", "dialogue", "chat", "tools", "functions", "system", "history"),
        *("prompt", "completion", "question", "answer", "answers", "instruction", "input", "context", "output"),
        *("response", "text", "chosen", "rejected", "label", "kto_tag", "images", "system_prompt", "anything"),
    }
)
KEYS = [
    *("role", "from", "speaker", "content", "value", "text", "type", "name", "function", "arguments", "tool_calls"),
    *("function_call", "weight", "train", "id", "input", "output", "tool_call_id", "x" * 500),
]
WORDS = [
    *("user", "assistant", "human", "gpt", "system", "tool", "function_call", "USER", "asistant", "", " ", "true", "0"),
    *("[", "{}", "[]", '{"name": "f"}', '[{"role": "user", "content": "x"}]', HH, f"{HH}say", "y" * 5000),
]
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=5),
    st.sampled_from(WORDS),
    st.binary(max_size=2),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.dictionaries(st.sampled_from(KEYS), inner, max_size=5), st.tuples(inner)
    ),
    max_leaves=12,
)
TURN = st.fixed_dictionaries(
    {},
    optional={
        "role": st.sampled_from(WORDS) | SCALARS,
        "from": st.sampled_from(WORDS),
        "content": SCALARS | VALUES,
        "tool_calls": VALUES,
        "weight": SCALARS,
    },
)
ROWS = st.dictionaries(st.sampled_from(COLUMNS), VALUES | st.lists(TURN, max_size=4) | TURN, max_size=6)


@settings(max_examples=300, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(values=ROWS)
def test_a_converter_raises_nothing_but_one_sentence_and_keeps_its_promise(values: dict[str, Any]) -> None:
    for record in REGISTRY.formats:
        if record.convert.__module__.startswith("mlflow_ft."):
            check(record.kind, record.convert, values)


def check(kind: str, converter: Callable[[Mapping[str, Any]], Example], values: Mapping[str, Any]) -> None:
    before = repr(values)
    try:
        example = converter(values)
    except ValueError as error:
        told = str(error)
        assert told
        assert "\n" not in told
        assert len(told) < 500
        assert not told.endswith(".")
        return
    assert repr(values) == before, "a row is not written to"
    assert example.kind == kind
    assert isinstance(hash(example.notes), int)
    for turn in (*example.messages, *example.chosen, *example.rejected):
        assert turn["role"] in ("system", "user", "assistant", "tool")
        assert isinstance(turn.get("content", ""), str)
        assert "content" in turn or turn["tool_calls"]
        assert None not in turn.values()
    if kind in ("conversation", "unpaired"):
        assert example.messages[-1]["role"] == "assistant"
    if kind in ("preference", "prompt"):
        assert example.messages[-1]["role"] != "assistant"
    for messages, learned in example.conversations:
        assert len(messages) == len(learned)
        assert all(
            turn["role"] == "assistant" for turn, is_learned in zip(messages, learned, strict=True) if is_learned
        )


@settings(max_examples=200, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(sample=st.lists(ROWS, max_size=3))
def test_detection_raises_only_known_errors_and_names_what_it_can_read(sample: list[dict[str, Any]]) -> None:
    with contextlib.suppress(DataError):
        name = formats.detect_format(columns=[], sample=sample)
        assert name is None or name in REGISTRY.formats


DEEP: Any = "x"
for _ in range(5000):
    DEEP = [DEEP]
NESTED: Any = {"name": "f"}
for _ in range(400):
    NESTED = {"name": "f", "arguments": NESTED}


@pytest.mark.parametrize("deep", [DEEP, {"a": DEEP}, NESTED, [NESTED], [[NESTED]]], ids=["lists", "object", *"nli"])
@pytest.mark.parametrize("column", COLUMNS)
def test_endless_nesting_is_reported_too(column: str, deep: Any) -> None:
    turn = {"role": "user", "content": "ask"}
    for value in (
        deep,
        [deep],
        [turn, deep],
        [turn, {"role": "assistant", "tool_calls": deep}],
        [{**turn, "content": deep}],
        [{**turn, "role": deep}],
    ):
        for record in REGISTRY.formats:
            if record.convert.__module__.startswith("mlflow_ft."):
                with contextlib.suppress(ValueError):
                    record.convert({"prompt": "a", "completion": "b", "label": True, column: value})
