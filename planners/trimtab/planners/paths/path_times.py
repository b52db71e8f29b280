"""When everything of a schedule of stage paths happens, and whether it keeps the rules."""

import itertools
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from trimtab.core.errors import InputError
from trimtab.core.stage_paths import PathInstance, PathSchedule
from trimtab.planners.compiled import floats, ints, zero_floats, zero_ints
from trimtab.planners.paths.path_simulation import NEVER_S, Network, Simulation, simulate

NO_LINK_S = 1e12
"""Delay of a missing link inside the kernels: sums with an infinite one are undefined."""


def network_of(instance: PathInstance) -> Network:
    """What the kernels read of an instance."""
    num_nodes = instance.num_nodes
    links_of: dict[int, list[int]] = {}
    for k, link in enumerate(instance.shared_links):
        for i, j in link.pairs:
            links_of.setdefault(i * num_nodes + j, []).append(k)
    counts = (len(links_of.get(pair, ())) for pair in range(num_nodes * num_nodes))
    return Network(
        forward_s=floats(instance.forward_s),
        backward_s=floats(s * instance.backward_factor for s in instance.forward_s),
        loss_s=floats(s * instance.loss_factor for s in instance.forward_s),
        memory=ints(instance.memory),
        delay_s=floats(min(s, NO_LINK_S) for row in instance.delay_s for s in row),
        gap_s=instance.gap_s,
        first_gap_s=instance.origin_forward_gap_s,
        num_waves=instance.num_waves,
        wave_offset_s=instance.wave_offset_s,
        first_link=ints(itertools.accumulate(counts, initial=0)),
        link_of=ints(k for pair in sorted(links_of) for k in links_of[pair]),
        occupied_s=floats(link.transfer_s for link in instance.shared_links),
    )


def empty_simulation(instance: PathInstance, *, num_paths: int, path_len: int) -> Simulation:
    """Room for a simulation of so many paths."""
    num_nodes, num_jobs = instance.num_nodes, num_paths * instance.num_waves
    num_events = 2 * num_jobs + num_nodes
    return Simulation(
        start_s=zero_floats(num_jobs * (2 * path_len + 1)),
        end_s=zero_floats(num_jobs),
        node_end_s=zero_floats(num_nodes),
        free_s=zero_floats(num_nodes),
        held=zero_ints(num_nodes),
        first_waiting=zero_ints(num_nodes),
        last_waiting=zero_ints(num_nodes),
        next_waiting=zero_ints(num_jobs),
        is_woken=zero_ints(num_nodes),
        at=zero_ints(num_jobs),
        link_free_s=zero_floats(len(instance.shared_links)),
        heap_s=zero_floats(num_events),
        heap_order=zero_ints(num_events),
        heap_event=zero_ints(num_events),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class PathTimes:
    """When everything of a schedule happens, by exact event simulation."""

    iteration_s: float
    """To the end of the last backward; infinite where the schedule never ends."""
    step_s: float
    """To the end of the last closing gradient reduction."""
    starts_s: tuple[tuple[tuple[float, ...], ...], ...]
    """Start of every operation, by path and wave."""
    node_ends_s: tuple[float, ...]


def path_times(instance: PathInstance, schedule: PathSchedule) -> PathTimes:
    """Simulate a schedule, whose paths may be any number and of one length.

    Raises:
        InputError: Paths are not of one length, or name nodes there are not.
    """
    paths = schedule.paths
    lengths = {len(path) for path in paths}
    if len(lengths) != 1 or 0 in lengths:
        raise InputError(f"paths: expected one length for all, got {sorted(lengths)}")
    if not all(0 <= node < instance.num_nodes for path in paths for node in path):
        raise InputError(f"paths: expected nodes from 0 to {instance.num_nodes - 1}")
    (path_len,) = lengths
    out = empty_simulation(instance, num_paths=len(paths), path_len=path_len)
    nodes = ints(node for path in paths for node in path)
    end_s = float(
        simulate(network_of(instance), nodes, path_len, floats(schedule.release_s), out)
    )
    per_wave = 2 * path_len + 1
    starts = [float(s) for s in out.start_s]
    ends = [float(s) for s in out.node_end_s]
    step_s = max(
        [end_s]
        + [
            max(ends[node] for node in members) + instance.closing_s(members)
            for members in schedule.partitions
        ]
    )
    is_endless = end_s == NEVER_S
    waves = range(instance.num_waves)
    return PathTimes(
        iteration_s=math.inf if is_endless else end_s,
        step_s=math.inf if is_endless else step_s,
        starts_s=tuple(
            tuple(
                tuple(starts[at * per_wave : (at + 1) * per_wave])
                for at in (a * instance.num_waves + wave for wave in waves)
            )
            for a in range(len(paths))
        ),
        node_ends_s=tuple(ends),
    )


def schedule_problems(
    instance: PathInstance, schedule: PathSchedule, *, most_in_stage_s: float = math.inf
) -> list[str]:
    """Every rule of the instance that a schedule breaks, one line each; none: it is valid.

    It shares no code with the search.
    """
    problems = _arrangement_problems(instance, schedule, most_in_stage_s)
    stage_of = schedule.stage_of
    if len(schedule.paths) != instance.num_paths:
        problems.append(f"expected {instance.num_paths} paths, got {len(schedule.paths)}")
    expected = [n for n in schedule.partitions[0] for _ in range(instance.paths_per_origin)]
    for a, (path, origin) in enumerate(zip(schedule.paths, expected, strict=False)):
        problems += [f"path {a} {p}" for p in _path_problems(instance, path, origin, stage_of)]
    uses = Counter(node for path in schedule.paths for node in path[1:])
    for node, count in sorted(uses.items()):
        if count > instance.memory[node]:
            problems.append(
                f"node {node} is on {count} paths, and holds {instance.memory[node]}"
            )
    if schedule.release_s != instance.release_s(schedule.paths):
        problems.append("release times are not one forward of the origin apart")
    if not problems and path_times(instance, schedule).iteration_s == math.inf:
        problems.append("micro-batches wait for one another's memory for ever")
    return problems


def stage_uses(schedule: PathSchedule) -> list[int]:
    """Paths through each stage, stage 0 included."""
    stage_of = schedule.stage_of
    uses = Counter(stage_of[node] for path in schedule.paths for node in path)
    return [uses[s] for s in range(len(schedule.partitions))]


def _arrangement_problems(
    instance: PathInstance, schedule: PathSchedule, most_in_stage_s: float
) -> list[str]:
    problems = []
    placed = sorted(node for nodes in schedule.partitions for node in nodes)
    if placed != [n for n in range(instance.num_nodes) if n not in instance.without]:
        problems.append("not every node is in exactly one stage")
    if tuple(map(len, schedule.partitions)) != instance.partition_sizes:
        problems.append(f"stages are not of the sizes {list(instance.partition_sizes)}")
    delay_s = instance.in_stage_delay_s(schedule.partitions)
    if delay_s > most_in_stage_s:
        problems.append(
            f"nodes of one stage are {delay_s:g} s apart, more than {most_in_stage_s:g} s"
        )
    return problems


def _path_problems(
    instance: PathInstance, path: Sequence[int], origin: int, stage_of: dict[int, int]
) -> list[str]:
    if len(path) != instance.path_len:
        return [f"visits {len(path)} stages, not {instance.path_len}"]
    if any(node not in stage_of for node in path):
        return ["visits a node that serves no stage"]
    problems = []
    if path[0] != origin:
        problems.append(f"starts at node {path[0]}, not at its origin {origin}")
    problem = instance.order.problem(tuple(stage_of[node] for node in path))
    if problem is not None:
        problems.append(problem)
    hops = list(itertools.pairwise([*path, path[0]])) if len(path) > 1 else []
    for i, j in hops:
        if math.inf in (instance.delay_s[i][j], instance.delay_s[j][i]):
            problems.append(f"needs a link between nodes {i} and {j}, and there is none")
    return problems
