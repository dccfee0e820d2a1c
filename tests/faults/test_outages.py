"""A server that fails in the middle of a run, for a moment or for good: nothing is lost and nothing is doubled."""

from __future__ import annotations

import random
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytest

from tests.faults.rig import Rig
from tests.faults.test_killed import check
from tests.faulty_proxy import FaultyProxy
from tests.tracking.conftest import Server
from tests.tracking.conftest import server as server
from tests.tracking.conftest import shared_server as shared_server

OUTAGES, SEED = 20, 7
KINDS: tuple[Any, ...] = ("cut", "lost", "slow", 500, 503, 429)
REQUESTS = (15, 110)
"""The outage begins with one of these requests: after the run is opened, before its end."""
PATIENCE = 4.0


@dataclass(frozen=True, kw_only=True)
class Outage:
    """How a server fails, from which request on, and for how many seconds; None: until the command has ended."""

    kind: Literal["cut", "lost", "slow"] | int
    begins: int
    seconds: float | None


def outages() -> list[Outage]:
    draw = random.Random(SEED)
    return [
        Outage(
            kind=draw.choice(KINDS),
            begins=draw.randrange(*REQUESTS),
            seconds=None if draw.random() < 0.4 else draw.uniform(0.5, PATIENCE / 2),
        )
        for _ in range(OUTAGES)
    ]


def inject(proxy: FaultyProxy, outage: Outage, ended: threading.Event) -> None:
    while len(proxy.requests) < outage.begins and not ended.wait(0.01):
        pass
    proxy.fail(outage.kind, seconds=1.0)
    if outage.seconds is not None:
        time.sleep(outage.seconds)
        proxy.heal()


@pytest.mark.fault("outage of the tracking server")
@pytest.mark.long
@pytest.mark.parametrize("number", range(OUTAGES))
def test_an_outage(rig: Rig, server: Server, tiny_model: Path, tmp_path: Path, number: int) -> None:
    outage, name, ended = outages()[number], f"outage-{number}", threading.Event()
    there = Rig(tmp_path, tiny_model, server=server.uri, experiment=name)
    with FaultyProxy(server.uri) as proxy:
        injecting = threading.Thread(target=inject, args=(proxy, outage, ended), daemon=True)
        injecting.start()
        environ = {"MLFLOW_TRACKING_URI": proxy.uri, "MLFLOW_FT_PATIENCE": str(PATIENCE)}
        started = there.start(there.training(model_name=name), **environ)
        code = started.wait()
        ended.set()
        injecting.join()
        assert code in (0, 3), started.text
        proxy.heal()
        if code == 3:
            (folder,) = (tmp_path / "outputs").iterdir()
            synced = there.start(there.command("sync", str(folder)), **environ)
            assert synced.wait() == 0, synced.text
    (run,) = there.runs()
    check(rig, there.facts(run))
