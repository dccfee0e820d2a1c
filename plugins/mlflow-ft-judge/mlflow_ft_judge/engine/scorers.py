"""The same judges as MLflow's own kind of judge, for `mlflow.genai.evaluate` and for traces of a model in production.

MLflow's `make_judge` is not used: its requests cannot be given a time limit, repetitions or a key of their own, and a
judge that fails is left out of the mean without a word.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mlflow.entities import AssessmentError, AssessmentSource, AssessmentSourceType, Feedback
from mlflow.genai.judges.base import Judge, JudgeField
from pydantic import PrivateAttr

from mlflow_ft import Answer
from mlflow_ft_judge import settings
from mlflow_ft_judge.engine import prompts
from mlflow_ft_judge.engine.asking import Asked, Judgement
from mlflow_ft_judge.settings import JudgeOptions, Rubric

FIELDS = {
    "inputs": "what was asked: a text, or a mapping with `messages`",
    "outputs": "the answer: a text, or a chat completion",
    "expectations": "a mapping with `expected_response`, optional",
}


class RubricJudge(Judge):
    """A rubric, asked as in a run: same prompt, cache, repetitions and reading of the reply."""

    _rubric: Rubric = PrivateAttr()
    _asked: Asked = PrivateAttr()

    def __init__(self, rubric: Rubric, asked: Asked) -> None:
        super().__init__(name=rubric.name)
        self._rubric, self._asked = rubric, asked

    @property
    def instructions(self) -> str:
        return self._rubric.instructions

    @property
    def feedback_value_type(self) -> Any:
        return int

    def get_input_fields(self) -> list[JudgeField]:
        return [JudgeField(name=name, description=description) for name, description in FIELDS.items()]

    def __call__(
        self,
        *,
        inputs: Any = None,
        outputs: Any = None,
        expectations: dict[str, Any] | None = None,
        trace: Any = None,
        session: Any = None,
    ) -> Feedback:
        answer = answer_of(inputs, outputs, expectations)
        return feedback(self._rubric.name, self._asked.ask(prompts.mark(self._rubric, answer)), self._asked)


def scorers(options: JudgeOptions) -> list[RubricJudge]:
    """A judge for each rubric, and with a second model two.

    Raises:
        ConfigError: the settings name no judge, or a rubric cannot be used.
    """
    asked = [Asked(judge, options) for judge in settings.judges(options)]
    return [RubricJudge(rubric, judge) for judge in asked for rubric in settings.rubrics(options)]


def feedback(name: str, judgement: Judgement, asked: Asked) -> Feedback:
    """A judgement as MLflow shows it; one without a verdict is an error with its reason."""
    source = AssessmentSource(source_type=AssessmentSourceType.LLM_JUDGE, source_id=asked.judge.name)
    if judgement.value is None:
        error = AssessmentError(error_code="NOT_JUDGED", error_message=judgement.reason)
        return Feedback(name=name, error=error, source=source)
    return Feedback(name=name, value=judgement.value, rationale=judgement.reason or None, source=source)


def answer_of(inputs: Any, outputs: Any, expectations: Any) -> Answer:
    """What MLflow passes to a judge as an answer."""
    messages = inputs.get("messages") if isinstance(inputs, Mapping) else None
    prompt = messages if isinstance(messages, Sequence) else [{"role": "user", "content": text_of(inputs)}]
    wanted = expectations.get("expected_response") if isinstance(expectations, Mapping) else expectations
    return Answer(prompt=tuple(prompt), expected=text_of(wanted or ""), text=text_of(outputs), finished=True)


def text_of(value: Any) -> str:
    """The text in a request, an answer or a chat completion."""
    if isinstance(value, Mapping):
        for path in (("choices", 0, "message", "content"), ("content",), ("prompt",), ("question",), ("query",)):
            found = value
            for key in path:
                try:
                    found = found[key]
                except (KeyError, IndexError, TypeError):
                    break
            else:
                return str(found)
    return value if isinstance(value, str) else str(value)
