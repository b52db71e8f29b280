"""What the cluster's partitions have, against what a request asks for."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from trimtab.core.errors import InputError, unknown_name_message
from trimtab.core.job import Request
from trimtab.launch.slurm.options import gpus_per_node, time_limit_s
from trimtab.launch.slurm.script import cpus_per_node

SINFO_FORMAT: Final = "%P|%D|%c|%l|%G"
_GPU: Final = re.compile(r"gpu(?::[^:(,]+)?:(\d+)", re.ASCII)
_PLACES: Final = re.compile(r"\([^()]*\)")


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeGroup:
    """Equal nodes of a partition, whatever their state."""

    partition: str
    is_default: bool
    num_nodes: int
    num_cpus: int
    num_gpus: int
    time_limit_s: int | None
    """Of the partition; None: unlimited."""


def node_groups(text: str) -> tuple[NodeGroup, ...]:
    """The lines of `sinfo --noheader --format=SINFO_FORMAT`."""
    return tuple(_group(line) for line in text.splitlines() if line.strip())


def check_capacity(request: Request, groups: Sequence[NodeGroup]) -> None:
    """Refuse what no partition that the request names could ever run.

    Raises:
        InputError: A partition is unknown, or none of them has such nodes or so much time.
    """
    names = _partitions(request, groups)
    if not names:
        return  # no default: sbatch says what it makes of that
    problems = [
        _problem(request, name, [group for group in groups if group.partition == name])
        for name in names
    ]
    if all(problems):
        raise InputError("; ".join(problem for problem in problems if problem))


def _partitions(request: Request, groups: Sequence[NodeGroup]) -> tuple[str, ...]:
    named = request.job.slurm.partition
    if named is None:
        return tuple(dict.fromkeys(group.partition for group in groups if group.is_default))
    known = {group.partition for group in groups}
    names = tuple(named.split(","))
    for name in names:
        if name not in known:
            raise InputError(
                f"slurm.partition: {unknown_name_message('partition', name, known)}"
            )
    return names


def _problem(request: Request, partition: str, groups: Sequence[NodeGroup]) -> str | None:
    """Why `partition` can never run the request, or None."""
    limit_s = max((group.time_limit_s or 0 for group in groups), default=0)
    asked_s = None if request.job.slurm.time is None else time_limit_s(request.job.slurm.time)
    if limit_s and asked_s is not None and asked_s > limit_s:
        return (
            f"slurm.time: the partition {partition!r} ends jobs after {limit_s // 60} minutes, "
            f"got {asked_s // 60}"
        )
    gpus = gpus_per_node(request.job.slurm) or (
        request.ranks_per_node if request.job.needs_gpus else 0
    )
    cpus = cpus_per_node(request.job, ranks_per_node=request.ranks_per_node) or 0
    spare = request.job.restart.spare_nodes
    nodes = request.num_nodes + spare
    fit = sum(
        group.num_nodes for group in groups if group.num_gpus >= gpus and group.num_cpus >= cpus
    )
    if fit >= nodes:
        return None
    each = f"{gpus} GPUs" if gpus else f"{cpus} cores"
    return (
        f"num_nodes: {request.num_ranks} ranks ask for {nodes} nodes"
        f"{f' ({spare} of them spare)' if spare else ''} with {each} each, but the partition "
        f"{partition!r} has {_shown(groups, counts_gpus=bool(gpus))}"
    )


def _shown(groups: Iterable[NodeGroup], *, counts_gpus: bool) -> str:
    sizes = [
        f"{group.num_nodes} with "
        f"{f'{group.num_gpus} GPUs' if counts_gpus else f'{group.num_cpus} cores'}"
        for group in groups
        if group.num_nodes
    ]
    return " and ".join(sizes) or "none"


def _group(line: str) -> NodeGroup:
    name, nodes, cpus, limit, gres = line.split("|", maxsplit=4)
    plain = _PLACES.sub("", gres)  # "gpu:h100:8(S:0-1)"
    return NodeGroup(
        partition=name.removesuffix("*"),
        is_default=name.endswith("*"),
        num_nodes=int(nodes),
        num_cpus=_least(cpus),
        num_gpus=sum(int(match[1]) for match in _GPU.finditer(plain)),
        time_limit_s=time_limit_s(limit) if limit[:1].isdigit() else None,
    )


def _least(number: str) -> int:
    """Sinfo writes `16+` for nodes with 16 and more."""
    return int(number.rstrip("+"))
