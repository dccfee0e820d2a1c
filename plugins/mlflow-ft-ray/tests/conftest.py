"""A real Ray cluster of three nodes on this machine, one for all tests of this folder."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest

os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}  # read when Ray is imported
OF_A_NODE = {"num_cpus": 1, "object_store_memory": 80 * 2**20, "include_dashboard": False}


@pytest.fixture(scope="session")
def cluster() -> Iterator[Any]:
    """The cluster; a test that removes a node adds one."""
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args=OF_A_NODE)
    for _ in range(2):
        cluster.add_node(**OF_A_NODE)
    yield cluster
    cluster.shutdown()


@pytest.fixture
def address(cluster: Any, monkeypatch: pytest.MonkeyPatch) -> str:
    """The cluster's address, where the program looks for it."""
    monkeypatch.setenv("RAY_ADDRESS", cluster.address)
    return str(cluster.address)
