"""Two jobs on one SQLite store, one of which is killed: neither disturbs the other."""

from __future__ import annotations

import pytest

from tests.faults.rig import Rig
from tests.faults.test_killed import after, check


@pytest.mark.fault("two jobs on one SQLite store, one killed")
@pytest.mark.long
@pytest.mark.parametrize("line", ["train ...", "package merged", "log merged"])
def test_two_jobs_on_one_store(rig: Rig, line: str) -> None:
    moment, names = after(rig, line), [f"{side}-{line[:5].strip()}{len(line)}" for side in ("left", "right")]
    left, right = (rig.start(rig.training(model_name=name)) for name in names)
    left.interrupt(moment)
    assert right.wait() == 0, right.text
    by_name = {run.data.params["cfg.registry.model_name"]: run for run in rig.runs() if run.data.params}
    rig.finish(rig.command("resume", by_name[names[0]].info.run_id))
    for name in names:
        check(rig, rig.facts(rig.client.get_run(by_name[name].info.run_id)))
