"""Public reports on chat templates: dates, thoughts, turns, lengths. Each test names the reports that it is about."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from datetime import datetime
from importlib.resources import files
from pathlib import Path
from typing import Any

import mlflow
import pytest
from mlflow import MlflowClient
from transformers import AutoTokenizer

from mlflow_ft import pipeline, plugins
from mlflow_ft.cli.asked import asked
from mlflow_ft.engine.serving import fresh_process
from mlflow_ft.engine.tokens import clock
from mlflow_ft.engine.tokens.masking import Encoder, MaskError, Tokenised
from mlflow_ft.engine.training.online import tokens as trl_tokens
from mlflow_ft.operations.promoting import rescore
from mlflow_ft.progress import Progress
from mlflow_ft.rows import Example
from mlflow_ft.testing import CHATML, make_tiny_tokenizer, write_jsonl
from mlflow_ft.tracking import Store
from mlflow_ft.tracking.contenders import contender, find_version
from tests.cli.conftest import Run
from tests.engine.templates.qwen import QWEN3

FOLDER = files("trl") / "chat_templates"
LLAMA32 = (
    "{%- if not date_string is defined %}{%- if strftime_now is defined %}"
    "{%- set date_string = strftime_now('%d %b %Y') %}{%- else %}{%- set date_string = '26 Jul 2024' %}{%- endif %}"
    "{%- endif %}{{- '<|im_start|>system\nCutting Knowledge Date: December 2023\nToday Date: ' + date_string }}"
    "{{- '<|im_end|>\n' }}" + CHATML
)
"""As Llama 3.2's template asks the date, in ChatML's words."""
LOADED = plugins.load({"MLFLOW_FT_PLUGINS": ""})
ASK = {"role": "user", "content": "red?"}
Talks = Callable[[str], Path]


def original(name: str) -> str:
    file = FOLDER / f"{name}.jinja"
    if not file.is_file():
        pytest.skip("this release of TRL has no such file")
    return file.read_text(encoding="utf-8")


@pytest.fixture
def talks(tmp_path: Path, client: MlflowClient) -> Talks:
    """`talks(template)`: a folder with a tokenizer of this template, which is all that `data show` reads."""

    def make(template: str) -> Path:
        folder = tmp_path / "tokenizer"
        tokenizer = make_tiny_tokenizer(chat_template=template)
        tokenizer.add_special_tokens({"additional_special_tokens": sorted(set(re.findall(r"<\|\w+\|>", template)))})
        tokenizer.save_pretrained(folder)
        (folder / "config.json").write_text('{"model_type": "llama"}')
        return folder

    return make


@pytest.fixture
def show(run: Run, tmp_path: Path) -> Callable[..., list[dict[str, Any]]]:
    """`data show --json` on some rows."""

    def call(rows: Sequence[Any], model: Path, *more: str) -> list[dict[str, Any]]:
        result = run(
            "data", "show", "--data", write_jsonl(tmp_path / "r.jsonl", rows), "--model", model, "--json", *more
        )
        assert result.code == 0, result.err
        return [json.loads(line) for line in result.out.splitlines()]

    return call


def learned(row: dict[str, Any]) -> str:
    """What is learned of a row, speech by speech, with a line between."""
    assert row["dropped"] is None, row
    result, before = "", 0
    for text, now in zip(row["tokens"], row["supervised"], strict=True):
        result += ("|" if now and not before and result else "") + (text if now else "")
        before = now
    return result


def said(content: str | None, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content, **more}


# --- dates in templates


def trained(model: Path, now: str, **more: Any) -> pipeline.Outcome:
    """A run that starts at this moment, whatever the day is outside."""
    rows = [{"messages": [{"role": "user", "content": f"say {n}"}, said(f"red {n}")]} for n in range(40)]
    settings = {"model": model, "data": write_jsonl(Path("rows.jsonl"), rows), "registry.model_name": "dated"}
    quick = {"max_steps": 2, "max_new_tokens": 4, "eval_steps": 100, "evaluation.samples": 0, "evaluation.max_rows": 2}
    given = {**settings, **quick, "package.packagers": "adapter", **more}
    config = asked(["lora", *(f"--{key}={value}" for key, value in given.items())], LOADED)
    return pipeline.run(config, LOADED, progress=Progress(quiet=True), now=datetime.fromisoformat(now))


@pytest.mark.slow
def test_a_template_that_writes_the_date_is_trained_every_day(small: Callable[..., Path], client: MlflowClient) -> None:
    """sgl-project/sglang#3296, oobabooga/text-generation-webui#6692, unslothai/unsloth#881.

    Neither run's day is today: as where midnight passes between its first step and its last check.
    """
    model = small("llama", chat_template=LLAMA32)
    quick = {"package.round_trip": "false"}
    runs = [trained(model, "2026-05-06T23:59", **quick), trained(model, "2026-05-07T00:01")]
    for run, day in zip(runs, ("06 May 2026", "07 May 2026"), strict=True):
        kept = client.get_run(run.run_id)
        assert kept.info.status == "FINISHED"
        page = mlflow.artifacts.load_text(f"runs:/{run.run_id}/data/mask.txt")
        assert page.count(f"Today Date: {day}") == page.count("Today Date")
        assert kept.data.tags["mlflow_ft.template_clock"][:10] == f"2026-05-{day[:2]}"
        lineage = mlflow.artifacts.load_dict(f"runs:/{run.run_id}/data/lineage.json")
        assert lineage["train"]["prepared_by"]["clock"] == {"%d %b %Y": day}
        card = client.get_model_version(run.versions[0].name, run.versions[0].version).description
        assert f"All training and held-out rows have `{day}`" in card
    assert len({client.get_run(run.run_id).data.tags["mlflow_ft.data_digest"] for run in runs}) == 2
    old, new = (contender(client, find_version(client, "dated-adapter", number)) for number in ("1", "2"))
    store = Store(client)
    assert rescore.moment_of(store, old).isoformat() == "2026-05-06T23:59:00"
    pair = rescore.Pair(candidate=new, champion=old, store=store, champion_store=store)
    again, note = rescore.champion(pair, plugins=LOADED, progress=Progress(quiet=True))
    assert again.unscored == "", note
    assert again.eval_digest == new.eval_digest


@pytest.mark.parametrize("name", ["llama3_2", "gptoss", "muse_glimmer"])
def test_templates_with_a_date_as_they_were_released(name: str) -> None:
    """sgl-project/sglang#3296: the rows of a day, of seconds, and what another program writes of them."""
    tokenizer = make_tiny_tokenizer(chat_template=original(name))
    texts = {}
    for day in ("2026-11-27", "2026-11-28"):
        maker = Encoder(tokenizer, max_length=9999)
        with clock.held(datetime.fromisoformat(day)):
            prompt = Example(messages=(ASK,))
            [[row]] = maker.tokenise([prompt])
            assert trl_tokens(tokenizer, prompt, {})[1] == "", "TRL writes prompts with the same date"
        assert len(maker.dates) == 1
        texts[day] = row.text
        assert next(iter(maker.dates.values())) in row.text
    assert len(set(texts.values())) == 2


def test_a_fresh_process_is_told_the_moment_of_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """An answer may depend on the date in its prompt; the logged model is asked as of the run's."""
    from transformers.utils import chat_template_utils

    tokenizer: Any = make_tiny_tokenizer(chat_template=LLAMA32)
    monkeypatch.setattr(chat_template_utils, "datetime", datetime)
    fresh_process.hold_clock(datetime.fromisoformat("2026-11-27T23:59"))
    assert "27 Nov 2026" in tokenizer.apply_chat_template([ASK], tokenize=False)


def test_a_chain_has_one_day_and_keeps_it(client: MlflowClient) -> None:
    from datetime import date

    from mlflow_ft.cli import chain

    today = date.fromisoformat("2026-11-27")
    first = chain.dated(["--data", "r.jsonl"], today)
    assert first[-1] == "--data.date=2026-11-27"
    assert chain.dated(first, date.fromisoformat("2026-11-28")) == first
    for own in ("--date=2026-01-01", "--data.date=2026-01-01", "--sft.data.date=2026-01-01"):
        assert chain.dated([own], today) == [own]


# --- thoughts


def test_thoughts_under_another_key(talks: Talks, show: Callable[..., Any]) -> None:
    """huggingface/transformers#44301: `thinking`, where the template knows only `reasoning_content`."""
    [row] = show([{"messages": [ASK, said("yes", thinking="hm")]}], talks(QWEN3))
    assert learned(row) == "<think>\nhm\n</think>\n\nyes<|im_end|>"


@pytest.mark.parametrize("form", ["messages", "prompt and completion"])
@pytest.mark.parametrize("name", ["qwen3_5_think", "qwen3_6"])
def test_a_prompt_that_opens_the_thoughts(talks: Talks, show: Callable[..., Any], name: str, form: str) -> None:
    """huggingface/trl#6361, huggingface/trl#5213: the prompt ends in `<think>`, the answer may hold the end alone."""
    for content in ("hm\n</think>\n\nyes", "<think>\nhm\n</think>\n\nyes"):
        answer = said(content)
        row = {"messages": [ASK, answer]} if form == "messages" else {"prompt": [ASK], "completion": [answer]}
        [shown] = show([row], talks(original(name)))
        assert learned(shown) == "hm\n</think>\n\nyes<|im_end|>"
        assert "".join(shown["tokens"]).count("<think>") == 1


@pytest.mark.parametrize("name", ["qwen3", "qwen3_5_think", "qwen3_5_nothink", "qwen3_6"])
def test_thoughts_of_earlier_turns(run: Run, talks: Talks, show: Callable[..., Any], name: str) -> None:
    """axolotl-ai-cloud/axolotl#3088, unslothai/unsloth#6919: several turns with thoughts; reported, with a remedy."""
    rows = [
        {"messages": [ASK, said("<think>\nGreet.\n</think>\n\nHello!"), ASK, said("<think>\nhm\n</think>\n\nyes")]},
        {"messages": [ASK, said("Hello!"), ASK, said("yes")]},
    ]
    model = talks(original(name))
    shown = show(rows, model)
    assert [row.get("unwritten_thoughts") for row in shown] == [[2], None]
    assert learned(shown[0]).startswith("Hello!<|im_end|>|")
    assert "Greet" not in "".join(shown[0]["tokens"])
    result = run("data", "check", "--data", "r.jsonl", "--model", model, "--json")
    [check] = [check for check in json.loads(result.out)["checks"] if check["name"] == "unwritten-thoughts"]
    assert (check["severity"], check["count"], check["details"]["turns"]) == ("warn", 1, 1)
    assert check["examples"][0]["line"] == 1
    assert "--data.turns each" in check["remedy"]
    each = show(rows, model, "--data.turns", "each")
    assert [(row["row"], row["turn"]) for row in each] == [(1, 2), (1, 4), (2, 2), (2, 4)]
    assert [("Greet" in learned(row), "hm" in learned(row)) for row in each[:2]] == [(True, False), (False, True)]
    assert not any("unwritten_thoughts" in row for row in each)
    last = show(rows, model, "--data.turns", "last")
    assert [learned(row) for row in last] == [learned(each[1]), learned(each[3])]


CALL = {"type": "function", "function": {"name": "w", "arguments": {"c": "Oslo"}}}
TOOLS = [{"type": "function", "function": {"name": "w", "description": "d", "parameters": {"type": "object"}}}]
RESULT = {"role": "tool", "content": "rain"}


@pytest.mark.parametrize("name", ["qwen3", "qwen3_5_think", "gptoss"])
def test_thoughts_and_calls_in_one_turn(talks: Talks, show: Callable[..., Any], name: str) -> None:
    """modelscope/ms-swift#9263 and its relatives: thoughts before a call are learned with it, or reported."""
    first = said("", reasoning_content="I must look.", tool_calls=[CALL])
    answer = said("Rain.", reasoning_content="It said rain.")
    model = talks(original(name))
    rows = [{"messages": [ASK, first, RESULT, answer], "tools": TOOLS}, {"messages": [ASK, first], "tools": TOOLS}]
    for row in show(rows, model, "--data.turns", "each", "--max_length", "4000"):
        thought = "It said rain." if row["turn"] == 4 else "I must look."
        assert thought in learned(row)
        assert ("Oslo" in learned(row)) == (row["turn"] == 2)
        assert "unwritten_thoughts" not in row
    [whole, *_] = show(rows, model, "--max_length", "4000")
    assert "It said rain." in learned(whole)
    assert whole.get("unwritten_thoughts") == ([2] if name == "gptoss" else None)
    assert ("I must look." in learned(whole)) == (name != "gptoss")


def test_answers_of_a_preference_that_think(talks: Talks, show: Callable[..., Any]) -> None:
    """huggingface/trl: DPO and KTO whose turns hold `<think>`."""
    pair = {"prompt": [ASK], "chosen": [said("<think>\nhm\n</think>\n\nyes")], "rejected": [said("no")]}
    [row] = show([pair], talks(QWEN3))
    assert learned(row) == "<think>\nhm\n</think>\n\nyes<|im_end|>"
    assert learned({**row["rejected"], "dropped": None}) == "<think>\n\n</think>\n\nno<|im_end|>"
    [row] = show([{"prompt": [ASK], "completion": [said("<think>\nhm\n</think>\n\nyes")], "label": True}], talks(QWEN3))
    assert learned(row) == "<think>\nhm\n</think>\n\nyes<|im_end|>"


def test_a_thought_in_a_column_is_learned_with_the_answer(talks: Talks, show: Callable[..., Any]) -> None:
    """easy-dataset#381, columns of R1's distillations: an empty thought was learned."""
    model, thinking = talks(QWEN3), "<think>\nhm\n</think>\n\nyes<|im_end|>"
    [pair] = show([{"prompt": "red?", "completion": "yes", "reasoning_content": "hm"}], model)
    [named] = show(
        [{"Question": "red?", "Complex_CoT": "hm", "Response": "yes"}],
        model,
        *("--data.columns", "question=Question,answer=Response,reasoning_content=Complex_CoT"),
    )
    assert learned(pair) == learned(named) == thinking
    [plain] = show([{"prompt": "red?", "completion": "yes", "reasoning": "hm"}], talks(CHATML))
    assert plain["dropped"] == "the chat template omits the assistant's thoughts in turn 2, its last (`reasoning`)"


def test_a_thought_before_a_call_in_sharegpts_words(talks: Talks, show: Callable[..., Any]) -> None:
    """hiyouga/LLaMA-Factory#6797, hiyouga/LLaMA-Factory#7119."""
    call = '{"name": "w", "arguments": {"c": "Oslo"}}'
    turns = [{"from": "human", "value": "red?"}, {"from": "function_call", "value": f"<think>hm</think>\n{call}"}]
    [row] = show([{"conversations": turns, "tools": json.dumps(TOOLS)}], talks(QWEN3))
    assert learned(row) == f"<think>\nhm\n</think>\n\n<tool_call>\n{call}\n</tool_call><|im_end|>"


def test_a_thought_without_an_end_is_reported(run: Run, talks: Talks, tmp_path: Path) -> None:
    """PrimeIntellect-ai/renderers#139, modelscope/ms-swift#9427."""
    rows = write_jsonl(tmp_path / "r.jsonl", [{"messages": [ASK, said("<think>hm yes")]}])
    result = run("data", "check", "--data", rows, "--model", talks(QWEN3), "--json")
    [check] = [check for check in json.loads(result.out)["checks"] if check["name"] == "unclosed-thought"]
    assert (check["severity"], check["count"], check["examples"][0]["line"]) == ("warn", 1, 1)
    assert check["examples"][0]["message"] == "turn 2 (assistant) begins with <think>: a thought that is not closed"


def test_a_thought_in_text_and_key_is_learned_once(talks: Talks, show: Callable[..., Any]) -> None:
    turn = said("<think>\nhm\n</think>\n\nyes", reasoning_content="hm")
    [row] = show([{"messages": [ASK, turn]}], talks(QWEN3))
    assert learned(row) == "<think>\nhm\n</think>\n\nyes<|im_end|>"


def test_channels_of_harmony_and_tools_of_anthropic(talks: Talks, show: Callable[..., Any]) -> None:
    """NVIDIA-NeMo/Megatron-Bridge#5389, modelscope/ms-swift#9809."""
    turns = [said("hm", channel="analysis"), said("yes", channel="final")]
    tools = [{"name": "w", "description": "d", "input_schema": {"type": "object", "properties": {"city": {}}}}]
    [row] = show([{"messages": [ASK, *turns], "tools": tools}], talks(original("gptoss")), "--max_length", "4000")
    assert learned(row).startswith(
        "<|channel|>analysis<|message|>hm<|end|><|start|>assistant<|channel|>final<|message|>yes"
    )
    assert "city" in "".join(row["tokens"])


# --- turns that are not learned


def test_a_turn_of_a_call_that_is_not_learned(talks: Talks, show: Callable[..., Any]) -> None:
    """modelscope/ms-swift#9263: `loss: false` at a turn of the role `tool_call`."""
    call = {"role": "tool_call", "content": '{"name": "w", "arguments": {"c": "Oslo"}}'}
    turns = [ASK, {**call, "loss": False}, {"role": "tool_response", "content": "rain"}, said("Rain.")]
    rows = [{"messages": turns, "tools": TOOLS}, {"messages": [ASK, call, *turns[2:]], "tools": TOOLS}]
    silent, spoken = show(rows, talks(QWEN3), "--max_length", "4000")
    assert "Oslo" not in learned(silent)
    assert "Oslo" in "".join(silent["tokens"])
    assert learned(spoken).count("Oslo") == 1
    parts = show(rows, talks(QWEN3), "--max_length", "4000", "--data.turns", "each")
    assert [(row["row"], row["turn"]) for row in parts] == [(1, 4), (2, 2), (2, 4)]


def test_loss_in_some_turns_of_some_rows(talks: Talks, show: Callable[..., Any]) -> None:
    """modelscope/ms-swift#6304: `loss` here and there, and a further column of mixed types."""
    rows = [
        {"messages": [ASK, said("yes", loss=False), ASK, said("no", loss=True)], "more": 1},
        {"messages": [ASK, said("yes"), ASK, said("no")], "more": {"a": [1, "b"]}},
        {"messages": [ASK, said("yes", loss=1.0), ASK, said("no", loss=0.0)], "more": None},
    ]
    texts = [learned(row) for row in show(rows, talks(CHATML))]
    assert texts == ["no<|im_end|>", "yes<|im_end|>|no<|im_end|>", "yes<|im_end|>"]


# --- lengths


def test_rows_longer_than_max_length(run: Run, talks: Talks, show: Callable[..., Any]) -> None:
    """huggingface/trl#6548, #5826, #5662, #6025, #3927: a long answer, a prompt that fills all, answers left empty."""
    rows = [
        {"messages": [ASK, said("yes")]},
        {"messages": [ASK, said("word " * 100)]},
        {"messages": [{"role": "user", "content": "word " * 100}, said("yes")]},
    ]
    model = talks(CHATML)
    short, cut, full = show(rows, model, "--max_length", "40")
    assert learned(short) == "yes<|im_end|>"
    assert len(cut["tokens"]) == 40
    assert learned(cut).startswith("word word")
    assert full["dropped"] == "cut at data.max_length 40 before anything is learned"
    pair = {"prompt": [rows[2]["messages"][0]], "chosen": [said("yes")], "rejected": [said("no")]}
    [row] = show([pair], model, "--max_length", "40")
    assert row["dropped"] == "cut at data.max_length 40 before anything is learned"
    parts = show([{"messages": [*rows[0]["messages"], *rows[2]["messages"]]}], model, "--turns=each", "--max_length=40")
    assert [row["dropped"] for row in parts] == [None, "cut at data.max_length 40 before anything is learned"]


HUGE = {
    "base64": "QmFzZTY0" * 25_000,
    "one letter": "x" * 200_000,
    "blanks": "a" + " " * 100_000 + "b",
}
"""A tenth of what was reported, for the sake of the tests' time."""


@pytest.mark.parametrize("words", HUGE.values(), ids=HUGE)
def test_one_huge_turn(words: str) -> None:
    """Rows from various reports: written and read in one piece, in any role."""
    maker = Encoder(make_tiny_tokenizer(chat_template=QWEN3), max_length=10**7)
    for content, answer in ((words, "yes"), ("red?", words)):
        [[row]] = maker.tokenise([Example(messages=({"role": "user", "content": content}, said(answer)))])
        assert "".join(row.pieces) == row.text
        assert words in row.text
        text = "".join(text for text, label in zip(row.pieces, row.labels, strict=True) if label != -100)
        assert text == f"<think>\n\n</think>\n\n{answer}<|im_end|>"


def test_a_row_of_very_many_turns() -> None:
    """3,000 turns, and 400 steps with calls: every answer is learned, and the template is rendered a few times."""
    maker = Encoder(make_tiny_tokenizer(chat_template=QWEN3), max_length=10**7)
    write: Any = maker.tokenizer.apply_chat_template
    turns: list[int] = []
    maker.tokenizer.apply_chat_template = lambda given, **more: turns.append(len(given)) or write(given, **more)
    long = [turn for n in range(1500) for turn in ({"role": "user", "content": f"say {n}"}, said(f"red {n}"))]
    steps = [
        turn
        for n in range(400)
        for turn in (
            said(
                None,
                tool_calls=[{"type": "function", "function": {"name": "w", "arguments": {"c": f"at {n}", "n": n}}}],
            ),
            {"role": "tool", "content": f"rain {n}"},
        )
    ]
    for messages, ends in ((long, 1500), ([ASK, *steps, said("done")], 401)):
        turns.clear()
        [parts] = maker.tokenise([Example(messages=tuple(messages))])
        assert not isinstance(parts, MaskError), parts
        [row] = parts
        end = maker.tokenizer.convert_tokens_to_ids("<|im_end|>")
        assert row.labels.count(end) == ends
        assert sum(turns) < 15 * len(messages), "one by one they would be a thousand times as many"


# --- several templates


def test_a_tokenizer_with_several_templates(talks: Talks, show: Callable[..., Any]) -> None:
    """Tokenizers with a template for tools besides the default one: each row is rendered with the right one."""
    folder = talks(CHATML)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = {"default": CHATML, "tool_use": QWEN3}
    tokenizer.save_pretrained(folder)
    called = {"messages": [ASK, said(None, tool_calls=[CALL]), RESULT, said("Rain.")], "tools": TOOLS}
    plain, tools = show([{"messages": [ASK, said("yes")]}, called], folder, "--max_length", "4000")
    assert learned(plain) == "yes<|im_end|>"
    assert '{"name": "w", "arguments": {"c": "Oslo"}}' in learned(tools)
    assert "# Tools" in "".join(tools["tokens"])
    dated = Encoder(AutoTokenizer.from_pretrained(folder), max_length=9999)
    dated.tokenizer.chat_template = {"default": LLAMA32, "tool_use": QWEN3}
    with clock.held(datetime.fromisoformat("2026-11-27")):
        [parts] = dated.tokenise([Example(messages=(ASK, said("yes")))])
        assert isinstance(parts[0], Tokenised)
        assert clock.told_to(dated.tokenizer, clock.current()) == dated.dates == {"%d %b %Y": "27 Nov 2026"}
