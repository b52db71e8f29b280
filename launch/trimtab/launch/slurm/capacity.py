"""What the cluster's partitions have, against what a request asks for."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from trimtab.core.errors import InputError, unknown_name_message
from trimtab.core.job import Request
from trimtab.launch.slurm.arguments import further_arguments
from trimtab.launch.slurm.options import gpus_per_node, time_limit_s
from trimtab.launch.slurm.script import cpus_per_node

SINFO_FORMAT: Final = "%P|%a|%T|%D|%c|%l|%G"
_GPU: Final = re.compile(r"gpu(?::[^:(,]+)?:(\d+)", re.ASCII)
_UNUSABLE: Final = re.compile(r"down|drain|fail|maint|reboot|unk|inval", re.IGNORECASE)
"""Node states in which no job starts. Source: sinfo(1), node state codes."""
_CORES: Final = frozenset({"cpus-per-task", "cpus-per-gpu", "exclusive"})
_PLACES: Final = re.compile(r"\([^()]*\)")


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeGroup:
    """Equal nodes of a partition."""

    partition: str
    is_default: bool
    num_nodes: int
    num_cpus: int
    num_gpus: int
    is_usable: bool
    """Whether a job could start there, once others have ended."""
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


def leaves_cores_open(request: Request) -> bool:
    """Whether the cores beside the GPUs are left to the cluster's configuration."""
    further = further_arguments(request.job.slurm.args)
    return request.job.needs_gpus and not _CORES & further.keys()


def check_cores(
    request: Request, groups: Sequence[NodeGroup], *, partitions: str, config: str
) -> None:
    """Refuse a request with GPUs that would get a single core on each node.

    Args:
        request: One that `leaves_cores_open`.
        groups: What the partitions have.
        partitions: What `scontrol --oneliner show partition` prints.
        config: What `scontrol show config` prints.

    Raises:
        InputError: Neither the partition nor the cluster says how many cores go with a GPU.
    """
    if re.search(r"DefCpuPerGPU|SelectType\s*=\s*select/linear", config):
        return
    names = _partitions(request, groups)
    for line in partitions.splitlines():
        name = line.partition(" ")[0].removeprefix("PartitionName=")
        if name in names and re.search(r"DefCpuPerGPU|OverSubscribe=EXCLUSIVE", line):
            return
    ranks = request.ranks_per_node
    raise InputError(
        f"slurm.args: say how many cores the {ranks} ranks of a node need (cpus-per-task="
        f"{8 * ranks}, cpus-per-gpu=8 or exclusive, say): the cluster has no default for jobs "
        "with GPUs and would give them one core together"
    )


def lacks_nodes_now(request: Request, groups: Sequence[NodeGroup]) -> bool:
    """Whether nodes that the request could run on are down, drained or closed now."""
    names = _partitions(request, groups)
    return any(not group.is_usable for group in groups if group.partition in names)


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
    if limit_s and request.job.slurm.time is not None:
        asked_s = time_limit_s(request.job.slurm.time)
        if asked_s is None or asked_s > limit_s:
            asked = "no limit" if asked_s is None else f"{asked_s} s"
            return (
                f"slurm.time: the partition {partition!r} ends jobs after {limit_s} s, got "
                f"{asked}"
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
        f"num_nodes: {request.num_ranks} ranks ask for {nodes} "
        f"node{'s' if nodes > 1 else ''}"
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
    name, available, state, nodes, cpus, limit, gres = line.split("|", maxsplit=6)
    plain = _PLACES.sub("", gres)  # "gpu:h100:8(S:0-1)"
    return NodeGroup(
        partition=name.removesuffix("*"),
        is_default=name.endswith("*"),
        num_nodes=int(nodes),
        num_cpus=_least(cpus),
        num_gpus=sum(int(match[1]) for match in _GPU.finditer(plain)),
        is_usable=available == "up" and not _UNUSABLE.match(state),
        time_limit_s=time_limit_s(limit) if limit[:1].isdigit() else None,
    )


def _least(number: str) -> int:
    """Sinfo writes `16+` for nodes with 16 and more."""
    return int(number.rstrip("+"))
