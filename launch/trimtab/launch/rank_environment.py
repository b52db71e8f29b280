"""What a rank finds in its environment: `torchrun`'s variables, and our own."""

from collections.abc import Mapping
from pathlib import Path
from typing import Final

from trimtab.launch import wire

STORE_FD_VARIABLE: Final = "TRIMTAB_STORE_FD"
"""Names the open file, inherited by rank 0, that is the bound socket of the ranks' store."""


def rank_environment(
    order: wire.StartRanks,
    *,
    local_rank: int,
    node: str,
    run_dir: Path,
    store_fd: int | None,
    inherited: Mapping[str, str],
) -> dict[str, str]:
    """The whole environment of a rank.

    Args:
        order: What the controller asked for.
        local_rank: Of this rank on its node, from 0.
        node: The node's name.
        run_dir: The run directory as this node sees it.
        store_fd: Bound socket of the rendezvous store, for rank 0 of our worker.
        inherited: What the agent passes on, secrets of the user's included.

    Source: the names `torchrun` sets, in PyTorch's torch.distributed.run; Slurm's of one task
    a rank (srun(1)), which training frameworks read before the others.
    """
    rank = order.first_rank + local_rank
    environment = {
        **inherited,
        **{variable.name: variable.value for variable in order.environment},
        "RANK": str(rank),
        "WORLD_SIZE": str(order.world_size),
        "LOCAL_RANK": str(local_rank),
        "LOCAL_WORLD_SIZE": str(order.num_ranks),
        "GROUP_RANK": str(order.node_index),
        "GROUP_WORLD_SIZE": str(order.num_nodes),
        "ROLE_RANK": str(rank),
        "ROLE_WORLD_SIZE": str(order.world_size),
        "MASTER_ADDR": order.store_host,
        "MASTER_PORT": str(order.store_port),
        "TORCHELASTIC_RESTART_COUNT": str(order.attempt - 1),
        "TRIMTAB_ATTEMPT": str(order.attempt),
        "TRIMTAB_COLLECTOR": order.collector_address,
        "TRIMTAB_COLLECTOR_TOKEN": order.collector_token,
        "TRIMTAB_NODE": node,
        "TRIMTAB_NODE_ADDRESS": order.node_address,
        "TRIMTAB_RENDEZVOUS": _store_url(order),
        "TRIMTAB_REQUEST": str(run_dir / order.request_name),
    }
    if "SLURM_JOB_ID" in inherited:
        environment |= {
            "SLURM_PROCID": str(rank),
            "SLURM_LOCALID": str(local_rank),
            "SLURM_NTASKS": str(order.world_size),
            "SLURM_NPROCS": str(order.world_size),
            "SLURM_NODEID": str(order.node_index),
            "SLURM_NNODES": str(order.num_nodes),
            "SLURM_NTASKS_PER_NODE": str(order.num_ranks),
            "SLURM_TASKS_PER_NODE": _per_node(order),
            "SLURM_STEP_TASKS_PER_NODE": _per_node(order),
        }
    if store_fd is not None:
        environment[STORE_FD_VARIABLE] = str(store_fd)
    return environment


def _per_node(order: wire.StartRanks) -> str:
    """In Slurm's form: `8`, or `8(x4)` on four nodes."""
    return f"{order.num_ranks}" + (f"(x{order.num_nodes})" if order.num_nodes > 1 else "")


def _store_url(order: wire.StartRanks) -> str:
    host = f"[{order.store_host}]" if ":" in order.store_host else order.store_host
    return f"tcp://{host}:{order.store_port}"
