"""What a checkpoint holds of a trainer."""

from __future__ import annotations

import pickle
from collections import defaultdict
from typing import Any

from mlflow_ft.engine.checkpoints import of_trainer


def test_counts_can_be_sent_to_other_processes_although_their_defaults_are_local_functions() -> None:
    counts: Any = defaultdict(lambda: defaultdict(list), {"train": defaultdict(list, loss=[1.0])})
    assert pickle.loads(pickle.dumps(of_trainer.plain(counts))) == {"train": {"loss": [1.0]}}
