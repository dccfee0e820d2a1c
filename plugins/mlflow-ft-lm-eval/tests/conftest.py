"""Two tasks of our own, with their data: multiple choice, and answers that are generated."""

from __future__ import annotations

from pathlib import Path

import pytest

from mlflow_ft.testing import WORDS, write_jsonl

CHOICE = """\
task: colours
dataset_path: json
dataset_kwargs:
  data_files: {{test: {data}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: "{{{{answer}}}}"
metric_list:
  - {{metric: acc, aggregation: mean, higher_is_better: true}}
  - {{metric: acc_norm, aggregation: mean, higher_is_better: true}}
metadata: {{version: 1.0}}
"""
GENERATE = """\
task: reverse
dataset_path: json
dataset_kwargs:
  data_files: {{test: {data}}}
test_split: test
fewshot_split: test
output_type: generate_until
doc_to_text: "{{{{question}}}}\\n"
doc_to_target: "{{{{words}}}}"
generation_kwargs: {{until: ["\\n"], max_gen_toks: 12, do_sample: false}}
process_results: !function checks.judged
metric_list:
  - {{metric: exact_match, aggregation: mean, higher_is_better: true}}
  - {{metric: misses, aggregation: mean, higher_is_better: false}}
metadata: {{version: 2.0}}
"""
CHECKS = """\
def judged(doc, results):
    exact = results[0].strip() == doc["words"]
    return {"exact_match": float(exact), "misses": float(not exact)}
"""


@pytest.fixture(scope="session")
def rows() -> list[dict[str, object]]:
    return [
        {
            "question": f"{WORDS[number % 13]} {WORDS[(number + 4) % 13]}",
            "choices": [WORDS[(number + step) % 13] for step in (1, 3, 6)],
            "answer": number % 3,
            "words": WORDS[(number + 4) % 13],
        }
        for number in range(12)
    ]


@pytest.fixture(scope="session")
def task_files(tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, object]]) -> list[str]:
    """The YAML files of the tasks `colours` and `reverse`."""
    folder = tmp_path_factory.mktemp("tasks")
    data = write_jsonl(folder / "rows.jsonl", rows)
    (folder / "checks.py").write_text(CHECKS)
    return [str(_written(folder / f"{name}.yaml", text.format(data=data))) for name, text in TASKS.items()]


TASKS = {"colours": CHOICE, "reverse": GENERATE}


def _written(file: Path, text: str) -> Path:
    file.write_text(text)
    return file
