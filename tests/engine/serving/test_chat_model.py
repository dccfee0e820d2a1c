"""The code of the logged models: it answers without mlflow-ft, and reads only what was logged."""

from __future__ import annotations

import importlib.util
import itertools
import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
from mlflow.exceptions import MlflowException
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from mlflow_ft.engine import hub
from mlflow_ft.engine.judging import judge, parity
from mlflow_ft.engine.merging import fold
from mlflow_ft.engine.models import loading
from mlflow_ft.engine.serving import bundle
from mlflow_ft.engine.training import sft, trainable
from mlflow_ft.tracking import verify_manifest, write_manifest
from tests.engine.conftest import lay
from tests.rarely import some_always

ALONE = """
import json, sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("mlflow_ft", "trl", "datasets"):
            raise ImportError(f"{name} is not installed here")

sys.meta_path.insert(0, Blocked())
import runpy
from types import SimpleNamespace

code, question, *folders = sys.argv[1:]
answers = []
for folder in folders:
    model = runpy.run_path(code)["ChatModel"]()
    model.load_context(SimpleNamespace(artifacts={"model": folder}, model_config=None))
    answers.append(model.predict(None, {"messages": [{"role": "user", "content": question}]}))
assert not [name for name in sys.modules if name.partition(".")[0] == "mlflow_ft"]
print(json.dumps(answers))
"""


@pytest.fixture(scope="module")
def folders(adapted: SimpleNamespace, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The adapter and the merged model, packaged. Not to be changed."""
    root = tmp_path_factory.mktemp("packaged")
    for name, write in (("adapter", bundle.copy_adapter), ("merged", fold.merge)):
        (root / name).mkdir()
        write(adapted.bench.job, adapted.trained, root / name)
        bundle.complete(adapted.bench.job, adapted.bench.data, root / name)
        write_manifest(root / name)
    return {name: root / name for name in ("adapter", "merged")}


@pytest.fixture(scope="module")
def code() -> Any:
    """The file, imported as MLflow imports it: by its path."""
    spec = importlib.util.spec_from_file_location("code_of_the_model", bundle.CHAT_MODEL)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def load(code: Any, folder: Path, **config: Any) -> Any:
    model = code.ChatModel()
    model.load_context(SimpleNamespace(artifacts={"model": str(folder)}, model_config=config))
    return model


@pytest.fixture(scope="module")
def chat(code: Any, folders: dict[str, Path]) -> Any:
    """The adapter, loaded."""
    return load(code, folders["adapter"])


@pytest.fixture(scope="module")
def question(adapted: SimpleNamespace) -> tuple[list[dict[str, str]], str]:
    """What the model was trained to answer, and the answer."""
    *asked, answer = adapted.bench.data.train.examples[0].messages
    return [dict(turn) for turn in asked], answer["content"]


def said(answer: dict[str, Any]) -> str:
    return str(answer["choices"][0]["message"]["content"])


@pytest.mark.slow
def test_it_needs_no_mlflow_ft(
    folders: dict[str, Path], chat: Any, question: tuple[list[dict[str, str]], str], tmp_path: Path
) -> None:
    messages, _ = question
    command = [sys.executable, "-c", ALONE, str(bundle.CHAT_MODEL), messages[0]["content"]]
    process = subprocess.run(
        [*command, *map(str, folders.values())], capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert process.returncode == 0, process.stderr
    adapter, merged = json.loads(process.stdout.splitlines()[-1])
    assert said(adapter) == said(merged) == said(chat.predict(None, {"messages": messages}))
    assert said(adapter)


def test_the_answer_is_an_openai_chat_completion(chat: Any, question: tuple[list[dict[str, str]], str]) -> None:
    completion = chat.predict(None, {"messages": question[0]})
    prompt = chat.tokenizer.apply_chat_template(question[0], add_generation_prompt=True)["input_ids"]
    assert completion["object"] == "chat.completion"
    assert completion["choices"][0]["message"]["role"] == "assistant"
    assert completion["choices"][0]["finish_reason"] == "stop"
    usage = completion["usage"]
    assert usage["prompt_tokens"] == len(prompt)
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    assert "<|im_end|>" not in said(completion)


def test_a_table_of_requests_and_params(chat: Any, question: tuple[list[dict[str, str]], str]) -> None:
    alone = said(chat.predict(None, {"messages": question[0]}))
    rows = pd.DataFrame(
        {"messages": [question[0], question[0]], "temperature": [None, 0.0], "stop": [float("nan")] * 2}
    )
    assert [said(completion) for completion in chat.predict(None, rows)] == [alone, alone]
    assert chat.predict(None, rows[:1], {"max_tokens": 1})["usage"]["completion_tokens"] == 1


def test_a_developer_is_the_system_as_in_training_data(code: Any) -> None:
    call = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]}
    read = code.turns({"messages": [{"role": "developer", "content": "Be brief."}, call]})
    assert read[0] == {"role": "system", "content": "Be brief."}
    assert "content" not in read[1]


def test_max_tokens(chat: Any, question: tuple[list[dict[str, str]], str]) -> None:
    whole = chat.predict(None, {"messages": question[0]})
    for key in ("max_tokens", "max_completion_tokens"):
        completion = chat.predict(None, {"messages": question[0], key: 2})
        assert completion["usage"]["completion_tokens"] == 2
        assert completion["choices"][0]["finish_reason"] == "length"
        assert said(whole).startswith(said(completion))


def test_stop_strings_end_the_answer_before_themselves(chat: Any, question: tuple[list[dict[str, str]], str]) -> None:
    whole = said(chat.predict(None, {"messages": question[0]}))
    first, _, rest = whole.partition(" ")
    assert rest
    for stop in (" ", ["never", " "]):
        completion = chat.predict(None, {"messages": question[0], "stop": stop})
        assert said(completion) == first
        assert completion["choices"][0]["finish_reason"] == "stop"


def test_a_stop_text_is_a_text_whatever_its_tokens(chat: Any, question: tuple[list[dict[str, str]], str]) -> None:
    """It may begin within a token and end within another; the prompt is not part of the answer."""
    unstopped = chat.predict(None, {"messages": question[0]})
    whole = said(unstopped)
    stop = whole[2:8]
    assert len(chat.tokenizer.tokenize(stop)) > 1
    completion = chat.predict(None, {"messages": question[0], "stop": [stop]})
    assert said(completion) == whole[:2]
    assert completion["choices"][0]["finish_reason"] == "stop"
    assert completion["usage"]["completion_tokens"] < unstopped["usage"]["completion_tokens"]
    prompt = chat.tokenizer.apply_chat_template(question[0], add_generation_prompt=True, tokenize=False)
    across = prompt[-1] + whole[:3]
    completion = chat.predict(None, {"messages": question[0], "stop": across})
    assert said(completion) == whole
    assert chat.predict(None, {"messages": question[0], "stop": "<|im_end|>"})["choices"][0]["finish_reason"] == "stop"


def test_a_watched_answer_is_told_token_by_token_and_ends_on_demand(
    chat: Any, question: tuple[list[dict[str, str]], str]
) -> None:
    told: list[str] = []
    whole = chat.complete({"messages": question[0]}, told.append)
    assert len(told) == whole["usage"]["completion_tokens"]
    assert told[-1].strip() == said(whole)
    assert all(later.startswith(earlier) for earlier, later in itertools.pairwise(told))
    cut = chat.complete({"messages": question[0]}, lambda text: len(text) > 3)
    assert 1 <= cut["usage"]["completion_tokens"] < whole["usage"]["completion_tokens"]
    assert cut["choices"][0]["finish_reason"] == "stop"


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"messages": []}, "`messages` must be a non-empty list"),
        ({"messages": ["hello"]}, "`messages` must be a non-empty list"),
        ({"messages": [{"role": "user", "content": None}]}, "objects with role and content, which are text"),
        ({"messages": [{"role": "user", "content": 5}]}, "objects with role and content, which are text"),
        ({"messages": [{"role": None, "content": "red"}]}, "objects with role and content, which are text"),
        ({"max_tokens": 0}, "`max_tokens` is 0; it must be a whole number from 1 up"),
        ({"max_tokens": float("inf")}, "`max_tokens` is inf"),
        ({"max_completion_tokens": 2.5}, "`max_completion_tokens` is 2.5"),
        ({"temperature": -0.1}, "`temperature` is -0.1; it must be a number from 0 up"),
        ({"temperature": "1"}, "`temperature` is '1'"),
        ({"temperature": 1e-310}, "`temperature` is 1e-310; it must be 0, which is greedy, or at least 1e-06"),
        ({"temperature": float("inf")}, "`temperature` is inf"),
        ({"temperature": 10**400}, "`temperature` is 1000"),
        ({"tools": "x"}, "`tools` is 'x'; it must be a list of objects"),
        ({"tools": [1]}, r"`tools` is \[1\]"),
        (
            {"messages": [{"role": "assistant", "content": "a", "tool_calls": [{"function": "x"}]}]},
            "the chat template rejects these messages",
        ),
        ({"top_p": 1.5}, "`top_p` is 1.5; it must be a number from 0 to 1"),
        ({"top_k": -1}, "`top_k` is -1"),
        ({"n": 2}, "`n` is 2"),
        ({"stream": True}, "`stream` is not supported"),
        ({"frequency_penalty": 0.5}, "`frequency_penalty` is not supported"),
        ({"stop": 7}, "`stop` is"),
        ({"stop": [""]}, "`stop` is"),
        ({"messages": [{"role": "user", "content": "red " * 300}]}, "the model reads 256, including its answer"),
    ],
)
def test_what_is_wrong_with_a_request_is_told_with_status_400(chat: Any, wrong: dict[str, Any], words: str) -> None:
    right = {"messages": [{"role": "user", "content": "red"}], "n": 1, "stream": False, "top_k": 0, "stop": []}
    assert chat.predict(None, right)["choices"]
    with pytest.raises(MlflowException, match=words) as told:
        chat.predict(None, right | wrong)
    assert told.value.get_http_status_code() == 400


@pytest.mark.parametrize("template", ["{{ raise_exception('roles must alternate') }}", "{{ messages[0].content + 1 }}"])
def test_what_the_template_refuses_is_told_with_status_400(
    chat: Any, monkeypatch: pytest.MonkeyPatch, template: str
) -> None:
    monkeypatch.setattr(chat.tokenizer, "chat_template", template)
    with pytest.raises(MlflowException, match="the chat template rejects these messages: ") as told:
        chat.predict(None, {"messages": [{"role": "user", "content": "red"}]})
    assert told.value.get_http_status_code() == 400


def test_an_answer_ends_where_the_model_can_read_no_further(chat: Any) -> None:
    messages = [{"role": "user", "content": "red " * 240}]
    length = len(chat.tokenizer.apply_chat_template(messages, add_generation_prompt=True)["input_ids"])
    completion = chat.predict(None, {"messages": messages, "max_tokens": 100, "temperature": 90.0, "stop": "zzz"})
    assert completion["usage"]["total_tokens"] <= 256
    assert completion["usage"]["completion_tokens"] == 256 - length
    assert completion["choices"][0]["finish_reason"] == "length"


def test_sampling_is_from_all_tokens_unless_fewer_are_asked_for(
    chat: Any, question: tuple[list[dict[str, str]], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """transformers would take the likeliest 50, which OpenAI's interface does not say."""
    import torch

    torch.manual_seed(0)
    monkeypatch.setattr(chat.tokenizer, "decode", lambda ids, **_: f"{ids}")
    asked = {"messages": question[0], "temperature": 1e6, "max_tokens": 1}
    assert len({said(chat.predict(None, asked)) for _ in range(100)}) > 60
    assert len({said(chat.predict(None, asked | {"top_k": 3})) for _ in range(100)}) == 3


def test_temperature_0_is_greedy_and_another_is_not(chat: Any, question: tuple[list[dict[str, str]], str]) -> None:
    import torch

    def ask(**more: Any) -> set[str]:
        return {said(chat.predict(None, {"messages": question[0], **more})) for _ in range(6)}

    torch.manual_seed(0)
    assert ask() == ask(temperature=0) == ask(temperature=None)
    assert len(ask(temperature=50.0, max_tokens=8)) > 1
    assert ask(temperature=5.0, top_p=1e-9, max_tokens=3) == ask(max_tokens=3)  # the likeliest alone is left


@pytest.mark.parametrize("number", [int, float])
def test_whole_numbers_are_numbers(chat: Any, question: tuple[list[dict[str, str]], str], number: type) -> None:
    """JavaScript writes 2.0 as 2; transformers takes 2.0 alone as a temperature, and 3 alone as `top_k`."""
    asked = {"temperature": number(2), "top_p": number(1), "top_k": number(3), "max_tokens": number(2)}
    assert chat.predict(None, {"messages": question[0], **asked})["usage"]["completion_tokens"] <= 2


def changed_byte(folder: Path) -> None:
    weights = next(folder.glob("*.safetensors"))
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (changed_byte, "sha256 differs"),
        (lambda folder: (folder / "pytorch_model.bin").write_bytes(b"\x80"), "pytorch_model.bin"),
        (lambda folder: (folder / "tokenizer.json").unlink(), "tokenizer.json"),
        (lambda folder: (folder / "sub").mkdir() or (folder / "sub" / "modeling.py").write_text(""), "modeling.py"),
        (lambda folder: (folder / "manifest.json").unlink(), "manifest.json"),
    ],
    ids=["byte", "pickle", "missing", "code", "no manifest"],
)
@pytest.mark.parametrize("form", ["adapter", "merged"])
def test_what_was_not_logged_is_not_loaded(
    code: Any, folders: dict[str, Path], tmp_path: Path, form: str, harm: Any, words: str
) -> None:
    folder = Path(shutil.copytree(folders[form], tmp_path / "copy"))
    code.verify(folder)
    verify_manifest(folder)
    harm(folder)
    with pytest.raises((ValueError, FileNotFoundError), match=words):
        load(code, folder)


@pytest.mark.parametrize("name", ["weights.bin", "code.py", "tensors.PT"])
def test_a_pickle_is_refused_though_the_manifest_lists_it(
    code: Any, folders: dict[str, Path], tmp_path: Path, name: str
) -> None:
    folder = Path(shutil.copytree(folders["adapter"], tmp_path / "copy"))
    (folder / name).write_bytes(b"x")
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"][name] = {"sha256": code.file_hash(folder / name), "bytes": 1}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match="can run code"):
        load(code, folder)


def test_the_base_may_lie_elsewhere(
    code: Any,
    folders: dict[str, Path],
    adapted: SimpleNamespace,
    question: tuple[list[dict[str, str]], str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    wanted = said(load(code, folders["adapter"]).predict(None, {"messages": question[0]}))
    moved = shutil.copytree(adapted.bench.base.path, tmp_path / "moved")
    folder = Path(shutil.copytree(folders["adapter"], tmp_path / "copy"))
    note = json.loads((folder / "base.json").read_text()) | {"name_or_path": str(tmp_path / "gone")}
    (folder / "base.json").write_text(json.dumps(note))
    write_manifest(folder)
    with pytest.raises(FileNotFoundError, match="MLFLOW_FT_BASE_MODEL"):
        load(code, folder)
    loaded = load(code, folder, base_model_path=str(moved))
    assert said(loaded.predict(None, {"messages": question[0]})) == wanted
    monkeypatch.setenv("MLFLOW_FT_BASE_MODEL", str(moved))
    loaded = load(code, folder, base_model_path=str(tmp_path / "gone"))
    assert said(loaded.predict(None, {"messages": question[0]})) == wanted


def test_another_base_is_refused(
    code: Any, folders: dict[str, Path], tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_FT_BASE_MODEL", str(tiny_model))
    with pytest.raises(ValueError, match="not the base model that the adapter was trained on"):
        load(code, folders["adapter"])


def test_both_sides_hash_weights_alike(code: Any, tiny_model: Path) -> None:
    assert code.weights_hash(tiny_model) == "sha256:" + hub.weights_hash(tiny_model)


def test_the_adapter_comes_without_the_bases_weights(folders: dict[str, Path]) -> None:
    assert [file.name for file in folders["adapter"].glob("*.safetensors")] == ["adapter_model.safetensors"]
    size = (folders["adapter"] / "adapter_model.safetensors").stat().st_size
    assert size < (folders["merged"] / "model.safetensors").stat().st_size


CALL = {"type": "function", "id": "1", "function": {"name": "lamp", "arguments": '{"on": true, "é": [1]}'}}
CALLED = [{"role": "user", "content": "light"}, {"role": "assistant", "tool_calls": [CALL]}]
AS_OBJECT = (
    "{% for m in messages %}{% for c in m.tool_calls %}{{ c.function.arguments | tojson }}{% endfor %}{% endfor %}"
)
AS_TEXT = "{% for m in messages %}{% for c in m.tool_calls %}{{ '' + c.function.arguments }}{% endfor %}{% endfor %}"


@pytest.mark.parametrize("template", [AS_OBJECT, AS_TEXT])
def test_a_call_is_written_as_it_was_trained_however_its_arguments_come(
    chat: Any, monkeypatch: pytest.MonkeyPatch, template: str
) -> None:
    monkeypatch.setattr(chat.tokenizer, "chat_template", template)
    ids = chat.tokenize(CALLED, None)["input_ids"][0]
    assert chat.tokenizer.decode(ids) == '{"on": true, "é": [1]}'


def test_arguments_that_are_no_json_stay_as_they_are(code: Any) -> None:
    turn = {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "no json"}}]}
    assert code.with_objects(turn) == turn
    assert code.with_objects(CALLED[0]) == CALLED[0]
    assert code.with_objects({"role": "assistant", "tool_calls": [{"name": "f"}]})["tool_calls"] == [{"name": "f"}]


@pytest.mark.filterwarnings("ignore:Position ids are not supported")  # pytest takes the module's own filter away
@pytest.mark.parametrize("kind", ["prompt", "prefix", "ptuning", "adaption-prompt", "cpt"])
@pytest.mark.parametrize("quantize", some_always(["none", "nf4"], "none"))
def test_a_learned_prompt_answers_as_it_was_trained(
    code: Any, learned: SimpleNamespace, tmp_path: Path, kind: str, quantize: str
) -> None:
    """In memory after training, and from its files by the code of the model."""
    settings = {"adapter.kind": kind, "model.quantize": quantize, "learning_rate": 0.3, "max_steps": 12}
    settings |= {"adapter.init_text": "red green"} if kind == "cpt" else {"adapter.num_virtual_tokens": 5}
    setup = lay(tmp_path / "job", "lora", model=learned.trained.model, **settings)
    model = trainable.prepare(setup.job, setup.data, setup.base)
    trained = sft.train(setup.job, setup.data, model)
    examples = list(setup.data.eval.examples)[:4]
    wanted = judge.answers(model.module, setup.data, examples, max_new_tokens=8, batch_size=4)
    folder = tmp_path / "packaged"
    bundle.copy_adapter(setup.job, trained, folder)
    bundle.complete(setup.job, setup.data, folder)
    write_manifest(folder)
    chat = load(code, folder)
    for example, answer in zip(examples, wanted, strict=True):
        question = {"messages": [dict(turn) for turn in example.prompt], "max_tokens": 8}
        assert said(chat.predict(None, question)) == answer.text
    plain = loading.load_base(setup.job.config, setup.base)
    assert parity.compare(plain, trained.folder / "reference.safetensors")["kl_max"] > 1e-6
    assert parity.compare(chat.model, trained.folder / "reference.safetensors")["kl_max"] < 1e-9


def test_an_adapter_brings_its_new_tokens(code: Any, tiny_model: Path, tmp_path: Path) -> None:
    """The base on the disk has fewer rows than the adapter's tokenizer has tokens."""
    small = tmp_path / "small"
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    config = AutoConfig.from_pretrained(tiny_model)
    config.vocab_size = len(tokenizer)
    AutoModelForCausalLM.from_config(config).save_pretrained(small)
    tokenizer.save_pretrained(small)
    setup = lay(tmp_path / "job", "lora", model=small, learning_rate=1e-2, **{"model.add_tokens": "[<a>, <b>]"})
    trained = setup.train()
    folder = tmp_path / "packaged"
    bundle.copy_adapter(setup.job, trained, folder)
    bundle.complete(setup.job, setup.data, folder)
    write_manifest(folder)
    assert json.loads((folder / "base.json").read_text())["tokens"] == len(tokenizer) + 2
    chat = load(code, folder)
    assert parity.compare(chat.model, trained.folder / "reference.safetensors")["kl_max"] < 1e-9
    assert chat.predict(None, {"messages": [{"role": "user", "content": "<a> red <b>"}]})["choices"]


def test_a_base_that_is_kept_in_mlflow_is_fetched(
    code: Any, folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    fetched = tmp_path / "models-first-3"
    shutil.copytree(json.loads((folders["adapter"] / "base.json").read_text())["name_or_path"], fetched / "model")
    asked = []
    monkeypatch.setattr(code.mlflow.artifacts, "download_artifacts", lambda uri: asked.append(uri) or str(fetched))
    folder = Path(shutil.copytree(folders["adapter"], tmp_path / "copy"))
    note = json.loads((folder / "base.json").read_text()) | {"name_or_path": "models:/first/3"}
    (folder / "base.json").write_text(json.dumps(note))
    write_manifest(folder)
    load(code, folder)
    assert asked == ["models:/first/3"]
    shutil.rmtree(fetched / "model")
    with pytest.raises(FileNotFoundError, match="models:/first/3"):
        load(code, folder)


def test_a_base_with_fewer_layers_is_refused(code: Any, folders: dict[str, Path], tmp_path: Path) -> None:
    """If the base's revision is a commit, nothing else identifies the model."""
    folder = shutil.copytree(folders["adapter"], tmp_path / "adapter")
    note = json.loads((folder / "base.json").read_text()) | {"revision": "0123"}
    (folder / "base.json").write_text(json.dumps(note))
    (folder / "manifest.json").unlink()
    write_manifest(folder)
    config = AutoConfig.from_pretrained(note["name_or_path"], num_hidden_layers=1)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "base")
    with pytest.raises(ValueError, match=r"does not fit .*base: 14 weights do not match"):
        load(code, folder, base_model_path=str(tmp_path / "base"))
