"""The decision about a version: the verdict of every gate and the outcome."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal

from mlflow_ft.config.gates import Gates
from mlflow_ft.errors import FineTuneError
from mlflow_ft.records import Verdict

Outcome = Literal[
    "about to move", "promoted", "refused", "would be promoted", "would be refused", "champion already", "came too late"
]

Result = Literal["pass", "fail", "abstain", "waived"]


@dataclass(frozen=True, kw_only=True)
class PromotionRequest:
    """Which version should get which alias, and who requests it."""

    name: str
    version: str
    """Its number or an alias of it."""
    by: str
    now_ms: int
    to: str = "champion"
    gates: Gates | None = None
    """None: those logged with the version's run, else the defaults."""
    gates_from: str = ""
    dry_run: bool = False
    copy_to: str = ""
    """Another registered model: the files are copied there, and its alias is moved."""
    registry: str = ""
    """URI of the tracking server whose registry has `copy_to`; "": the same server."""
    open_run: str = ""
    """Id of the run that `mlflow run` opened for this; it also gets the decision."""


@dataclass(frozen=True, kw_only=True)
class Judged:
    """A verdict and the gate that gave it."""

    gate: str
    verdict: Verdict
    waived: str = ""
    """The reason why the gate need not pass."""

    @property
    def name(self) -> str:
        return f"{self.gate} {self.verdict.subject}".strip()

    @property
    def result(self) -> Result:
        if self.verdict.passed is None:
            return "abstain"
        if self.verdict.passed:
            return "pass"
        return "waived" if self.waived else "fail"

    def as_dict(self) -> dict[str, Any]:
        """The verdict as JSON, with null for NaN and infinity."""
        verdict = asdict(self.verdict)
        numbers: dict[str, float] = verdict["numbers"]
        verdict["numbers"] = {name: value if math.isfinite(value) else None for name, value in numbers.items()}
        waived = self.waived if self.result == "waived" else None
        return {"gate": self.gate, "result": self.result, "waived": waived} | verdict


@dataclass(frozen=True, kw_only=True)
class Decision:
    """What was decided, by whom, when, and on which evidence."""

    outcome: Outcome
    name: str
    version: int
    alias: str
    champion: int | None
    """The version that had the alias."""
    by: str
    at_ms: int
    run_id: str
    judged: tuple[Judged, ...]
    gates: Gates
    gates_from: str
    notes: tuple[str, ...] = ()
    target: str = ""
    """The registered model whose alias moves, if the version is copied there."""
    copied: int | None = None
    """The number of the copy."""
    number: int | None = None
    """The number of the move in the record."""
    artifact: str = ""
    error: FineTuneError | None = field(default=None, compare=False)

    @property
    def passed(self) -> bool:
        return not self.failed

    @property
    def failed(self) -> list[str]:
        return [judged.name for judged in self.judged if judged.result == "fail"]

    @property
    def waived(self) -> dict[str, str]:
        """The waived gates that did not pass, each with the reason."""
        return {judged.gate: judged.waived for judged in self.judged if judged.result == "waived"}

    @property
    def reason(self) -> str:
        """What was waived and why, in a sentence; "" if nothing was."""
        return "; ".join(f"{gate} waived: {reason}" for gate, reason in self.waived.items())

    @property
    def counts(self) -> str:
        """The number of verdicts of each sort."""
        results = [judged.result for judged in self.judged]
        sorts = {"pass": "passed", "abstain": "abstained", "waived": "waived"}
        return ", ".join(f"{results.count(result)} {word}" for result, word in sorts.items() if result in results)

    def as_dict(self) -> dict[str, Any]:
        """The complete decision as JSON, with the settings of the gates and every number."""
        plain = ("outcome", "name", "version", "alias", "champion", "by", "run_id", "gates_from", "target", "copied")
        return {key: getattr(self, key) for key in plain} | {
            "number": self.number,
            "at": datetime.fromtimestamp(self.at_ms / 1000, UTC).isoformat(),
            "passed": self.passed,
            "artifact": self.artifact,
            "notes": list(self.notes),
            "gates": [judged.as_dict() for judged in self.judged],
            "config": self.gates.model_dump(mode="json"),
            "error": str(self.error) if self.error else None,
        }


def dumps(decision: Decision) -> str:
    """The decision as it is logged."""
    return json.dumps(decision.as_dict(), indent=2, ensure_ascii=False, default=str)
