"""mlflow-ft serve: a real server in a separate process, queried by OpenAI's client and over MLflow's routes."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import mlflow
import openai
import pytest
import requests
from mlflow import MlflowClient

from tests.browsing import Tab
from tests.cli.conftest import Run, answers_of_folder
from tests.rarely import some_always

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:.*Type hint used in the model's predict:UserWarning"),
]
ASKED = [{"role": "user", "content": "blue lamp green"}]
ADAPTERS = ["--adapter", "one=one-adapter@candidate", "--adapter", "two=models:/two-adapter/1"]


class Server(NamedTuple):
    """One that answers."""

    url: str
    names: list[str]
    process: subprocess.Popen[str]
    log: Path

    @property
    def client(self) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0)

    def say(self, model: str, **more: Any) -> Any:
        return self.client.chat.completions.create(**{"model": model, "messages": ASKED, "temperature": 0} | more)

    def invoke(self, **request: Any) -> requests.Response:
        return requests.post(f"{self.url}/invocations", json=request, timeout=60)


@contextmanager
def serving(*arguments: str, store: str, folder: Path) -> Iterator[Server]:
    """`mlflow-ft serve ARGUMENTS` on a free port."""
    command = [sys.executable, "-m", "mlflow_ft", "serve", *arguments, "--port", "0", "--json"]
    log = folder / f"server-{time.monotonic_ns()}.log"
    with log.open("w") as file:
        process = subprocess.Popen(
            command, env=os.environ | {"MLFLOW_TRACKING_URI": store}, stdout=subprocess.PIPE, stderr=file, text=True
        )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line, log.read_text()
        announced = json.loads(line)
        yield Server(announced["url"], announced["models"], process, log)
    finally:
        process.kill()
        process.communicate()


@pytest.fixture(scope="module")
def server(spoken: Path, store: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Two adapters on one base."""
    with serving(*ADAPTERS, store=store, folder=tmp_path_factory.mktemp("server")) as running:
        yield running


def text_of(answer: Any) -> str:
    return str(answer.choices[0].message.content)


def alone(uri: str) -> Any:
    return mlflow.pyfunc.load_model(uri)


def test_every_adapter_answers_as_it_does_alone(server: Server, spoken: Path, client: MlflowClient) -> None:
    assert server.names == ["one", "two", "base"]
    prompts = ["blue lamp green", "red door", "song", "heavy small apple stone"]
    answers = {}
    for name in server.names:
        if name == "base":
            wanted = answers_of_folder(spoken, prompts)
        else:
            model = alone(f"models:/{name}-adapter/1")
            wanted = [
                model.predict({"messages": [{"role": "user", "content": prompt}]})["choices"][0]["message"]["content"]
                for prompt in prompts
            ]
        answers[name] = [
            text_of(server.say(name, messages=[{"role": "user", "content": prompt}])) for prompt in prompts
        ]
        assert answers[name] == wanted
    assert answers["one"] != answers["two"] != answers["base"] != answers["one"], "the test proves nothing"


def test_an_openai_client_works(server: Server) -> None:
    assert [model.id for model in server.client.models.list()] == server.names
    assert server.client.models.retrieve("two").id == "two"
    answer = server.say("base", max_tokens=64)
    assert (answer.object, answer.model, answer.choices[0].finish_reason) == ("chat.completion", "base", "stop")
    assert text_of(answer) == "green lamp blue"
    usage = answer.usage
    assert usage.completion_tokens == 4, "three words and the end token"
    assert usage.total_tokens == usage.prompt_tokens + 4
    parts = [{"type": "text", "text": "blue lamp"}, {"type": "text", "text": "green"}]
    of_parts = server.say("base", messages=[{"role": "user", "content": parts}])
    joined = server.say("base", messages=[{"role": "user", "content": "blue lamp\ngreen"}])  # as in training data
    assert text_of(of_parts) == text_of(joined)
    assert of_parts.usage.prompt_tokens == joined.usage.prompt_tokens


def test_a_streamed_answer_is_the_same(server: Server) -> None:
    for more in ({}, {"stop": "mp"}, {"stop": ["never", "p b"]}, {"max_tokens": 2}):
        complete = server.say("base", **more)
        chunks = list(server.say("base", stream=True, stream_options={"include_usage": True}, **more))
        texts = [chunk.choices[0].delta.content for chunk in chunks if chunk.choices and chunk.choices[0].delta.content]
        assert "".join(texts) == text_of(complete)
        assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == complete.choices[
            0
        ].finish_reason
        assert chunks[-1].usage == complete.usage
        assert len({chunk.id for chunk in chunks}) == 1
    assert len([chunk for chunk in server.say("base", stream=True) if chunk.choices[0].delta.content]) > 1


def test_stop_texts_and_limits(server: Server) -> None:
    answer = server.say("base", stop="mp b")
    assert (text_of(answer), answer.choices[0].finish_reason) == ("green la", "stop")
    answer = server.say("base", max_tokens=2)
    assert (answer.choices[0].finish_reason, answer.usage.completion_tokens) == ("length", 2)
    seeds = [text_of(server.say("base", temperature=9.0, max_tokens=8, seed=seed)) for seed in (1, 1, 2)]
    assert seeds[0] == seeds[1] != seeds[2]


@pytest.mark.parametrize(
    ("more", "status", "words"),
    [
        ({"model": "three"}, 404, "there is no model 'three'; available models: one, two, base"),
        ({"model": "three", "stream": True}, 404, "no model 'three'"),
        ({"messages": []}, 400, "`messages` must be a non-empty list"),
        ({"messages": [{"content": "no role"}]}, 400, "`messages` must be a non-empty list"),
        ({"messages": 5}, 400, "`messages` must be a non-empty list"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, 400, "not text"),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": None}]}]}, 400, "not text"),
        ({"messages": [{"role": "user", "content": "red " * 300}]}, 400, "the model reads 256"),
        ({"max_tokens": -1}, 400, "`max_tokens` is -1; it must be a whole number from 1 up"),
        ({"max_tokens": 1.5}, 400, "whole number"),
        ({"max_tokens": 0, "stream": True}, 400, "`max_tokens` is 0"),
        ({"temperature": "hot"}, 400, "`temperature` is 'hot'; it must be a number from 0 up"),
        ({"temperature": True}, 400, "`temperature` is True"),
        ({"top_p": 2}, 400, "`top_p` is 2; it must be a number from 0 to 1"),
        ({"n": 2}, 400, "`n` is 2"),
        ({"stop": 5}, 400, "`stop` is 5"),
        ({"stop": ["a", ""]}, 400, "`stop` is"),
        ({"seed": "a"}, 400, "`seed` is 'a'"),
        ({"seed": 2**70, "temperature": 1}, 400, "`seed` is 1180591620717411303424; it must be a whole number of 64"),
        ({"tools": "x"}, 400, "`tools` is 'x'"),
        ({"model": ["one"]}, 400, "`model` is ['one']"),
        ({"logprobs": True}, 400, "`logprobs` is not supported"),
        ({"repetition_penalty": 1.2}, 400, "`repetition_penalty` is not supported"),
        ({"temprature": 1}, 400, "unknown field `temprature`; did you mean temperature?"),
        ({"stream_options": "x"}, 400, "`stream_options` is 'x'; it must be an object"),
        ({"response_format": {"type": "json_object"}}, 400, "`response_format`"),
        ({"tool_choice": "required"}, 400, "`tool_choice`"),
    ],
)
def test_a_wrong_request_gets_a_sentence(server: Server, more: dict[str, Any], status: int, words: str) -> None:
    with pytest.raises(openai.APIStatusError) as error:
        server.say("one", extra_body=more)
    assert error.value.status_code == status
    body = error.value.response.json()["error"]
    assert words in body["message"]
    assert set(body) == {"message", "type", "param", "code"}
    assert "Traceback" not in error.value.response.text


@pytest.mark.parametrize("body", ["no json", "[1]", '"text"', b"\xff"])
def test_a_body_that_is_not_a_request(server: Server, body: Any) -> None:
    response = requests.post(f"{server.url}/v1/chat/completions", data=body, timeout=30)
    assert response.status_code == 400
    message = response.json()["error"]["message"]
    assert "not valid JSON" in message or "not a JSON object" in message


def test_mlflows_own_routes(server: Server) -> None:
    assert requests.get(f"{server.url}/ping", timeout=30).status_code == 200
    assert requests.get(f"{server.url}/version", timeout=30).text == mlflow.__version__
    for name in ("two", "one", "base"):
        reply = server.invoke(messages=ASKED, model=name).json()
        assert reply["choices"][0]["message"]["content"] == text_of(server.say(name))
    first = server.invoke(messages=ASKED, stop=" ").json()
    assert (first["model"], first["choices"][0]["finish_reason"]) == ("one", "stop")
    rows = [{"messages": ASKED, "model": "base"}, {"messages": ASKED, "model": "two"}]
    answers = server.invoke(dataframe_records=rows).json()["predictions"]
    assert [reply["model"] for reply in answers] == ["base", "two"]
    answers = server.invoke(dataframe_records=rows, params={"max_tokens": 1}).json()["predictions"]
    assert [reply["usage"]["completion_tokens"] for reply in answers] == [1, 1]
    refused = server.invoke(messages=ASKED, model="three")
    assert refused.status_code == 404
    assert "available models: one, two, base" in refused.json()["message"]
    whole = server.invoke(messages=ASKED, temperature=2, top_p=1, max_tokens=2)  # MLflow takes no 2 for 2.0 by itself
    assert whole.status_code == 200, whole.text
    refused = server.invoke(messages=ASKED, max_tokens=-1)
    assert refused.status_code == 400
    assert "`max_tokens` is -1" in refused.json()["message"]
    assert "Traceback" not in refused.text


def test_the_page_shows_what_is_served(server: Server) -> None:
    page = requests.get(server.url, timeout=30)
    assert page.status_code == 200
    policy = page.headers["Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; script-src 'nonce-")
    assert "unsafe" not in policy
    assert not re.search(r"(src|href)=|url\(|@import", page.text), "it loads nothing"
    for words in ("<h2>one</h2>", "<h2>base</h2>", "one-adapter version 1", "<dd>adapter</dd>", "passed: mean KL"):
        assert words in page.text
    assert f"curl -s {server.url}/v1/chat/completions" in page.text
    assert '<button id="ask">' in page.text


def test_the_page_asks_a_model(server: Server, tab: Tab) -> None:
    tab.driver.get(server.url)
    tab.element("#model").send_keys("base")
    tab.element("#question").send_keys(ASKED[0]["content"])
    tab.element("#ask").click()
    tab.wait(lambda: tab.text("#answer") == text_of(server.say("base")) and tab.element("#ask").is_enabled())
    assert tab.text("#problem") == ""
    assert tab.complaints() == []


@pytest.mark.parametrize("headers", [{"Origin": "http://evil.example"}, {"Origin": "null"}, {"Host": "evil.example"}])
def test_pages_of_other_sites_are_refused(server: Server, headers: dict[str, str]) -> None:
    for path in ("/v1/chat/completions", "/invocations"):
        answer = requests.post(f"{server.url}{path}", json={"messages": ASKED}, headers=headers, timeout=30)
        assert answer.status_code == 403
    assert requests.get(server.url, headers=headers, timeout=30).status_code == 403
    own = {
        "Origin": server.url.replace("127.0.0.1", "localhost"),
        "Host": server.url[7:].replace("127.0.0.1", "localhost"),
    }
    answer = requests.post(f"{server.url}/invocations", json={"messages": ASKED}, headers=own, timeout=30)
    assert answer.status_code == 200


LONG = {"temperature": 50.0, "max_tokens": 240, "seed": 3}
"""An answer that goes on to its limit."""


def leave_after_first_words(server: Server) -> None:
    stream = server.say("base", stream=True, **LONG)
    next(iter(stream))
    stream.close()


def leave_before_the_answer(server: Server, route: str = "v1/chat/completions") -> None:
    with pytest.raises(requests.Timeout):
        requests.post(f"{server.url}/{route}", json={"model": "base", "messages": ASKED} | LONG, timeout=(5, 0.05))


@pytest.mark.parametrize(
    "leave",
    [
        leave_after_first_words,
        leave_before_the_answer,
        pytest.param(partial(leave_before_the_answer, route="invocations"), id="invocations"),
    ],
)
def test_a_client_that_goes_away_does_not_keep_others_waiting(server: Server, leave: Callable[[Server], None]) -> None:
    """Long answers that nobody waits for any more must not be written to their end."""

    def whole() -> float:
        started = time.monotonic()
        assert server.say("base", **LONG).usage.completion_tokens == 240
        return time.monotonic() - started

    whole()  # the first one takes longer
    before = whole()
    started = time.monotonic()
    for _ in range(8):
        leave(server)
    server.say("one", max_tokens=1)
    seconds = time.monotonic() - started
    assert seconds < 4 * max(before, whole())  # the machine may have become slower


@pytest.mark.parametrize(
    ("number", "code"), some_always([(signal.SIGINT, 130), (signal.SIGTERM, 143)], (signal.SIGTERM, 143))
)
def test_a_signal_ends_it_quietly_and_the_answers_that_are_written(
    spoken: Path, store: str, tmp_path: Path, number: signal.Signals, code: int
) -> None:
    name = str(spoken)
    with serving(name, store=store, folder=tmp_path) as server:
        assert server.names == [name]
        started = time.monotonic()
        assert text_of(server.say(name)) == "green lamp blue"
        server.say(name, **LONG)
        each = time.monotonic() - started
        lengths: list[int] = []
        waiting = [threading.Thread(target=quietly, args=[server, name, lengths]) for _ in range(24)]
        for thread in waiting:
            thread.start()
        time.sleep(each)
        server.process.send_signal(number)
        assert server.process.wait(60) == code
        for thread in waiting:
            thread.join()
        assert sum(lengths) < len(waiting) * LONG["max_tokens"] / 2, "answers are cut short, not written to their end"
        log = server.log.read_text()
    assert "answering on http://127.0.0.1:" in log
    assert "Traceback" not in log
    assert "Error" not in log


def quietly(server: Server, name: str, lengths: list[int]) -> None:
    with suppress(openai.OpenAIError):
        lengths.append(server.say(name, **LONG).usage.completion_tokens)


def test_mlflow_serves_the_same(spoken: Path, store: str, tmp_path: Path) -> None:
    """One version, by `mlflow models serve`, by `mlflow-ft serve` and by `mlflow models predict`."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = os.environ | {"MLFLOW_TRACKING_URI": store, "PATH": path}
    command = [sys.executable, "-m", "mlflow", "models", "serve", "-m", "models:/two/1", "--env-manager", "local"]
    with (tmp_path / "mlflow.log").open("w") as log:
        other = subprocess.Popen(
            [*command, "-p", str(port)], env=environment, stdout=log, stderr=log, start_new_session=True
        )
    wanted = {"messages": ASKED, "max_tokens": 16, "stop": "zz"}
    wrong = {"messages": ASKED, "max_tokens": -1}
    try:
        with serving("two@candidate", store=store, folder=tmp_path) as server:
            mine = server.invoke(**wanted).json()
            plain = server.say("two", max_tokens=16, stop="zz")
            assert (plain.model, text_of(plain)) == ("two@candidate", mine["choices"][0]["message"]["content"])
            assert server.client.models.retrieve("two").id == "two@candidate"
            assert (
                requests.post(f"{server.url}/invocations", json=wanted | {"model": "tw"}, timeout=60).status_code == 404
            )
            page = requests.get(server.url, timeout=30).text
            for words in ("<h2>two@candidate</h2>", "<dd>models:/two/1</dd>", "<dd>merged</dd>", "limit 0.02"):
                assert words in page
            mine_wrong = server.invoke(**wrong)
        theirs = Server(f"http://127.0.0.1:{port}", [], server.process, tmp_path / "mlflow.log")
        wait_for(theirs.url, other)
        same, same_wrong = theirs.invoke(**wanted).json(), theirs.invoke(**wrong)
    finally:
        os.killpg(other.pid, signal.SIGKILL)
        other.wait()
    for key in ("choices", "usage", "object"):
        assert mine[key] == same[key]
    assert (mine_wrong.status_code, mine_wrong.json()) == (same_wrong.status_code, same_wrong.json())
    assert mine_wrong.status_code == 400

    rows = [[ASKED], [[{"role": "user", "content": "red door"}]]]
    (tmp_path / "in.json").write_text(json.dumps({"dataframe_split": {"columns": ["messages"], "data": rows}}))
    files = ["-i", str(tmp_path / "in.json"), "-o", str(tmp_path / "out.json")]
    command = [sys.executable, "-m", "mlflow", "models", "predict", "-m", "models:/two/1", "--env-manager", "local"]
    completed = subprocess.run([*command, *files], env=environment, capture_output=True, text=True, check=False)
    assert completed.returncode == 0, completed.stderr
    answers = json.loads((tmp_path / "out.json").read_text())["predictions"]
    assert len(answers) == 2
    assert answers[0]["choices"] == mine["choices"]


def wait_for(url: str, process: subprocess.Popen[Any]) -> None:
    for _ in range(600):
        assert process.poll() is None
        try:
            if requests.get(f"{url}/ping", timeout=1).ok:
                return
        except requests.RequestException:
            time.sleep(0.2)
    pytest.fail("mlflow models serve did not start")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "no model was named"),
        (["nowhere"], "is not a known model"),
        (["nothing@champion"], "no model 'nothing' with the alias 'champion'"),
        (["models:/one/9"], "cannot be fetched"),
        (["runs:/0123"], "name a model that it logged: runs:/0123/merged"),
        (["--adapter", "one-adapter@candidate"], "an adapter needs a name"),
        (["--adapter", "base=one-adapter@candidate"], "is reserved for the model without an adapter"),
        (["--adapter", "a=one-adapter/1", "--adapter", "a=two-adapter/1"], "is used twice"),
        (["--adapter", "a=one/1"], "is a whole model, not an adapter"),
        (["--adapter", "a=one-adapter/1", "--base", "x", "y"], "named twice"),
        (["--adapter", "a=one-adapter/1", "TINY"], "was trained on other weights"),
        (["one-adapter@candidate", "--base", "TINY"], "was trained on other weights"),
        (["one@candidate", "--host", "no.such.host.invalid"], "cannot be bound"),
    ],
)
def test_models_that_cannot_be_served_are_reported_at_once(
    run: Run, client: MlflowClient, spoken: Path, tiny_model: Path, arguments: list[str], words: str
) -> None:
    result = run(
        "serve", *(str(tiny_model) if argument == "TINY" else argument for argument in arguments), "--port", "0"
    )
    assert result.code == 2
    assert words in result.err
    assert "Traceback" not in result.err


def test_a_port_in_use_is_reported_before_a_model_is_loaded(run: Run, client: MlflowClient, spoken: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        result = run("serve", "one@candidate", "--port", taken.getsockname()[1])
    assert result.code == 2
    assert "cannot be bound: Address already in use" in result.err
    assert "load" not in result.err
