"""A cluster file with measured links: a small job that times them, and what follows from it."""

import dataclasses
import json
import sys
from pathlib import Path

from trimtab.core import checks, serde
from trimtab.core.cluster import ClusterSpec, IslandLink, Link, NicSpec, NodeSpec
from trimtab.core.errors import InputError, JobFailedError
from trimtab.core.job import ScriptSpec
from trimtab.core.link_speed import LinkSpeeds, PairKind, PairSpeed, RankPool
from trimtab.core.scheduling import RayOptions, RestartSpec, SlurmOptions
from trimtab.orchestrator.rundir import RunDir

_RESULT_MARK = "TRIMTAB_LINKS "
"""As `link_speed.RESULT_MARK` of the runtime, which cannot be imported without torch."""


def rank_pools(cluster: ClusterSpec, *, ranks_per_node: int | None) -> tuple[RankPool, ...]:
    """The ranks that measure: as many on every node of the file.

    Raises:
        InputError: A node has fewer GPUs than that, or nothing could be measured.
    """
    fewest = min(cluster.nodes, key=lambda node: node.gpus_per_node)
    if ranks_per_node is None:
        ranks_per_node = fewest.gpus_per_node
    checks.whole_number("--ranks-per-node", ranks_per_node)
    if ranks_per_node > fewest.gpus_per_node:
        raise InputError(
            f"--ranks-per-node: the nodes {fewest.name!r} have {fewest.gpus_per_node} GPUs, "
            f"got {ranks_per_node}"
        )
    pools = tuple(
        RankPool(
            name=node.name,
            island=node.island,
            num_nodes=node.count,
            ranks_per_node=ranks_per_node,
        )
        for node in cluster.nodes
    )
    if sum(pool.num_ranks for pool in pools) < 2:
        raise InputError(
            f"cluster: {cluster.name!r} has one rank to measure with, which reaches nobody; "
            "expected two or more GPUs"
        )
    return pools


def measuring_job(
    cluster: ClusterSpec,
    pools: tuple[RankPool, ...],
    *,
    on_one_machine: bool,
    slurm: SlurmOptions,
    ray: RayOptions,
) -> ScriptSpec:
    """The job whose ranks time the links; on one machine all nodes of the file are this one."""
    documents = []
    for pool in pools:
        fields = serde.to_document(pool)
        del fields["schema"], fields["type"]
        documents.append(fields)
    num_nodes = sum(pool.num_nodes for pool in pools)
    return ScriptSpec(
        name=f"topology-{cluster.name}",
        argv=(
            sys.executable,
            "-m",
            "trimtab.launch.runtime.link_speed",
            json.dumps(documents),
        ),
        folder=str(Path.cwd()),
        num_ranks=sum(pool.num_ranks for pool in pools),
        num_nodes=1 if on_one_machine else num_nodes,
        needs_gpus=not all(node.gpu.is_cpu for node in cluster.nodes),
        restart=RestartSpec(max_restarts=0),
        slurm=slurm,
        ray=ray,
    )


def read_speeds(run: RunDir) -> LinkSpeeds:
    """What rank 0 of a finished measuring run has printed.

    Raises:
        JobFailedError: It printed no result.
    """
    log = run.rank_log(0)
    if log.exists():
        for line in log.read_text(encoding="utf-8", errors="replace").splitlines():
            if _RESULT_MARK in line:
                return serde.from_json(LinkSpeeds, line.partition(_RESULT_MARK)[2])
    raise JobFailedError(f"{run.handle}: expected the measured links in {log}, got none")


def measured_cluster(cluster: ClusterSpec, speeds: LinkSpeeds, *, when: str) -> ClusterSpec:
    """The cluster with what was measured in the place of what its file said.

    A node's own link is that of a pair of neighbours. Its fastest NICs share what all ranks of
    a node sent at once to another node. A link between islands is what all ranks sent at once,
    one way and the other. What had no pair stays as it was.

    Args:
        cluster: As its file says.
        speeds: Measured on ranks in the order of the file's nodes.
        when: Of the measurement, for the source.
    """
    found: dict[tuple[PairKind, str, str], PairSpeed] = {
        (pair.kind, pair.source, pair.target): pair for pair in speeds.pairs
    }
    nodes = tuple(
        _measured_node(
            node,
            inside=found.get(("node", node.name, node.name)),
            outside=found.get(("island", node.name, node.name)),
        )
        for node in cluster.nodes
    )
    between = [pair for pair in speeds.pairs if pair.kind == "between"]
    links = tuple(
        IslandLink(
            islands=(pair.source, pair.target),
            link=Link(bytes_per_s=pair.bytes_per_s, latency_s=pair.latency_s),
            one_way=True,
        )
        for pair in between
    )
    kinds = ", ".join(dict.fromkeys(_KINDS[pair.kind] for pair in speeds.pairs))
    source = (
        f"{cluster.source.rstrip('. ')}. Measured by trimtab topology --measure {when}, "
        f"{speeds.backend}, {speeds.num_ranks} ranks: {kinds}"
    )
    return dataclasses.replace(
        cluster, nodes=nodes, links=links or cluster.links, source=source.lstrip(". ")
    )


_KINDS = {
    "node": "links in nodes",
    "island": "NICs",
    "between": "links between islands",
}


def _measured_node(
    node: NodeSpec, *, inside: PairSpeed | None, outside: PairSpeed | None
) -> NodeSpec:
    if inside is not None:
        per_pair = inside.bytes_per_s / inside.num_pairs
        node = dataclasses.replace(
            node, intra_node=Link(bytes_per_s=per_pair, latency_s=inside.latency_s)
        )
    if outside is None:
        return node
    fastest = node.fastest_nic

    def measured(nic: NicSpec) -> NicSpec:
        if nic != fastest:
            return nic
        return dataclasses.replace(
            nic,
            bytes_per_s=outside.bytes_per_s / nic.count,
            latency_s=outside.latency_s,
        )

    return dataclasses.replace(node, nics=tuple(map(measured, node.nics)))
