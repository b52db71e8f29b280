"""Schedules to start a search from: any arrangement, any paths, that keep the rules."""

import itertools
import random
from collections.abc import Sequence

from trimtab.core.errors import InfeasibleError
from trimtab.core.stage_paths import PathInstance

Partitions = tuple[tuple[int, ...], ...]
Paths = tuple[tuple[int, ...], ...]

_TRIES = 50
_SWAPS_PER_NODE = 200


def stage_quotas(instance: PathInstance, partitions: Partitions) -> list[int]:
    """Paths through each stage but the first, as equal as the memory of their nodes allows.

    Raises:
        InfeasibleError: All stages together hold too few.
    """
    most = _most_per_stage(instance, partitions)
    wanted = _wanted(instance)
    if wanted > sum(most):
        raise InfeasibleError(_shortage(instance, wanted, sum(most)))
    quotas = [0] * len(most)
    for _ in range(wanted):
        stage = min(
            (s for s in range(len(most)) if quotas[s] < most[s]), key=lambda s: (quotas[s], s)
        )
        quotas[stage] += 1
    return quotas


def random_partitions(
    instance: PathInstance, generator: random.Random, *, most_in_stage_s: float
) -> Partitions:
    """Nodes in stages by chance, exchanged until no two of a stage are too far apart.

    Raises:
        InfeasibleError: None was found.
    """
    nodes = [node for node in range(instance.num_nodes) if node not in instance.without]
    for attempt in range(_TRIES):
        generator.shuffle(nodes)
        if attempt >= _TRIES // 2:  # memory is short: origins need it least
            nodes.sort(key=instance.memory.__getitem__)
        partitions = _cut(nodes, instance.partition_sizes)
        if not _bring_near(instance, partitions, generator, most_in_stage_s):
            continue
        found = tuple(map(tuple, partitions))
        if attempt + 1 < _TRIES and _holds(instance, found) < _wanted(instance):
            continue
        return found
    raise InfeasibleError(
        f"no arrangement was found whose stages have no two nodes more than "
        f"{most_in_stage_s:g} s apart; allow more by --most-in-stage-delay"
    )


def random_paths(
    instance: PathInstance, partitions: Partitions, generator: random.Random
) -> Paths:
    """Paths by chance that use all stages equally and no node beyond its memory.

    Raises:
        InfeasibleError: There are none, or none was found that keeps the order of stages.
    """
    quotas = stage_quotas(instance, partitions)
    for _ in range(_TRIES):
        left = list(quotas)
        stages = [_path_stages(instance, left, generator) for _ in range(instance.num_paths)]
        if _shorten_jumps(instance, stages, generator):
            return _with_nodes(instance, partitions, stages, generator)
    raise InfeasibleError(
        f"no paths were found that visit {instance.path_len} of {instance.num_stages} stages "
        f"and advance at most {instance.order.max_stage_jump} at once; allow a larger "
        "max_stage_jump or a smaller skip_ratio"
    )


def _wanted(instance: PathInstance) -> int:
    return instance.num_paths * (instance.path_len - 1)


def _holds(instance: PathInstance, partitions: Partitions) -> int:
    return sum(_most_per_stage(instance, partitions))


def _most_per_stage(instance: PathInstance, partitions: Partitions) -> list[int]:
    return [
        min(instance.num_paths, sum(instance.memory[node] for node in nodes))
        for nodes in partitions[1:]
    ]


def _shortage(instance: PathInstance, wanted: int, held: int) -> str:
    best = 1 + held // instance.num_paths
    return (
        f"skip_ratio: {instance.num_paths} paths of {instance.path_len} stages need "
        f"{wanted} places on nodes after the first stage, and their memory holds {held}; the "
        f"nearest skip ratio that can be met is {1 - best / instance.num_stages:.4g}"
    )


def _cut(nodes: Sequence[int], sizes: Sequence[int]) -> list[list[int]]:
    stages, first = [], 0
    for size in sizes:
        stages.append(list(nodes[first : first + size]))
        first += size
    return stages


def _bring_near(
    instance: PathInstance,
    partitions: list[list[int]],
    generator: random.Random,
    most_in_stage_s: float,
) -> bool:
    """Exchange nodes while that makes stages less wide; whether all are near in the end."""

    def excess_s(nodes: Sequence[int]) -> float:
        return sum(
            max(0.0, instance.delay_s[i][j] - most_in_stage_s)
            for i in nodes
            for j in nodes
            if i != j
        )

    excesses = [excess_s(nodes) for nodes in partitions]
    for _ in range(_SWAPS_PER_NODE * instance.num_nodes):
        wide = [s for s, excess in enumerate(excesses) if excess > 0]
        if not wide:
            return True
        s, t = generator.choice(wide), generator.randrange(len(partitions))
        i, j = generator.randrange(len(partitions[s])), generator.randrange(len(partitions[t]))
        if s == t:
            continue
        one, other = list(partitions[s]), list(partitions[t])
        one[i], other[j] = other[j], one[i]
        after = excess_s(one), excess_s(other)
        if sum(after) <= excesses[s] + excesses[t]:
            partitions[s], partitions[t] = one, other
            excesses[s], excesses[t] = after
    return not any(excesses)


def _shorten_jumps(
    instance: PathInstance, stages: list[list[int]], generator: random.Random
) -> bool:
    """Exchange stages between paths while that shortens jumps; whether all are allowed then."""

    def excess(path: Sequence[int]) -> int:
        return sum(
            max(0, there - here - instance.order.max_stage_jump)
            for here, there in itertools.pairwise([0, *path])
        )

    for _ in range(_SWAPS_PER_NODE * len(stages)):
        far = [a for a, path in enumerate(stages) if excess(path)]
        if not far:
            return True
        a, b = generator.choice(far), generator.randrange(len(stages))
        gives = [stage for stage in stages[a] if stage not in stages[b]]
        takes = [stage for stage in stages[b] if stage not in stages[a]]
        if not gives or not takes:
            continue
        give, take = generator.choice(gives), generator.choice(takes)
        one = sorted([take, *(stage for stage in stages[a] if stage != give)])
        other = sorted([give, *(stage for stage in stages[b] if stage != take)])
        if excess(one) + excess(other) <= excess(stages[a]) + excess(stages[b]):
            stages[a], stages[b] = one, other
    return not any(excess(path) for path in stages)


def _path_stages(
    instance: PathInstance, left: list[int], generator: random.Random
) -> list[int]:
    """The stages with most paths still to come, ascending; takes one of each."""
    by_need = sorted(range(len(left)), key=lambda s: (-left[s], generator.random()))
    chosen = sorted(by_need[: instance.path_len - 1])
    for stage in chosen:
        left[stage] -= 1
    return [stage + 1 for stage in chosen]


def _with_nodes(
    instance: PathInstance,
    partitions: Partitions,
    stages: Sequence[Sequence[int]],
    generator: random.Random,
) -> Paths:
    room = {node: instance.memory[node] for nodes in partitions[1:] for node in nodes}
    paths = []
    for a, visited in enumerate(stages):
        path = [partitions[0][a // instance.paths_per_origin]]
        for stage in visited:
            node = max(partitions[stage], key=lambda n: (room[n], generator.random()))
            room[node] -= 1
            path.append(node)
        paths.append(tuple(path))
    return tuple(paths)
