"""Which process of a job this is, from the variables of torchrun, Slurm and MPI."""

from __future__ import annotations

import pytest

from mlflow_ft.errors import ConfigError
from mlflow_ft.processes import STARTERS, Place, Starter, check_single, first_node, place, settle

SLURM = {
    "SLURM_STEP_NUM_TASKS": "8",
    "SLURM_PROCID": "5",
    "SLURM_LOCALID": "1",
    "SLURM_NTASKS_PER_NODE": "4",
    "SLURM_STEP_NODELIST": "gpu[07-08]",
    "SLURM_JOB_ID": "4711",
}


@pytest.mark.parametrize("starter", STARTERS, ids=lambda starter: starter.size)
def test_several_processes_of_a_command_for_one_are_refused_in_one_sentence(starter: Starter) -> None:
    with pytest.raises(ConfigError) as refused:
        check_single({starter.size: "2", starter.rank: "0"})
    assert starter.size in str(refused.value)
    assert len(str(refused.value).splitlines()) == 1


@pytest.mark.parametrize("value", ["", "1", "0", "two"])
def test_one_process_is_let_pass(value: str) -> None:
    check_single({starter.size: value for starter in STARTERS})
    check_single({"SLURM_NTASKS": "4"})  # of the job; one step of it may still be one process


@pytest.mark.parametrize("starter", STARTERS, ids=lambda starter: starter.size)
def test_a_process_knows_its_number(starter: Starter) -> None:
    here = place({starter.size: "4", starter.rank: "3", starter.local_rank: "1"})
    assert here == Place(rank=3, size=4, local_rank=1, starter=starter)
    assert not here.leads
    assert place({}).leads


@pytest.mark.parametrize("rank", ["", "2", "-1", "x"])
def test_a_process_without_a_number_is_refused(rank: str) -> None:
    with pytest.raises(ConfigError, match="RANK of this one"):
        place({"WORLD_SIZE": "2", "RANK": rank})


def test_slurm_says_where_the_first_rank_is() -> None:
    environ = dict(SLURM)
    assert settle(environ).rank == 5
    assert (environ["RANK"], environ["WORLD_SIZE"]) == ("5", "8")
    assert environ["LOCAL_RANK"] == "1"
    assert environ["LOCAL_WORLD_SIZE"] == "4"
    assert environ["MASTER_ADDR"] == "gpu07"
    assert environ["MASTER_PORT"] == "24711"


def test_torchrun_under_slurm_is_left_alone() -> None:
    environ = SLURM | {"WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "1", "MASTER_ADDR": "here"}
    before = dict(environ)
    assert settle(environ).rank == 1
    assert environ == before


def test_mpi_on_one_machine_needs_no_address_and_on_several_asks_for_it() -> None:
    environ = {"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_LOCAL_SIZE": "2"}
    settle(environ)
    assert environ["MASTER_ADDR"] == "127.0.0.1"
    with pytest.raises(ConfigError, match="MASTER_ADDR"):
        settle({"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_LOCAL_SIZE": "1"})


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("node1", "node1"),
        ("a,b", "a"),
        ("gpu[07-09,12],login1", "gpu07"),
        ("rack[1-2]-n[3-4]", "rack1-n3"),
        ("n[1,3]", "n1"),
    ],
)
def test_the_first_node_of_a_list(nodes: str, first: str) -> None:
    assert first_node(nodes) == first
