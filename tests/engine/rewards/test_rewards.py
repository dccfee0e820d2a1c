"""Reward functions are found by name, called with the arguments they take, and their results are checked."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForSequenceClassification

from mlflow_ft import plugins
from mlflow_ft.engine.rewards import reward_judges, reward_sources
from mlflow_ft.errors import ConfigError, ModelError, RefusedError
from mlflow_ft.registry import Registry
from mlflow_ft.rows import Example
from mlflow_ft.values import Answer

REGISTRY = Registry(plugins.load({"MLFLOW_FT_PLUGINS": ""}))
LENGTH = "def length(completions, **columns):\n    return [len(turns[-1]['content']) for turns in completions]\n"
PROMPTS = [[{"role": "user", "content": "a"}], [{"role": "user", "content": "bb"}]]
SAID = [[{"role": "assistant", "content": "one"}], [{"role": "assistant", "content": "three"}]]


def judge(function: Callable[..., Any], *, name: str = "it", weight: float = 1.0) -> reward_judges.LoadedReward:
    return reward_judges.LoadedReward(name=name, weight=weight, function=function)


def find(*names: Any) -> list[reward_sources.NamedFunction]:
    return reward_sources.find([str(name) for name in names], REGISTRY)


def write(file: Path, text: str = LENGTH) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    return file


def config(**rollout: Any) -> Any:
    given = {"reward_funcs": None, "reward_weights": None, "reward_model": None} | rollout
    return SimpleNamespace(method="grpo", rollout=SimpleNamespace(**given))


# --- where they come from


def test_a_function_in_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write(tmp_path / "folder" / "my rewards.py")
    (named,) = find(f"{file}:length")
    assert (named.name, named.source, len(named.sha256)) == ("length", file, 64)
    assert named.function(completions=SAID) == [3, 5]
    monkeypatch.chdir(tmp_path)
    assert find("folder/my rewards.py:length")[0].function is named.function


def test_a_file_that_changed_is_read_again(tmp_path: Path) -> None:
    file = write(tmp_path / "r.py")
    (before,) = find(f"{file}:length")
    write(file, LENGTH.replace("len(", "-len("))
    (after,) = find(f"{file}:length")
    assert (before.function(SAID), after.function(SAID)) == ([3, 5], [-3, -5])
    assert before.name == after.name


def test_a_file_may_import_what_stands_beside_it(tmp_path: Path) -> None:
    write(tmp_path / "beside_this_reward.py", "SIGN = -1\n")
    file = write(tmp_path / "r.py", "from beside_this_reward import SIGN\n" + LENGTH.replace("len(", "SIGN * len("))
    path = list(sys.path)
    assert find(f"{file}:length")[0].function(SAID) == [-3, -5]
    assert sys.path == path


@pytest.mark.parametrize("name", ["rewards_of_a_package.inner.length", "rewards_of_a_package.inner:length"])
def test_a_dotted_name_begins_in_the_working_folder(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = f"{name.partition('.')[0]}_{len(name)}{'c' if ':' in name else 'd'}"
    file = write(tmp_path / package / "inner.py")
    monkeypatch.chdir(tmp_path)
    (named,) = find(name.replace("rewards_of_a_package", package))
    assert named.function(SAID) == [3, 5]
    assert (named.name, named.source, named.provider) == ("length", file, "")


def test_a_registered_one_by_its_name() -> None:
    (named,) = find("exact-answer")
    assert named.function(SAID, answer=["one", "two"]) == [1.0, 0.0]
    assert (named.name, named.provider) == ("exact-answer", "builtin.rewards")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("gone.py:f", "there is no file {folder}/gone.py"),
        ("gone.py:f", "working folder, {folder}"),
        ("r.py", "write r.py:FUNCTION"),
        ("r.py:lenght", "it has length, other"),
        ("broken.py:f", "ZeroDivisionError: division by zero"),
        ("leaving.py:f", "SystemExit: 0"),
        ("no_such_module_here.f", "looked in {folder}"),
        ("exact-anser", "did you mean exact-answer?"),
        ("r.py:other", "takes texts"),
        ("r.py:NUMBER", "no function 'NUMBER'"),
    ],
)
def test_what_cannot_be_found_is_told(name: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "r.py", LENGTH + "NUMBER = 3\ndef other(texts):\n    return texts\ndef _own():\n    pass\n")
    write(tmp_path / "broken.py", "1 / 0\n")
    write(tmp_path / "leaving.py", "raise SystemExit(0)\n")
    with pytest.raises(ConfigError) as caught:
        find(name)
    told = f"{caught.value.message} {caught.value.hint}"
    assert words.format(folder=tmp_path) in told
    assert "\n" not in told


def test_a_file_that_failed_leaves_nothing_behind(tmp_path: Path) -> None:
    file = write(tmp_path / "broken.py", "1 / 0\n")
    before = set(sys.modules)
    with pytest.raises(ConfigError):
        find(f"{file}:f")
    assert set(sys.modules) == before


def test_two_functions_of_one_name_get_names_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "a.py")
    write(tmp_path / "sub" / "b.py", LENGTH + "def short(completions):\n    return [0] * len(completions)\n")
    assert [named.name for named in find("a.py:length", "sub/b.py:length", "sub/b.py:short")] == [
        "a.length",
        "sub.b.length",
        "short",
    ]
    with pytest.raises(ConfigError, match=r"names a.py:length twice"):
        find("a.py:length", "a.py:length")


# --- all that is named, with its weight


def test_weights_stand_in_the_order_of_the_names(tmp_path: Path) -> None:
    names = [f"{write(tmp_path / 'r.py')}:length", "valid-json"]
    loaded = reward_judges.load(config(reward_funcs=names, reward_weights=[0.5, 2.0]), REGISTRY)
    assert [(reward.name, reward.weight) for reward in loaded] == [("length", 0.5), ("valid-json", 2.0)]
    assert [reward.weight for reward in reward_judges.load(config(reward_funcs=names), REGISTRY)] == [1.0, 1.0]


def test_weights_that_are_not_as_many_are_refused() -> None:
    with pytest.raises(ConfigError, match="1 weights for 2 rewards") as caught:
        reward_judges.load(config(reward_funcs=["valid-json", "exact-answer"], reward_weights=[1.0]), REGISTRY)
    assert "valid-json, exact-answer" in str(caught.value.hint)


def test_nothing_to_learn_from_is_refused() -> None:
    with pytest.raises(ConfigError, match="none was named"):
        reward_judges.load(config(), REGISTRY)


# --- how they are called


def test_a_function_gets_what_it_takes_by_name() -> None:
    def few(completions: Any, answer: Any) -> list[float]:
        assert (completions, answer) == (SAID, ["x", "y"])
        return [1, 2]

    def all_of_it(prompts: Any, completions: Any, **more: Any) -> list[float]:
        assert prompts == PROMPTS
        return [float(len(more))] * len(completions)

    columns = {"answer": ["x", "y"], "number": [1, 2]}
    assert judge(few)(PROMPTS, SAID, **columns) == [1.0, 2.0]
    assert judge(all_of_it)(prompts=PROMPTS, completions=SAID, **columns) == [2.0, 2.0]
    assert judge(few).lacks(["number"]) == ["answer"]
    assert judge(few).lacks(["answer"]) == judge(all_of_it).lacks([]) == []


def test_what_says_nothing_is_none() -> None:
    assert judge(lambda completions: [None, float("nan")])(PROMPTS, SAID) == [None, None]
    assert judge(lambda completions: torch.tensor([0.5, 1.0]))(PROMPTS, SAID) == [0.5, 1.0]
    assert judge(lambda completions: [True, False])(PROMPTS, SAID) == [1.0, 0.0]


async def later(completions: Any) -> list[int]:
    return [len(turns[-1]["content"]) for turns in completions]


def test_a_coroutine_is_waited_for() -> None:
    import asyncio

    assert judge(later)(PROMPTS, SAID) == [3.0, 5.0]

    async def in_a_notebook() -> list[float | None]:
        return judge(later)(PROMPTS, SAID)

    assert asyncio.run(in_a_notebook()) == [3.0, 5.0]


def one_too_few(completions: Any) -> list[float]:
    return [1.0]


def no_number(completions: Any) -> list[Any]:
    return ["good", "bad"]


def infinite(completions: Any) -> list[float]:
    return [1.0, float("inf")]


def nothing(completions: Any) -> None:
    return None


def raises(completions: Any, **columns: Any) -> list[float]:
    return [columns["soultion"][0]]


def leaves(completions: Any) -> list[float]:
    raise SystemExit(0)


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (leaves, "raised SystemExit: 0"),
        (one_too_few, "returned 1 rewards for 2 answers"),
        (no_number, "could not convert string to float"),
        (infinite, "inf is not a valid reward"),
        (nothing, "'NoneType' object is not iterable"),
        (raises, "raised KeyError: 'soultion'"),
    ],
)
def test_what_is_no_reward_is_refused(function: Callable[..., Any], words: str) -> None:
    with pytest.raises(RefusedError, match="the reward function 'mine'") as caught:
        judge(function, name="mine")(PROMPTS, SAID)
    assert words in caught.value.message


def test_the_rewards_of_answers_and_their_weighted_sum() -> None:
    answers = [
        Answer(prompt=tuple(PROMPTS[0]), expected="", text="one", finished=True, columns={"answer": "one", "n": 1}),
        Answer(prompt=tuple(PROMPTS[1]), expected="", text="three", finished=True, columns={"answer": "3"}),
    ]

    def seen(prompts: Any, completions: Any, n: Any, log_metric: Any, trainer_state: Any) -> list[float | None]:
        log_metric("seen", 1.0)
        assert (prompts, trainer_state) == (PROMPTS, None)
        return n

    judges = [judge(REGISTRY.rewards["exact-answer"].score, name="exact", weight=2.0), judge(seen, name="n")]
    values = reward_judges.of_answers(judges, answers)
    assert values == {"exact": [1.0, 0.0], "n": [1.0, None]}
    assert reward_judges.weighted(judges, values) == [3.0, 0.0]
    assert reward_judges.weighted(judges[1:], values) == [1.0, None]
    assert reward_judges.of_answers(judges, []) == {"exact": [], "n": []}


def test_of_a_conversation_the_answer_is_a_column() -> None:
    prompt = Example(messages=tuple(PROMPTS[0]), columns={"answer": 72})
    whole = Example(messages=(*PROMPTS[0], *SAID[0]))
    assert reward_judges.columns(prompt) == {"answer": 72}
    assert reward_judges.columns(whole) == {"answer": "one"}


def test_the_functions_that_the_docs_show() -> None:
    page = (Path(__file__).parents[3] / "docs" / "plugins.md").read_text()
    section = page.partition("## Reward functions\n")[2].partition("\n## ")[0]
    shown: dict[str, Any] = {}
    for block in re.findall(r"(?ms)^```python\n(.*?)^```", section):
        exec(block, shown)  # our own page
    long = [[{"role": "assistant", "content": "word " * 40}]]
    assert judge(shown["brief"])([[]] * 3, [*SAID, *long], answer=[1, 2, 3]) == [1.0, 1.0, 0.5]
    assert judge(shown["right"])(PROMPTS, SAID, answer=["one", None]) == [1.0, None]
    (registered,) = shown["register_rewards"]()
    assert registered.score is shown["brief"]


# --- a reward model


@pytest.fixture(scope="module")
def scorer(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny model that scores."""
    folder = tmp_path_factory.mktemp("scorer")
    tokenizer: Any = AutoTokenizer.from_pretrained(tiny_model)
    torch.manual_seed(1)
    settings = LlamaConfig.from_pretrained(tiny_model, num_labels=1)
    LlamaForSequenceClassification(settings).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_a_reward_model_scores_whole_conversations(scorer: Path) -> None:
    (loaded,) = reward_judges.load(config(reward_weights=[0.25]), REGISTRY, model=scorer)
    scores = loaded(PROMPTS * 9, SAID * 9, answer=["", ""] * 9)
    model: Any = LlamaForSequenceClassification.from_pretrained(scorer).eval()
    tokenizer: Any = AutoTokenizer.from_pretrained(scorer)
    model.config.pad_token_id = tokenizer.pad_token_id
    with torch.no_grad():
        wanted = [
            model(**tokenizer.apply_chat_template([*p, *s], return_dict=True, return_tensors="pt")).logits.item()
            for p, s in zip(PROMPTS, SAID, strict=True)
        ]
    assert abs(wanted[0] - wanted[1]) > 1e-3
    assert scores == pytest.approx(wanted * 9, abs=1e-5)
    assert (loaded.name, loaded.weight) == ("reward_model", 0.25)


def test_a_model_that_scores_nothing_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no weights for score\.weight"):
        reward_judges.RewardModel(tiny_model)
    with pytest.raises(ModelError, match="cannot be loaded"):
        reward_judges.RewardModel(tmp_path)


def test_what_a_reward_function_prints_is_not_the_output_of_the_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (named,) = find(f"{write(tmp_path / 'loud.py', 'print(1)' + chr(10) + LENGTH)}:length")

    async def loud(completions: Any) -> list[float]:
        print(len(completions))  # noqa: T201  # as a user's function does
        return [1.0 for _ in completions]

    assert judge(loud)(PROMPTS, SAID) == [1.0, 1.0]
    assert judge(named.function)(PROMPTS, SAID) == [3.0, 5.0]
    assert capsys.readouterr() == ("", "1\n2\n")
