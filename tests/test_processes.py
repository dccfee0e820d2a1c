from __future__ import annotations

import pytest

from mlflow_ft.errors import ConfigError
from mlflow_ft.processes import SIZES, check_single


@pytest.mark.parametrize("name", SIZES)
def test_several_processes_are_refused_in_one_sentence(name: str) -> None:
    with pytest.raises(ConfigError) as refused:
        check_single({name: "2"})
    assert name in str(refused.value)
    assert len(str(refused.value).splitlines()) == 1


@pytest.mark.parametrize("value", ["", "1", "0", "two"])
def test_one_process_is_let_pass(value: str) -> None:
    check_single(dict.fromkeys(SIZES, value))
    check_single({"SLURM_NTASKS": "4"})  # of the job; one step of it may still be one process
