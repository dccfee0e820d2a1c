"""Load every logged model from the store in a clean process with only its requirements, and compare the outputs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlflow_ft.errors import RefusedError
from mlflow_ft.forms import compare
from mlflow_ft.job import Job
from mlflow_ft.rows import Example
from mlflow_ft.values import Data, Form, Packaged, Trained

if TYPE_CHECKING:
    from torch import Tensor

LONGEST = 3600
"""Seconds."""
SAME = 1e-6
"""Nats per token up to which both processes compute the same, so that their answers must be equal."""
PROMPTS = 2
"""Held-out prompts that each model answers."""
Answers = Mapping[str, Sequence[str]]


def prompts(job: Job, data: Data, trained: Trained) -> list[Example]:
    """The first held-out prompts that leave positions for an answer; none for a reward model."""
    from mlflow_ft.engine.judging import reference
    from mlflow_ft.engine.tokens import render, room
    from mlflow_ft.engine.training import samples

    examples = samples.prompts(job, data)
    limit = room.made_for(trained.base.path, trust_remote_code=job.config.model.trust_remote_code)
    if limit is not None:
        limit -= reference.LENGTH + _virtual(trained)
        examples = [example for example in examples if len(render.prompt_ids(data.tokenizer, example)) <= limit]
    return examples[:PROMPTS]


def _virtual(trained: Trained) -> int:
    """Positions that a learned prompt takes."""
    if trained.adapter is None:
        return 0
    settings = json.loads((trained.adapter / "adapter_config.json").read_text(encoding="utf-8"))
    return int(settings.get("num_virtual_tokens") or 0)


def answers(job: Job, data: Data, trained: Trained, form: Form) -> list[str]:
    """The greedy answers of a form in memory to `prompts`."""
    from mlflow_ft.engine.judging import reference
    from mlflow_ft.engine.tokens import render

    return [
        reference.text(form, data.tokenizer, render.prompt_ids(data.tokenizer, example))
        for example in (prompts(job, data, trained) if job.config.package.round_trip else ())
    ]


class CleanProcess:
    """A process that imports what all models need while the models are still being packaged, and then loads them.

    Leaving the context ends it, whatever it is doing.
    """

    def __init__(self, folder: Path) -> None:
        from mlflow_ft.engine.serving import bundle

        environment = {name: value for name, value in os.environ.items() if name != "MLFLOW_RUN_ID"}
        self._process = subprocess.Popen(
            [sys.executable, "-P", str(bundle.FRESH_PROCESS)],
            env=environment,
            cwd=folder,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,  # a signal to the whole group is for this process, which ends the other
        )
        self._tell(bundle.ALWAYS_NEEDED)

    def __enter__(self) -> CleanProcess:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()

    def run(self, task: Mapping[str, Any]) -> None:
        """Load the models of a task, and wait for their answers and logits; see `engine.serving.fresh_process`.

        Raises:
            RefusedError: they cannot be loaded.
        """
        self._tell(task)
        _, errors = self._process.communicate(timeout=LONGEST)
        if self._process.returncode:
            lines = [line.strip() for line in errors.splitlines() if line.strip()]
            raise RefusedError(
                "the logged models cannot be loaded in a clean process with only their requirements: "
                f"{lines[-1] if lines else 'the process gave no reason'}",
                hint="nothing was registered; see requirements.txt of the logged models",
            )

    def _tell(self, value: Any) -> None:
        assert self._process.stdin
        with suppress(BrokenPipeError):  # the process has ended: `run` says why
            self._process.stdin.write(json.dumps(value) + "\n")
            self._process.stdin.flush()


def clean_process(job: Job) -> AbstractContextManager[CleanProcess | None]:
    """Starts the process that will load the logged models; None if `package.round_trip` is off."""
    return CleanProcess(job.folder) if job.config.package.round_trip else nullcontext()


def check(
    job: Job,
    data: Data,
    trained: Trained,
    models: Sequence[Packaged],
    expected: Answers,
    process: CleanProcess | None,
) -> None:
    """Load each model in a clean process with only its requirements, and compare logits and answers.

    `expected` has the answers to `prompts` of each form, from when it was compared with the trained model.

    Raises:
        RefusedError: a model cannot be loaded, lacks a requirement, or gives different outputs. It is not registered.
    """
    if process is None or not models:
        return
    requests = [_request(example) for example in prompts(job, data, trained)]
    with (
        tempfile.TemporaryDirectory(dir=job.folder) as scratch,
        job.progress.bar("load the logged models in a clean process"),
    ):
        logged: list[dict[str, Any]] = [
            {
                "name": model.name,
                "folder": str(job.run.download_model(model.model_id, Path(scratch, "models"))),
                "requests": requests,
            }
            for model in models
        ]
        logged.sort(key=lambda model: Path(model["folder"], "requirements.txt").read_text().count("=="))
        reference = trained.folder / compare.REFERENCE
        process.run({"models": logged, "reference": str(reference), "out": scratch, "clock": _moment()})
        for model in models:
            _compare(job, data, model, Path(scratch), reference, expected[model.name])


def _moment() -> str | None:
    """The time at which this process holds the clock: an answer may depend on the date in the prompt."""
    from mlflow_ft.engine.tokens import clock

    moment = clock.moment()
    return moment.isoformat() if moment else None


def _request(example: Example) -> dict[str, Any]:
    from mlflow_ft.engine.judging.reference import LENGTH

    request: dict[str, Any] = {"messages": [dict(turn) for turn in example.prompt], "max_tokens": LENGTH}
    return request | {"temperature": 0.0} | ({"tools": [dict(tool) for tool in example.tools]} if example.tools else {})


def _compare(job: Job, data: Data, model: Packaged, folder: Path, file: Path, expected: Sequence[str]) -> None:
    from safetensors.torch import load_file

    from mlflow_ft.engine.judging import parity

    measured = parity.measure(RecordedLogits(load_file(folder / f"{model.name}.safetensors")), file, answers=False)
    job.run.metrics({f"round_trip/{model.name}/kl_mean": measured.numbers["kl_mean"]}, dataset=data.eval)
    answers = json.loads((folder / f"{model.name}.json").read_text(encoding="utf-8"))
    texts = [answer["choices"][0]["message"]["content"] for answer in answers]
    growth = measured.numbers["kl_mean"] - model.parity["kl_mean"]
    differing = next((pair for pair in zip(expected, texts, strict=True) if pair[0] != pair[1]), None)
    differing = differing if abs(growth) <= SAME else None
    if differing or not growth <= compare.NEGLIGIBLE:
        difference = f"its mean KL grew by {growth:.2g} nats"
        if differing:
            difference = f"it answers {differing[1]!r} where the packaged model answered {differing[0]!r}"
        raise RefusedError(
            f"the logged model {model.name!r} gives different outputs in a clean process: {difference}",
            hint=f"nothing was registered; compare models:/{model.model_id} with {model.folder}",
        )


class RecordedLogits:
    """A `mlflow_ft.values.Form` whose logits another process computed for whole rows."""

    def __init__(self, rows: Mapping[str, Tensor]) -> None:
        self._rows = iter([rows[name] for name in sorted(rows, key=int)])

    def logits(self, input_ids: Any, positions: Any) -> Any:
        from torch.nn import functional

        row = next(self._rows)
        return functional.pad(row, (0, 1)) if row.dim() == 2 else row[0, -len(input_ids) :][positions]

    def continued(self, input_ids: Any, length: int) -> list[int]:
        raise NotImplementedError  # its answers are compared as texts
