"""Before the first resumed step: what was restored, compared with what was saved, bit by bit."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from mlflow_ft.engine.checkpoints import folder, tree
from mlflow_ft.errors import RefusedError
from mlflow_ft.values import Job, Resume

SHOWN = 3


class Comparison:
    """The comparison of a job's checkpoint with the state that was restored from it."""

    def __init__(self, job: Job, resume: Resume) -> None:
        self._job, self._resume = job, resume
        self._parts: dict[str, dict[str, Any]] = {}
        self.reported = False

    def compare(self, part: str, saved: Any, restored: Any) -> None:
        """Compare two trees."""
        self.note(part, tree.differences(saved, restored), values=sum(1 for _ in tree.leaves(saved)))

    def note(self, part: str, different: Iterable[str], **facts: Any) -> None:
        """Record which values of a part differ."""
        self._parts[part] = {"different": list(different), **facts}

    @property
    def refused(self) -> bool:
        """Whether `report` would raise, by what was compared so far."""
        return not self._resume.accept_changes and any(result["different"] for result in self._parts.values())

    def report(self) -> None:
        """Keep the comparison on the run as `resume/step-N.json`, and refuse to continue if something differs.

        Raises:
            RefusedError: something differs, and differences were not accepted.
        """
        self.reported = True
        step = self._resume.step
        differing = {part: result["different"] for part, result in self._parts.items() if result["different"]}
        content = {"step": step, "equal": not differing, "parts": self._parts}
        self._job.run.artifact_text(json.dumps(content, indent=2), f"resume/{folder.name(step)}.json")
        if not differing:
            self._job.progress.say(f"everything that was restored equals the checkpoint of step {step}")
            return
        names = "; ".join(f"{part} ({', '.join(paths[:SHOWN])})" for part, paths in differing.items())
        if self._resume.accept_changes:
            self._job.progress.warn(f"accepted: what was restored differs from the checkpoint of step {step}: {names}")
            return
        raise RefusedError(
            f"what was restored differs from the checkpoint of step {step}: {names}",
            hint="resume on a machine and with versions as before, or accept the difference with --accept-changes",
        )
