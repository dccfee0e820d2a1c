"""`report.html`: the verdict first, hostile text harmless, and nothing that needs a script or the network."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import PERMISSION_DENIED

from mlflow_ft.config.gates import Gates
from mlflow_ft.forms import answers, changes, report
from mlflow_ft.forms.card.markdown import clean, code, plain
from mlflow_ft.forms.report import page
from mlflow_ft.forms.report.page import SHOWN, chosen, marked
from mlflow_ft.progress import Progress
from mlflow_ft.testing import make_rows, write_jsonl
from mlflow_ft.tracking import contenders
from mlflow_ft.values import Answer, Score, Scores

FineTune = Callable[..., Any]
HOSTILE = "<script>alert(1)</script> {{ 7 * 7 }} \u202e\u05e9\u05dc\u05d5\u05dd & \"quoted\" 'text'"


class Page(HTMLParser):
    """The elements of a page, its links, and whether every element is closed."""

    VOID = ("meta", "br", "path", "use")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[str] = []
        self.words: list[str] = []
        self.feed(text)
        assert not self.open, self.open

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.seen.append(tag)
        for name, value in attrs:
            assert not name.startswith("on"), name
            assert name not in ("src", "href", "xlink:href") or str(value).startswith("#"), value
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: Any) -> None:
        self.seen.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def facts(**given: Any) -> report.Facts:
    info = SimpleNamespace(run_id="0" * 32, run_name="lora tiny rows.jsonl", start_time=0, status="FINISHED")
    run: Any = SimpleNamespace(info=info, data=SimpleNamespace(metrics={}, tags={}, params={}))
    scores = {side: given.pop(side, []) for side in ("base", "tuned")}
    for name in ("metrics", "tags", "params"):
        setattr(run.data, name, given.pop(name, {}))
    found = changes.of(scores["base"], scores["tuned"], Gates())
    values: dict[str, Any] = {"curves": {}, "answers": [], "quality": {}, "mask": ""}
    said = changes.verdict(("loss",), scores["base"], scores["tuned"], found)
    return report.Facts(run=run, **scores, by_score=found, verdict=said, **values | given)


def answer(*, before: bool = False, after: bool = False, **texts: str) -> dict[str, Any]:
    given = {"prompt": "p", "expected": "e", "base": "b", "tuned": "t"} | texts
    return {**given, "base_exact": before, "tuned_exact": after}


def test_a_run_without_anything_has_a_page() -> None:
    shown = Page(report.as_page(facts()))
    assert "Not scored row by row" in "".join(shown.words)
    assert "svg" not in shown.seen


def test_the_verdict_comes_first() -> None:
    base, tuned = ([Score.mean("loss", [value] * 40)] for value in (3.0, 1.0))
    words = " ".join("".join(Page(report.as_page(facts(base=base, tuned=tuned))).words).split())
    assert words.index("Better than its base: loss 3 → 1") < words.index("Scores before and after")
    worse = facts(base=tuned, tuned=base, tags={"mlflow_ft.worse": "the tuned model is worse than its base: loss"})
    text = report.as_page(worse)
    assert text.index("the tuned model is worse") < text.index("<h1>")


def test_hostile_text_is_text() -> None:
    made = facts(
        answers=[answer(prompt=HOSTILE, expected=HOSTILE, base=HOSTILE, tuned="x " + HOSTILE)],
        mask=f"[[{HOSTILE}]]",
        limits=f"- {plain(HOSTILE)} and {code(HOSTILE)}",
        quality={"checks": [{"name": HOSTILE, "count": 1, "share": 0.5, "severity": "warn", "summary": HOSTILE}]},
        params={"cfg.method": HOSTILE, "cfg.data.path": HOSTILE},
        tags={"mlflow_ft.error": HOSTILE, "mlflow_ft.base_model": HOSTILE},
        metrics={f"parity/{HOSTILE}/kl_mean": 0.1},
        base=[Score.mean(HOSTILE, [1.0])],
        tuned=[Score.mean(HOSTILE, [0.0])],
    )
    made.run.info.run_name = HOSTILE
    shown = Page(report.as_page(made))
    assert "script" not in shown.seen
    assert "".join(shown.words).count("{{ 7 * 7 }}") >= 10
    assert f"{clean(HOSTILE)} and {clean(HOSTILE)}" in "".join(shown.words)


def test_numbers_that_are_none_break_nothing() -> None:
    made = facts(
        base=[Score(name="loss", value=math.nan, rows=(math.nan, None))],
        tuned=[Score(name="loss", value=math.inf, rows=(math.inf, 1.0)), Score(name="new", value=1.0)],
        curves={"train/loss": {1: math.nan, 2: 2.0, 3: math.inf, 4: 1.0}, "eval/loss": {2: math.nan}},
    )
    shown = Page(report.as_page(made))
    assert shown.seen.count("svg") == 1
    assert "nan" not in re.sub(r"[a-z]*nan[a-z]+", "", "".join(shown.words).lower())


def test_many_scores_and_long_answers() -> None:
    guards = [Score.mean(f"guard-{number}/exact_match", [1.0, 0.0]) for number in range(30)]
    made = facts(base=guards, tuned=guards, answers=[answer(tuned="word " * 5000) for _ in range(100)])
    text = report.as_page(made)
    assert len(text) < 400_000
    assert text.count('class="bar"') == 60
    assert "20 of 100" in text


def test_bars_mark_where_the_tuned_score_may_lie() -> None:
    before, after = [1.0] * 4 + [0.0] * 36, [1.0] * 30 + [0.0] * 10
    made = facts(
        base=[Score.mean("exact_match", before), Score.mean("loss", [4.0, 3.0] * 20), Score(name="rouge", value=0.2)],
        tuned=[Score.mean("exact_match", after), Score.mean("loss", [1.0, 2.0] * 20), Score(name="rouge", value=0.4)],
    )
    exact, loss, rouge = (score["bars"] for score in page._scores(made))
    assert exact["widths"] == [10, 75]
    end = exact["interval"]["left"] + exact["interval"]["width"]
    assert 10 < exact["interval"]["left"] < 75 < end < 100
    assert loss["widths"] == [100, pytest.approx(100 * 1.5 / 3.5, abs=0.1)]  # a loss is no share: of the largest value
    assert loss["interval"]["left"] < loss["widths"][1] < loss["interval"]["left"] + loss["interval"]["width"] < 100
    assert rouge == {"widths": [50, 100], "interval": None}  # without rows there is no interval
    assert report.as_page(made).count("<b style=") == 2


@pytest.mark.parametrize(("before", "after"), [(math.nan, 1.0), (-1.0, 1.0), (0.0, 0.0), (1.0, math.inf)])
def test_values_that_have_no_length_have_no_bars(before: float, after: float) -> None:
    made = facts(base=[Score(name="reward", value=before)], tuned=[Score(name="reward", value=after)])
    assert [score["bars"] for score in page._scores(made)] == [None]
    assert "line across a tuned bar" not in report.as_page(made)


def test_what_went_wrong_is_shown_first() -> None:
    answers = [
        answer(before=before, after=after) for before in (False, True) for after in (True, False) for _ in range(9)
    ]
    picked = chosen(answers)
    kinds = [(one["base_exact"], one["tuned_exact"]) for one in picked]
    assert len(picked) == SHOWN
    assert kinds[0] == (True, False)
    assert kinds == sorted(kinds, key=[(True, False), (False, False), (False, True), (True, True)].index)
    assert {(False, True), (True, True)} <= set(kinds)


def given(text: str) -> Answer:
    return Answer(prompt=({"role": "user", "content": "p"},), expected="e", text=text, finished=True)


def test_the_kept_table_begins_with_what_went_wrong_and_numbers_the_rows() -> None:
    texts = [("e", "e"), ("x", "e"), ("x", "x"), ("e", "x"), ("x", "e")]
    both = tuple((given(base), given(tuned)) for base, tuned in texts)
    table = answers.table(Scores(base=(), tuned=(), answers=both))
    assert [row["row"] for row in table] == [4, 3, 2, 5, 1]
    assert [answers.kind(row) for row in table] == ["broken", "differs", "fixed", "fixed", "as before"]
    kept = {"columns": list(table[0]), "data": [list(row.values()) for row in table]}
    assert [(row["base"], row["tuned"]) for row in contenders._answers(kept)] == texts  # the rows' own order again


@pytest.mark.parametrize(
    ("text", "expected", "pieces"),
    [
        ("turn on", "turn on", [(False, "turn on")]),
        ("turn off now", "turn on now", [(False, "turn "), (True, "off"), (False, " now")]),
        ("anything", "", [(False, "anything")]),
        ("", "expected", []),
    ],
)
def test_what_is_not_expected_is_marked(text: str, expected: str, pieces: list[tuple[bool, str]]) -> None:
    assert marked(text, expected) == pieces


def test_a_run_has_its_report_and_the_command_writes_it_again_and_compares_it(
    fine_tune: FineTune, tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from mlflow_ft.cli.report import command

    rows = write_jsonl(tmp_path / "rows.jsonl", make_rows(24))
    asked = {"model": tiny_model, "data": rows, "max_steps": 4, "eval_steps": 2, "logging_steps": 1}
    run_id = fine_tune("lora", **asked).run_id
    client = MlflowClient()
    kept = Path(client.download_artifacts(run_id, report.FILE)).read_text(encoding="utf-8")
    shown = Page(kept)
    words = "".join(shown.words)
    loss = client.get_run(run_id).data.metrics["eval/tuned/loss"]
    for wanted in ("lora tiny rows.jsonl", f"{loss:.4g}", "merged", "learned", "Answers", "2 held out"):
        assert wanted in words
    assert words.index("What was not shown") < words.index("scored on 2 held-out rows split off from the same source")
    assert "\\" not in words.partition("What was not shown")[2]
    assert "rows by length in tokens" in words
    assert shown.seen.count("svg") == 3
    quality = Path(client.download_artifacts(run_id, "data/quality.html")).read_text(encoding="utf-8")
    assert "<h1>Data quality of rows.jsonl</h1>" in quality
    assert command.callback is not None
    out = tmp_path / "new" / "page.html"
    command.callback(named=[run_id], run_id="", out=out, log=False)
    assert capsys.readouterr().out.strip() == str(out)
    assert "".join(Page(out.read_text(encoding="utf-8")).words) == words

    other = fine_tune("lora", **asked, **{"training.learning_rate": 0.05, "adapter.r": 2}).run_id
    command.callback(named=[run_id], run_id=other, out=out, log=False)
    compared = Page(out.read_text(encoding="utf-8"))
    words = " ".join("".join(compared.words).split())
    assert compared.seen.count("svg") == 2
    for wanted in ("2 runs compared", "training.learning_rate", "adapter.r", "0.05", "B beside A", "Answers 2 of 2"):
        assert wanted in words
    assert "training.max_steps" not in words
    assert ("B is the best" in words) or ("has the best loss, but is not shown" in words)


def test_a_server_that_does_not_let_the_experiment_be_changed_costs_only_the_list(
    fine_tune: FineTune,
    tiny_model: Path,
    tiny_rows: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    warned: list[str] = []
    monkeypatch.setattr(Progress, "warn", lambda self, text: warned.append(text))

    def refuse(*_: Any) -> None:
        raise MlflowException("Permission denied", error_code=PERMISSION_DENIED)

    monkeypatch.setattr(MlflowClient, "set_experiment_tag", refuse)
    run_id = fine_tune("lora", model=tiny_model, data=tiny_rows, max_steps=1).run_id
    assert MlflowClient().get_run(run_id).info.status == "FINISHED"
    assert report.FILE in [file.path for file in MlflowClient().list_artifacts(run_id)]
    assert [text for text in warned if "the experiment's list of runs does not show the scores" in text]
