"""Real Ray clusters on this machine."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest

os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}  # read when Ray is imported
OF_A_NODE = {"num_cpus": 1, "object_store_memory": 80 * 2**20, "include_dashboard": False}


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A cluster of one node; a test adds those that it needs."""
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args=OF_A_NODE)
    yield cluster
    cluster.shutdown()


@pytest.fixture
def three_nodes(cluster: Any) -> Any:
    """The cluster with three nodes of one CPU each."""
    while len(cluster.worker_nodes) < 2:
        cluster.add_node(**OF_A_NODE)
    return cluster
