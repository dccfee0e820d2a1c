"""Two processes train one policy: each samples its share, and both end with the same weights."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import importlib.util, os, sys
from pathlib import Path
spec = importlib.util.spec_from_file_location("ppo_bench", sys.argv[1])
bench = importlib.util.module_from_spec(spec)
sys.modules["ppo_bench"] = bench
spec.loader.exec_module(bench)
from mlflow_ft_ppo.engine import ppo
rank = os.environ["RANK"]
trial = bench.lay(Path(sys.argv[3]) / rank, Path(sys.argv[2]), gradient_accumulation_steps=2, num_iterations=2)
model = trial.prepare()
trained = ppo.train(trial.job, trial.data, model)
total = sum(float(weight.double().abs().sum()) for weight in model.module.parameters())
episodes = trial.curve("train/episode")
Path(sys.argv[3], f"{rank}.txt").write_text(f"{total!r} {episodes} {trained.metrics['train/steps']}")
"""


@pytest.mark.slow
def test_two_processes_train_the_same_policy(tiny_model, tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    arguments = [tmp_path / "script.py", Path(__file__).with_name("conftest.py"), tiny_model, tmp_path]
    completed = subprocess.run(
        [*command, *map(str, arguments)], cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False
    )
    assert completed.returncode == 0, completed.stderr[-3000:]
    first, second = ((tmp_path / f"{rank}.txt").read_text().split() for rank in (0, 1))
    assert first[0] == second[0]
    assert "".join(first[1:3]) == "[32.0,64.0]", "two processes of 16 answers a step"
    assert second[1] == "[]", "only the first process logs metrics"
    assert first[-1] == second[-1] == "2.0"
