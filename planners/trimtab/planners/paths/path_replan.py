"""A new schedule when a node is lost: as little worse as the nodes that are left allow.

The ladder, first rung that holds:

1. `reroute`: as many micro-batches over as many stages, where other nodes have room;
2. `fewer micro-batches`: an origin sends fewer at once;
3. `higher skip`: micro-batches visit a stage less;
4. `more memory`: every node holds one more;
5. `drop a replica`: an origin goes with its share of the data, because it is the lost node, or
   to serve a stage that has no node left.

Nodes stay in their stages, for they hold their weights; only the last rung may move one.
"""

import dataclasses
import math
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from trimtab.core.errors import InfeasibleError, InputError, TrimtabError
from trimtab.core.stage_paths import PathInstance, PathSchedule
from trimtab.planners.paths.path_search import FoundPaths, PathSearch
from trimtab.planners.paths.path_starts import Partitions, Paths, stage_quotas
from trimtab.planners.paths.path_times import path_times, schedule_problems

RUNGS = ("reroute", "fewer micro-batches", "higher skip", "more memory", "drop a replica")

_WARM_TRIALS, _ROUGH_TRIALS, _COLD_TRIALS = 2_000, 12_000, 2_000
_FILLS = 20
_SEED = 23_758


@dataclass(frozen=True, slots=True, kw_only=True)
class Rung:
    """A rung that was tried."""

    name: str
    reason: str
    """Why it does not hold, or what it changes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Replan:
    """What to run without the lost node."""

    instance: PathInstance
    schedule: PathSchedule
    iteration_s: float
    step_s: float
    rungs: tuple[Rung, ...]
    """Those tried; the last one holds."""
    kept_paths: int
    """Paths that stay as they were."""

    @property
    def reason(self) -> str:
        return "; ".join(f"{rung.name}: {rung.reason}" for rung in self.rungs)


def replan(
    instance: PathInstance,
    schedule: PathSchedule,
    *,
    without: int,
    is_over: Callable[[], bool] = lambda: False,
) -> Replan:
    """A valid schedule without a node, warm-started from the one it was in.

    Args:
        instance: What ran.
        schedule: How it ran.
        without: The lost node.
        is_over: Asked now and then; True ends the improvement of what was found.

    Raises:
        InputError: The node is none of the schedule's.
        InfeasibleError: No rung holds.
    """
    stage_of = schedule.stage_of
    if without not in stage_of:
        raise InputError(
            f"without: node {without} serves no stage; expected one of "
            f"{', '.join(map(str, sorted(stage_of)))}"
        )
    partitions = tuple(
        tuple(node for node in nodes if node != without) for nodes in schedule.partitions
    )
    rungs: list[Rung] = []
    for name in RUNGS:
        try:
            changed, nodes, what = _climb(name, instance, partitions, without)
            found = _planned(changed, nodes, schedule, is_over)
        except TrimtabError as error:
            rungs.append(Rung(name=name, reason=str(error)))
            continue
        rungs.append(Rung(name=name, reason=what))
        times = path_times(changed, found)
        before = Counter(schedule.paths)
        return Replan(
            instance=changed,
            schedule=found,
            iteration_s=times.iteration_s,
            step_s=times.step_s,
            rungs=tuple(rungs),
            kept_paths=(before & Counter(found.paths)).total(),
        )
    tried = "; ".join(f"{rung.name}: {rung.reason}" for rung in rungs)
    raise InfeasibleError(f"without node {without} nothing can be planned: {tried}")


def _climb(
    name: str, instance: PathInstance, partitions: Partitions, lost: int
) -> tuple[PathInstance, Partitions, str]:
    """Instance and arrangement of a rung, and what it changes.

    Raises:
        InfeasibleError: It does not hold.
    """
    lost_nodes = tuple(sorted({*instance.without, lost}))
    if name == "drop a replica":
        return _without_replica(instance, partitions, lost_nodes)
    if len(partitions[0]) < instance.partition_sizes[0]:
        raise InfeasibleError(f"node {lost} is an origin, and its data goes with it")
    for stage, nodes in enumerate(partitions):
        if not nodes:
            raise InfeasibleError(f"stage {stage} has no node left")
    left = dataclasses.replace(
        instance, partition_sizes=tuple(map(len, partitions)), without=lost_nodes
    )
    if name == "reroute":
        stage_quotas(left, partitions)
        return left, partitions, f"other nodes have room for the paths of node {lost}"
    if name == "fewer micro-batches":
        fewer = _fewer(left, partitions)
        return fewer, partitions, (
            f"{fewer.num_micro_batches} instead of {instance.num_micro_batches}, "
            f"{fewer.paths_per_origin} at once from an origin"
        )  # fmt: skip
    if name == "higher skip":
        return _higher_skip(left, partitions)
    more = dataclasses.replace(left, memory=tuple(held + 1 for held in left.memory))
    stage_quotas(more, partitions)
    return more, partitions, f"every node holds up to {max(more.memory)} micro-batches"


def _fewer(instance: PathInstance, partitions: Partitions) -> PathInstance:
    for paths in range(instance.paths_per_origin - 1, 0, -1):
        fewer = dataclasses.replace(instance, paths_per_origin=paths)
        try:
            stage_quotas(fewer, partitions)
        except InfeasibleError:
            continue
        return fewer
    raise InfeasibleError("not even one micro-batch at once from an origin has room")


def _higher_skip(
    instance: PathInstance, partitions: Partitions
) -> tuple[PathInstance, Partitions, str]:
    for path_len in range(instance.path_len - 1, 1, -1):
        shorter = dataclasses.replace(instance, path_len=path_len)
        try:
            stage_quotas(shorter, partitions)
        except InfeasibleError:
            continue
        what = f"{shorter.skip_fraction:.0%} instead of {instance.skip_fraction:.0%}"
        return shorter, partitions, what
    raise InfeasibleError("no skip ratio leaves room for all micro-batches")


def _without_replica(
    instance: PathInstance, partitions: Partitions, lost: tuple[int, ...]
) -> tuple[PathInstance, Partitions, str]:
    stages = [list(nodes) for nodes in partitions]
    what = f"{len(stages[0])} origins instead of {instance.partition_sizes[0]}"
    empty = [stage for stage, nodes in enumerate(stages) if not nodes]
    for stage in empty:
        donor = (
            0 if len(stages[0]) > 1 else max(range(len(stages)), key=lambda s: len(stages[s]))
        )
        if len(stages[donor]) < 2:
            raise InfeasibleError(f"no stage has a node to spare for stage {stage}")
        others = [node for nodes in stages for node in nodes]
        moved = min(stages[donor], key=lambda n: sum(instance.delay_s[n][m] for m in others))
        stages[donor].remove(moved)
        stages[stage].append(moved)
        what = f"node {moved} of stage {donor} serves stage {stage}"
    if not empty and len(stages[0]) == instance.partition_sizes[0]:
        if len(stages[0]) < 2:
            raise InfeasibleError("there is only one origin")
        dropped = stages[0].pop()
        lost = tuple(sorted({*lost, dropped}))
        what = f"origin {dropped} goes too"
    left = dataclasses.replace(instance, partition_sizes=tuple(map(len, stages)), without=lost)
    partitions = tuple(map(tuple, stages))
    try:
        stage_quotas(left, partitions)
    except InfeasibleError:
        left = _fewer(left, partitions)
        what += f", and {left.paths_per_origin} micro-batches at once from an origin"
    return left, partitions, f"{what}: {left.num_micro_batches} micro-batches"


def _planned(
    instance: PathInstance,
    partitions: Partitions,
    before: PathSchedule,
    is_over: Callable[[], bool],
) -> PathSchedule:
    """The better of what is left of the old paths, filled up, and new ones, both annealed.

    Raises:
        InfeasibleError: There are no paths.
    """
    search = PathSearch(instance, fixed=partitions)
    candidates: list[FoundPaths] = []
    warm = _filled(instance, partitions, before.paths)
    if warm is not None:
        candidates.append(search.take(partitions, warm))
    cold = search.start()
    cold = search.improve(cold, trials=_ROUGH_TRIALS, is_over=is_over, is_rough=True)
    candidates.append(search.improve(cold, trials=_COLD_TRIALS, is_over=is_over))
    if warm is not None:
        search.improve(candidates[0], trials=_WARM_TRIALS, is_over=is_over)
    assert search.best is not None
    schedule = search.schedule(search.best)
    problems = schedule_problems(instance, schedule)
    if problems or search.best.step_s == math.inf:
        raise InfeasibleError(problems[0] if problems else "no schedule ends")
    return schedule


def _filled(instance: PathInstance, partitions: Partitions, paths: Paths) -> Paths | None:
    """Old paths that are still possible, and new ones where none is left; None: no luck."""
    generator = random.Random(_SEED)  # noqa: S311 - no secret is drawn
    stage_of = {node: stage for stage, nodes in enumerate(partitions) for node in nodes}
    kept = {
        origin: _still_possible(instance, stage_of, origin, paths) for origin in partitions[0]
    }
    for _ in range(_FILLS):
        left = dict(enumerate(stage_quotas(instance, partitions), start=1))
        room = {n: instance.memory[n] for nodes in partitions[1:] for n in nodes}
        filled = _take_kept(kept, partitions, left=left, room=room, stage_of=stage_of)
        for a, path in enumerate(filled):
            origin = partitions[0][a // instance.paths_per_origin]
            if path is None:
                filled[a] = _new_path(instance, partitions, origin, left, room, generator)
        if all(filled):
            return tuple(path for path in filled if path is not None)
    return None


def _still_possible(
    instance: PathInstance, stage_of: dict[int, int], origin: int, paths: Paths
) -> list[tuple[int, ...] | None]:
    own = [path for path in paths if path[0] == origin]
    ok = [
        path
        for path in own
        if len(path) == instance.path_len
        and all(node in stage_of for node in path)
        and instance.order.problem(tuple(stage_of[node] for node in path)) is None
    ][: instance.paths_per_origin]
    missing = instance.paths_per_origin - len(ok)
    return [*ok, *([None] * missing)]


def _take_kept(
    kept: dict[int, list[tuple[int, ...] | None]],
    partitions: Partitions,
    *,
    left: dict[int, int],
    room: dict[int, int],
    stage_of: dict[int, int],
) -> list[tuple[int, ...] | None]:
    """Old paths, as far as stages and nodes have places; None for the others."""
    taken: list[tuple[int, ...] | None] = []
    for origin in partitions[0]:
        for path in kept[origin]:
            visited = path[1:] if path else ()
            has_place = all(room[n] > 0 and left[stage_of[n]] > 0 for n in visited)
            taken.append(path if path and has_place else None)
            for node in visited if has_place else ():
                room[node] -= 1
                left[stage_of[node]] -= 1
    return taken


def _new_path(
    instance: PathInstance,
    partitions: Partitions,
    origin: int,
    left: dict[int, int],
    room: dict[int, int],
    generator: random.Random,
) -> tuple[int, ...] | None:
    """Over the stages with most places left, each time to the nearest node with room."""
    by_need = sorted(left, key=lambda s: (-left[s], generator.random()))
    stages = sorted(by_need[: instance.path_len - 1])
    if any(left[s] == 0 for s in stages) or instance.order.problem((0, *stages)) is not None:
        return None
    path = [origin]
    for stage in stages:
        nodes = [node for node in partitions[stage] if room[node] > 0]
        if not nodes:
            return None
        path.append(min(nodes, key=lambda n: instance.delay_s[path[-1]][n]))
    for node, stage in zip(path[1:], stages, strict=True):
        room[node] -= 1
        left[stage] -= 1
    return tuple(path)
