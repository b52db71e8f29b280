from collections.abc import Mapping
from pathlib import Path

import pytest

from trimtab.core.job import EnvVar
from trimtab.launch import wire
from trimtab.launch.rank_environment import rank_environment


def order(*, store_host: str = "10.0.0.1", num_nodes: int = 3) -> wire.StartRanks:
    return wire.StartRanks(
        attempt=2,
        first_rank=4,
        num_ranks=2,
        world_size=6,
        num_nodes=num_nodes,
        node_index=2,
        argv=("true",),
        folder="/",
        environment=(EnvVar(name="OMP_NUM_THREADS", value="4"),),
        request_name="request.json",
        request_text="",
        node_address="10.0.0.3",
        store_host=store_host,
        store_port=4567,
        rank_takes_socket=True,
        collector_address="10.0.0.1:99",
        collector_token="marker",
    )


def environment(
    order: wire.StartRanks,
    inherited: Mapping[str, str] | None = None,
    *,
    store_fd: int | None = None,
) -> dict[str, str]:
    return rank_environment(
        order,
        local_rank=1,
        node="n2",
        run_dir=Path("/runs/r 1"),
        store_fd=store_fd,
        inherited=inherited or {},
    )


def test_a_rank_finds_torchruns_variables_and_ours() -> None:
    assert environment(order(), {"HF_TOKEN": "inherited"}) == {
        "HF_TOKEN": "inherited",
        "OMP_NUM_THREADS": "4",
        "RANK": "5",
        "WORLD_SIZE": "6",
        "LOCAL_RANK": "1",
        "LOCAL_WORLD_SIZE": "2",
        "GROUP_RANK": "2",
        "GROUP_WORLD_SIZE": "3",
        "ROLE_RANK": "5",
        "ROLE_WORLD_SIZE": "6",
        "MASTER_ADDR": "10.0.0.1",
        "MASTER_PORT": "4567",
        "TORCHELASTIC_RESTART_COUNT": "1",
        "TRIMTAB_ATTEMPT": "2",
        "TRIMTAB_COLLECTOR": "10.0.0.1:99",
        "TRIMTAB_COLLECTOR_TOKEN": "marker",
        "TRIMTAB_NODE": "n2",
        "TRIMTAB_NODE_ADDRESS": "10.0.0.3",
        "TRIMTAB_RENDEZVOUS": "tcp://10.0.0.1:4567",
        "TRIMTAB_REQUEST": "/runs/r 1/request.json",
    }


def test_an_ipv6_store_is_bracketed_in_its_url_only() -> None:
    found = environment(order(store_host="fd00::2"))
    assert found["TRIMTAB_RENDEZVOUS"] == "tcp://[fd00::2]:4567"
    assert found["MASTER_ADDR"] == "fd00::2"


@pytest.mark.parametrize(("num_nodes", "per_node"), [(3, "2(x3)"), (1, "2")])
def test_slurms_variables_are_those_of_one_task_a_rank(num_nodes: int, per_node: str) -> None:
    agents = {
        "SLURM_JOB_ID": "7",
        "SLURM_PROCID": "2",
        "SLURM_LOCALID": "0",
        "SLURM_NTASKS": "3",
        "SLURM_NTASKS_PER_NODE": "1",
        "SLURM_JOB_NODELIST": "n[0-2]",
    }
    found = environment(order(num_nodes=num_nodes), agents)
    assert {name: value for name, value in found.items() if name.startswith("SLURM_")} == {
        "SLURM_JOB_ID": "7",
        "SLURM_JOB_NODELIST": "n[0-2]",
        "SLURM_PROCID": "5",
        "SLURM_LOCALID": "1",
        "SLURM_NTASKS": "6",
        "SLURM_NPROCS": "6",
        "SLURM_NODEID": "2",
        "SLURM_NNODES": str(num_nodes),
        "SLURM_NTASKS_PER_NODE": "2",
        "SLURM_TASKS_PER_NODE": per_node,
        "SLURM_STEP_TASKS_PER_NODE": per_node,
    }


def test_a_handed_down_socket_is_named() -> None:
    assert environment(order(), store_fd=9)["TRIMTAB_STORE_FD"] == "9"
    assert "TRIMTAB_STORE_FD" not in environment(order())


def test_the_collectors_token_shows_in_no_text_of_the_order() -> None:
    assert "marker" not in repr(order())
