"""How many machines a job's ranks share, and which networks they have."""

from trimtab.core.communicators import RankNetwork, cluster_networks
from trimtab.core.errors import InputError
from trimtab.core.job import JobSpec, ScriptSpec


def num_nodes(job: JobSpec | ScriptSpec) -> int:
    """The job's own `num_nodes`, else as few as its cluster's nodes allow; a script's: one.

    The ranks are shared evenly, and a rank is one device of a node.

    Raises:
        InputError: No number of the cluster's nodes shares the ranks evenly.
    """
    if job.num_nodes is not None:
        return job.num_nodes
    if isinstance(job, ScriptSpec):
        return 1
    for count in range(1, job.num_ranks + 1):
        per_node, rest = divmod(job.num_ranks, count)
        if not rest and count <= _num_nodes_with(job, devices=per_node):
            return count
    largest = max(node.gpus_per_node for node in job.cluster.nodes)
    raise InputError(
        f"num_ranks: no number of nodes of the cluster {job.cluster.name!r}, with up to "
        f"{largest} devices each, shares {job.num_ranks} ranks evenly; choose another "
        "num_ranks, or set num_nodes"
    )


def job_networks(job: JobSpec | ScriptSpec) -> tuple[RankNetwork, ...]:
    """What a job's ranks are told about their NICs; a script's own ranks: nothing."""
    if isinstance(job, ScriptSpec):
        return ()
    return cluster_networks(job.cluster, job.num_ranks)


def _num_nodes_with(job: JobSpec, *, devices: int) -> int:
    return sum(node.count for node in job.cluster.nodes if node.gpus_per_node >= devices)
