"""The model card: written by real runs on a tiny model, and read back as a person, the Hub and the registry do."""

from __future__ import annotations

import itertools
import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any

import mlflow
import pytest
from huggingface_hub import ModelCard
from markdown_it import MarkdownIt
from mlflow import MlflowClient

from mlflow_ft import Score, pipeline, plugins
from mlflow_ft.cli.asked import asked
from mlflow_ft.engine import hub
from mlflow_ft.forms import card
from mlflow_ft.forms.card import About, front, licence, limits, load, markdown, sections
from mlflow_ft.operations.merging import adapters
from mlflow_ft.operations.merging.merge_adapter import MergeRequest, merge
from mlflow_ft.progress import Progress
from mlflow_ft.testing import copy_store, make_rows, write_jsonl
from mlflow_ft.tracking.contenders import contender
from mlflow_ft.values import BaseModel, CheckResult, Report

pytestmark = pytest.mark.slow  # one run that nearly all of these read

HOSTILE = "a|b `c` ``d`` <script>x</script> *e* [f](g) \\| ü"
FORMS = ("merged", "adapter")
TITLES = ["Scores", "Parity", "Limits", "Licence", "Data", "How to load", "Training"]
Cells = list[list[str]]


@dataclass(frozen=True, kw_only=True)
class Made:
    """A finished run, what its cards were written from, and the cards as they come out of MLflow."""

    client: MlflowClient
    outcome: pipeline.Outcome
    about: dict[str, About]
    folders: dict[str, Path]

    def text(self, form: str) -> str:
        return (self.folders[form] / "artifacts/model/README.md").read_text(encoding="utf-8")

    def description(self, form: str) -> str:
        version = self.outcome.versions[FORMS.index(form)]
        return str(self.client.get_model_version(version.name, str(version.version)).description)

    @property
    def metrics(self) -> dict[str, float]:
        return dict(self.client.get_run(self.outcome.run_id).data.metrics)

    @property
    def counts(self) -> dict[str, float]:
        params = self.client.get_run(self.outcome.run_id).data.params
        return {key: float(value) for key, value in params.items() if key.startswith("data/")}


@pytest.fixture(scope="module")
def made(empty_store: Path, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Made]:
    """A run whose model, data and name are such as to break a table, and whose data is no good."""
    folder = tmp_path_factory.mktemp("card")
    base = shutil.copytree(tiny_model, folder / "ti|ny `model`")
    (base / "README.md").write_text("---\nlicense: apache-2.0\n---\n# Tiny\n")
    rows = write_jsonl(folder / "ro|ws `x`.jsonl", [*make_rows(), make_rows()[0], {"messages": []}])
    about: dict[str, About] = {}
    written = card.write

    def noted(facts: About) -> None:
        about[facts.form.name] = facts
        written(facts)

    with pytest.MonkeyPatch.context() as patch:
        for name in ("MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_ID", "MLFLOW_EXPERIMENT_NAME", "MLFLOW_FT_BASE_MODEL"):
            patch.delenv(name, raising=False)
        uri = copy_store(empty_store, folder)
        patch.setenv("MLFLOW_TRACKING_URI", uri)
        patch.chdir(folder)
        patch.setattr(card, "write", noted)
        loaded = plugins.load({"MLFLOW_FT_PLUGINS": ""})
        given = {
            "model": base,
            "data": f"[{json.dumps(str(rows))}]",
            "run.name": HOSTILE,
            "output_dir": folder / "outputs",
            "max_steps": 2,
            "eval_steps": 1,
            "max_new_tokens": 8,
            "package.round_trip": "false",
            "evaluation.max_rows": 4,
            "fail_on": "never",
            "on_bad_row": "drop",
            "registry.model_name": "tiny",
            "learning_rate": "1.5e-3",
        }
        config = asked(["lora", *(f"--{key}={value}" for key, value in given.items())], loaded)
        outcome = pipeline.run(config, loaded, progress=Progress(quiet=True))
        folders = {
            form: Path(mlflow.artifacts.download_artifacts(f"models:/{version.model_id}"))
            for form, version in zip(FORMS, outcome.versions, strict=True)
        }
        yield Made(client=MlflowClient(uri), outcome=outcome, about=about, folders=folders)


@pytest.fixture
def about(made: Made) -> About:
    return made.about["merged"]


def tables(text: str, title: str) -> list[Cells]:
    """The tables of a section, as GitHub shows them: the text of every cell."""
    section = text.partition(f"\n## {title}\n")[2].partition("\n## ")[0]
    cells: list[Cells] = []
    tokens = MarkdownIt("commonmark").enable("table").parse(section)
    for before, token in itertools.pairwise(tokens):
        if token.type == "thead_open":
            cells.append([])
        elif before.type == "tr_open":
            cells[-1].append([])
        if token.type == "inline" and before.type in ("th_open", "td_open"):
            assert "html_inline" not in {child.type for child in token.children or ()}
            cells[-1][-1].append("".join(child.content for child in token.children or ()))
    return cells


def column(cells: Cells, name: str) -> dict[str, str]:
    """A column of a table by its first one."""
    place = cells[0].index(name)
    return {row[0]: row[place] for row in cells[1:]}


def built_in(made: Made) -> str:
    """The hash of what ships inside."""
    active = made.about["merged"].job.plugins.active
    [own] = {info.sha256[:12] for info in active if info.module.startswith("mlflow_ft.builtin.")}
    return own


# --- the card of a run


@pytest.mark.parametrize("form", FORMS)
def test_the_hub_reads_the_card_back(made: Made, form: str) -> None:
    loaded = ModelCard.load(made.folders[form] / "artifacts/model/README.md")
    assert loaded.data.to_dict() == {
        "license": "apache-2.0",
        "library_name": "peft" if form == "adapter" else "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["mlflow-ft", "mlflow", "lora"],
        "metrics": ["exact_match", "perplexity"],
    }
    assert re.findall(r"(?m)^## (.*)$", loaded.text) == TITLES


@pytest.mark.parametrize("form", FORMS)
def test_every_score_is_the_metric_of_the_run(made: Made, form: str) -> None:
    [scores] = tables(made.text(form), "Scores")
    for model in ("base", "tuned"):
        shown = {name.removesuffix(" (lower is better)"): value for name, value in column(scores, model).items()}
        metrics = {
            key.removeprefix(f"eval/{model}/"): markdown.number(value)
            for key, value in made.metrics.items()
            if key.startswith(f"eval/{model}/")
        }
        assert shown == metrics
        assert {"loss", "perplexity", "exact_match", "finished"} <= shown.keys()
    assert column(scores, "rows")["exact_match"] == "4"


@pytest.mark.parametrize("form", FORMS)
def test_the_parity_is_the_metric_of_the_run(made: Made, form: str) -> None:
    [parity] = tables(made.text(form), "Parity")
    prefix = f"parity/{form}/"
    metrics = {key.removeprefix(prefix): value for key, value in made.metrics.items() if key.startswith(prefix)}
    wanted = {sections.PARITY.get(key, key): markdown.number(value) for key, value in metrics.items()}
    assert column(parity, "measured") == wanted
    assert column(parity, "limit")[sections.PARITY["kl_mean"]] == "at most 0.02"


def test_the_data_is_what_was_trained_on(made: Made) -> None:
    sides, findings = tables(made.text("merged"), "Data")
    tags = made.client.get_run(made.outcome.run_id).data.tags
    train = column(sides, "train")
    assert train["source"].endswith("/ro|ws `x`.jsonl")
    assert train["digest"] == tags["mlflow_ft.data_digest"]
    for name in ("rows", "tokens"):
        for side, shown in (("train", "train"), ("eval", "held out")):
            assert column(sides, shown)[name] == markdown.number(made.counts[f"data/{side}/{name}"])
    assert train["learned tokens"].startswith(f"{made.counts['data/train/supervised_tokens']:,.0f} (")
    assert train["left out of the source"] == "1"
    assert tags["mlflow_ft.data_fingerprint"] in made.text("merged")
    counts = {row[1]: row[2] for row in findings[1:]}
    wanted = {key.removeprefix("data/check/"): value for key, value in made.counts.items() if "/check/" in key}
    assert counts == {name: markdown.number(value) for name, value in wanted.items() if value}
    assert counts["bad-row"] == "1"


def test_the_settings_are_those_of_the_run_with_their_origin(made: Made) -> None:
    [settings] = tables(made.text("merged"), "Training")
    values, origins = column(settings, "value"), column(settings, "from")
    params = made.client.get_run(made.outcome.run_id).data.params
    assert values["training.learning_rate"] == params["cfg.training.learning_rate"] == "0.0015"
    assert origins["training.learning_rate"] == "--learning_rate (command line)"
    assert (values["adapter.kind"], origins["adapter.kind"]) == ("lora", "method lora")
    assert (values["run.seed"], origins["run.seed"]) == ("42", "default")
    assert not [name for name in values if name.startswith(("registry.", "run.name", "run.output"))]
    text = made.text("merged")
    assert f"peft {metadata.version('peft')}" in text
    assert re.search(rf"(?m)^- plugin `built in` \S+, sha256 `{built_in(made)}`$", text)


def test_hostile_values_are_told_whole(made: Made) -> None:
    text = made.text("merged")
    html = MarkdownIt("commonmark").enable("table").render(text.partition("\n---\n")[2])
    assert "a|b `c` ``d`` &lt;script&gt;x&lt;/script&gt; *e* [f](g) \\| ü" in html
    assert "<script" not in html
    assert "ti|ny `model`" in html


@pytest.mark.parametrize("form", FORMS)
def test_the_description_of_the_version_is_the_card(made: Made, form: str) -> None:
    text, description = made.text(form), made.description(form)
    assert len(description) <= card.LONGEST
    assert description == card.description(text)
    assert description.startswith("# tiny")
    assert "## Limits" in description


def test_the_card_beside_the_model_is_a_card_too(made: Made) -> None:
    version = made.outcome.versions[1]
    description = made.description("adapter")
    made.client.update_model_version(version.name, str(version.version), description=" ")
    undescribed = made.client.get_model_version(version.name, str(version.version))
    assert contender(made.client, undescribed).described
    made.client.update_model_version(version.name, str(version.version), description=description)
    files = Path(made.client.get_logged_model(version.model_id).artifact_location)
    (files / "artifacts/model/README.md").rename(files / "aside")
    made.client.update_model_version(version.name, str(version.version), description=" ")
    assert not contender(made.client, undescribed).described
    made.client.update_model_version(version.name, str(version.version), description=description)
    (files / "aside").rename(files / "artifacts/model/README.md")


def test_versions_say_which_plugins_made_them(made: Made) -> None:
    for form in FORMS:
        version = made.outcome.versions[FORMS.index(form)]
        tags = made.client.get_model_version(version.name, str(version.version)).tags
        assert re.match(rf"built in \S+ sha256:{built_in(made)}(, |$)", tags["mlflow_ft.plugins"])
        assert tags["mlflow_ft.plugins"].count("built in") == 1
        assert tags["mlflow_ft.run_id"] == made.outcome.run_id
    assert made.client.get_run(made.outcome.run_id).data.tags["mlflow_ft.plugins"] == tags["mlflow_ft.plugins"]


@pytest.mark.parametrize("form", FORMS)
def test_what_the_card_says_of_loading_works(made: Made, form: str) -> None:
    section = made.text(form).partition("\n## How to load\n")[2].partition("\n## ")[0]
    by_mlflow, by_other = re.findall(r"(?ms)^```python\n(.*?)^```", section)
    names: dict[str, Any] = {}
    exec(by_mlflow, names)
    assert isinstance(eval(by_mlflow.splitlines()[-1], names), str)
    names = {}
    exec(by_other, names)
    assert names["model"].num_parameters() > 100_000


def test_a_merge_of_the_adapter_takes_nothing_of_its_card(made: Made, tmp_path: Path) -> None:
    adapter = made.folders["adapter"] / "artifacts/model"
    single = merge(MergeRequest(adapter=str(adapter), out=tmp_path / "one"), Progress(quiet=True))
    both = MergeRequest(adapter=f"{adapter},{adapter}", weights=(0.5, 0.5), out=tmp_path / "two")
    two = merge(both, Progress(quiet=True))
    combined = adapters.find(both, tmp_path / "combined", Progress(quiet=True))
    for folder in (single.folder, two.folder, combined.folder):
        assert (folder / "tokenizer.json").is_file()
        assert not (folder / card.CARD).exists()


# --- limits


def limits_text(about: About, **config: dict[str, Any]) -> str:
    """The limits, with some settings changed."""
    changed = about.config
    for section, values in config.items():
        changed = changed.model_copy(update={section: getattr(changed, section).model_copy(update=values)})
    return limits.limits(replace(about, job=replace(about.job, config=changed)))


def test_limits_are_facts_of_the_run(made: Made, about: About) -> None:
    text = limits_text(about)
    rows = int(made.counts["data/eval/rows"])
    assert f"scored on {rows} held-out rows split off from the same source" in text
    assert "may be off by up to 49 percentage points" in text  # 98 / sqrt(4)
    assert "at most 1,024 tokens of each row" in text
    assert "which `data.fail_on never` allowed" in text
    assert f"compared with the trained model on {made.metrics['parity/merged/tokens']:.0f} tokens" in text
    for absent in ("nf4", "reward", "trust_remote_code", "cut at that length", "worse", "has no value"):
        assert absent not in text


@pytest.mark.parametrize(
    ("settings", "wanted"),
    [
        ({"model": {"quantize": "nf4"}}, "merged into the dequantised nf4 weights"),
        ({"model": {"trust_remote_code": True}}, "Training ran Python code that came with the base model"),
        ({"data": {"max_length": 2048}}, "at most 2,048 tokens of each row"),
    ],
)
def test_limits_follow_the_settings(about: About, settings: dict[str, Any], wanted: str) -> None:
    assert wanted in limits_text(about, **settings)
    assert wanted not in limits_text(about)


def test_limits_tell_what_got_worse_and_what_was_not_measured(about: About) -> None:
    base = (Score(name="loss", value=1.0), Score.mean("exact_match", [1.0, 1.0]), Score(name="acme", value=2.0))
    tuned = (
        Score(name="loss", value=1.5),
        Score.mean("exact_match", [1.0, 0.0]),
        Score(name="acme", value=1.0),
        Score.mean("judged", [1.0, None, None, None]),
        Score.mean("nothing", [None, None]),
    )
    changed = replace(about, scores=replace(about.scores, base=base, tuned=tuned))
    text = limits.limits(changed)
    assert "made `loss` worse: 1 before, 1.5 after" in text
    assert "made `exact_match` worse: 1 before, 0.5 after" in text
    assert "made `acme` worse" not in text  # nobody knows which way is better
    assert "`judged` has no value for 75.0 % of the rows" in text
    assert "`nothing` could not be measured" in text
    [cells] = tables(f"\n## Scores\n{sections.scores(changed)}", "Scores")
    assert column(cells, "coverage, tuned") | {"loss (lower is better)": ""} == {
        "loss (lower is better)": "",
        "exact_match": "100.0 %",
        "acme": "100.0 %",
        "judged": "25.0 %",
        "nothing": "0.0 %",
    }
    assert column(cells, "tuned")["nothing"] == "none"


def test_limits_of_rows_that_were_cut(about: About) -> None:
    train = replace(about.data.train, counts={**about.data.train.counts, "truncated": 11})
    text = limits.limits(replace(about, data=replace(about.data, train=train)))
    assert re.search(r"11 training rows \(\d+\.\d %\) were cut at that length", text)


def test_limits_name_the_rewards(about: About) -> None:
    run = about.job.run.client.get_run(about.job.run.run_id)
    run.data.tags.update({"mlflow_ft.reward_funcs": "short = f.py:short", "mlflow_ft.reward_model": "models:/r/3"})
    text = limits.limits(replace(about, run=run))
    assert "these rewards and nothing else: short = f.py:short" in text
    assert "the reward model `models:/r/3`" in text


def test_nothing_found_is_said_too(about: About) -> None:
    clean = replace(about.data, report=Report(rows=5, checks=(result("empty", 0),)))
    assert "1 check found nothing in 5 rows" in sections.data(replace(about, data=clean))
    assert "data checks found" not in limits.limits(replace(about, data=clean))
    report = Report(rows=5, checks=(result("e|mpty", 1),))
    text = sections.data(replace(about, data=replace(about.data, report=report)))
    assert tables(f"\n## Data\n{text}", "Data")[1][1] == ["error", "e|mpty", "1", "20.0 %", "rows <b> | none"]


def result(name: str, count: int) -> CheckResult:
    return CheckResult(name=name, severity="error", summary="rows <b> | none", count=count, share=count / 5)


# --- the licence, and what the Hub is told


def base_of(folder: Path, **more: Any) -> BaseModel:
    values = {"name": "b", "path": folder, "name_or_path": str(folder), "revision": "sha256:0", "origin": "folder"}
    return BaseModel(**(values | more))


@pytest.mark.parametrize(
    ("file", "content", "identifier", "said"),
    [
        ("README.md", "---\nlicense: MIT\n---\n", "mit", "The base model's licence is `mit`"),
        (
            "README.md",
            "---\nlicense: other\nlicense_name: llama|3\nlicense_link: https://x.y/z\n---\n",
            "other",
            "licence is llama|3, https://x.y/z, according to",
        ),
        ("README.md", "---\nlicense: [mit, apache-2.0]\n---\n", "other", "licence is mit, apache-2.0, according to"),
        ("README.md", "---\nlicense: 'a b\n  c: *d*'\n---\n", "other", "licence is a b c: \\*d\\*, according to"),
        ("README.md", "# no front matter\n", "", "is unknown"),
        ("README.md", "---\n: [broken\n---\n", "", "is unknown"),
        ("README.md", "---\n- a list\n---\n", "", "is unknown"),
        ("README.md", "---\nlicense: 3\n---\n", "", "is unknown"),
        (
            "LICENSE.txt",
            "\n  Apache License  \nVersion 2.0\n",
            "",
            "licence is Apache License, according to the first line of",
        ),
        ("LICENSE", "", "", "is unknown"),
    ],
)
def test_the_licence_is_what_the_base_tells(
    tmp_path: Path, file: str, content: str, identifier: str, said: str
) -> None:
    (tmp_path / file).write_text(content)
    known = licence.of(base_of(tmp_path))
    assert known.identifier == identifier
    assert said in load.licence(known)


def test_the_licence_of_a_known_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "README.md" in hub.MODEL_FILES  # else the card of no model on the Hub is seen
    on_hub = base_of(tmp_path, name_or_path="HuggingFaceTB/SmolLM2-135M-Instruct", revision="abc")
    monkeypatch.setenv("MLFLOW_FT_CACHE", str(tmp_path))
    kept = base_of(hub._kept("smollm2-135m", hub.SHORT_NAMES["smollm2-135m"]))
    for base in (on_hub, kept):
        assert licence.of(base).identifier == "apache-2.0"
        assert front.hub_base(base) == "HuggingFaceTB/SmolLM2-135M-Instruct"
    other = base_of(tmp_path / "smollm2-135m", name="smollm2-135m")
    assert licence.of(other).identifier == front.hub_base(other) == ""


def test_an_adapter_of_a_model_on_the_hub(made: Made, about: About, tmp_path: Path) -> None:
    base = base_of(tmp_path, name_or_path="owner/base-1.5", revision="0123abc")
    held = replace(about.data.eval, sources=("owner/rows",))
    changed = replace(
        made.about["adapter"],
        trained=replace(about.trained, base=base),
        data=replace(about.data, eval=held, train=replace(about.data.train, sources=("owner/rows", "/a/b.jsonl"))),
    )
    file = tmp_path / "README.md"
    file.write_text(card.text(changed))
    data = ModelCard.load(file).data
    assert (data.base_model, data.base_model_relation, data.datasets) == ("owner/base-1.5", "adapter", ["owner/rows"])
    assert data.model_name == "tiny-adapter"
    values = {result.metric_type: result.metric_value for result in data.eval_results}
    assert values == pytest.approx({score.name: score.value for score in about.scores.tuned})
    assert {result.dataset_type for result in data.eval_results} == {"owner/rows"}
    assert front.hub_base(base_of(tmp_path, name_or_path="owner/base", revision="sha256:1")) == ""
    assert front.hub_base(base_of(tmp_path, name_or_path="models:/m/1", revision="abc")) == ""


# --- text


def test_a_long_card_is_cut_before_a_section() -> None:
    sections = {title: f"{title} " * 150 for title in TITLES}
    body = "".join(f"\n## {title}\n\n{text}\n" for title, text in sections.items())
    text = f"---\nlicense: mit\n---\n\n# name\n\nwhat it is\n{body}"
    description = card.description(text)
    assert len(description) <= card.LONGEST
    kept = re.findall(r"(?m)^## (.*)$", description)
    assert kept == TITLES[: len(kept)]
    assert 0 < len(kept) < len(TITLES)
    assert all(sections[title].strip() in description for title in kept)
    left = ", ".join(TITLES[len(kept) :])
    assert description.endswith(
        f"\n\nThe rest of this card ({left}) is in `artifacts/model/README.md` of this version."
    )
    # one section more would not have fitted
    assert len(description) + len(sections[TITLES[len(kept)]]) > card.LONGEST


def test_sections_of_any_length_are_cut_in_time() -> None:
    for length in range(720, 1500, 7):
        body = "".join(f"\n\n## {title}\n\n{'x' * length}" for title in TITLES)
        assert card.LONGEST - length - 200 < len(card.description(f"# name{body}")) <= card.LONGEST


@pytest.mark.parametrize("length", [0, 10, 4999, 5000, 5001, 20_000])
def test_a_description_is_never_too_long(length: int) -> None:
    description = card.description("# name\n\n" + "x" * length + "\n\n## Scores\n\nfew\n")
    assert len(description) <= card.LONGEST
    assert ("The rest of this card" in description) == (length > 4970)
    assert card.description("x" * length) == "x" * min(length, card.LONGEST) or length > card.LONGEST


def test_a_short_card_is_told_whole() -> None:
    assert card.description("---\na: 1\n---\n\n# name\n\n---\n\nend\n") == "# name\n\n---\n\nend"


@pytest.mark.parametrize(
    ("value", "wanted"),
    [
        ("https://user:pa%20ss@host/x", "https://***@host/x"),
        ("https://host/x?a=1&sig=abc&b=2", "https://host/x?a=1&sig=***&b=2"),
        ("https://host/x?X-Amz-Security-Token=a/b", "https://host/x?X-Amz-Security-Token=***"),
        ("key hf_abcdefghijklmnopqrst.", "key ***."),
        ("a\nb\x00c\u2028d\x1b[0m", "a b c d [0m"),
        ("lone \ud800 surrogate", "lone ? surrogate"),
        ("https://host/a@b?page=2", "https://host/a@b?page=2"),
        ("x" * 500, "x" * 400 + " ..."),
    ],
)
def test_a_value_is_one_clean_line_without_secrets(value: str, wanted: str) -> None:
    assert markdown.clean(value) == wanted


@pytest.mark.parametrize(
    "value",
    [
        "",
        "`",
        "``",
        "a`",
        "`a`b``c```",
        "|",
        "\\|",
        "a|b",
        "<b>",
        "&lt;",
        "\\",
        "a\\",
        "*x*",
        "_x_",
        "[a](b)",
        "#",
        "~~x~~",
    ],
)
def test_any_value_comes_back_out_of_a_table(value: str) -> None:
    cells = markdown.table(["a", "b", "c"], [[markdown.code(value), markdown.plain(value), "end"]])
    [rows] = tables(f"\n## T\n\n{cells}\n", "T")
    assert [rows[1][0].strip(), *rows[1][1:]] == [value, value, "end"]


def test_cells_of_a_description_stand_apart_and_stay_what_they_are() -> None:
    table = markdown.table(["", "a", "b"], [["x", markdown.code("p | q"), ""], ["y", markdown.plain("|"), "z"]])
    spaced = markdown.spaced(f"{table}\n\nno | table\n```\nx | y\n```")
    assert spaced.count("&ensp;") == 2 * 3
    assert spaced.endswith("no | table\n```\nx | y\n```")
    [rows] = tables(f"\n## T\n\n{spaced}\n", "T")
    assert [[cell.strip() for cell in row] for row in rows] == [["", "a", "b"], ["x", "p | q", ""], ["y", "|", "z"]]


@pytest.mark.parametrize(
    ("value", "wanted"),
    [
        (0.0, "0"),
        (1.0, "1"),
        (0.123456, "0.1235"),
        (1.5e-9, "1.5e-09"),
        (48.0, "48"),
        (1234567.0, "1,234,567"),
        (12345.67, "12,345.7"),
        (float("nan"), "none"),
        (float("inf"), "none"),
        (None, "none"),
    ],
)
def test_numbers(value: float | None, wanted: str) -> None:
    assert markdown.number(value) == wanted
