"""Stage paths: who serves which stage, and which nodes each micro-batch visits."""

import math
from collections.abc import Callable

from trimtab.core.errors import InfeasibleError
from trimtab.core.stage_paths import PathInstance, PathPlan
from trimtab.planners.paths.path_bounds import PathBound, PathBounds
from trimtab.planners.paths.path_search import PathSearch
from trimtab.planners.paths.path_starts import Partitions
from trimtab.planners.paths.path_times import path_times, schedule_problems

_SEARCH_SHARE = 0.7
"""Of the time limit; the rest is the bound's."""
_PROVEN = 1e-6
"""Gap of a plan that no search can improve."""


def plan_paths(
    instance: PathInstance,
    *,
    clock: Callable[[], float],
    time_limit_s: float = 5.0,
    fixed: Partitions | None = None,
    first: Partitions | None = None,
    most_in_stage_s: float = math.inf,
) -> PathPlan:
    """Plan arrangement and paths together; more time never gives a longer step.

    Args:
        instance: Nodes, links, times, and what to run.
        clock: Now, in seconds; equal inputs give equal plans where it cuts nothing short.
        time_limit_s: Until when to improve plan and bound; 0 takes the first plan.
        fixed: The arrangement, where it is given.
        first: An arrangement to begin with, where nodes may change their stage.
        most_in_stage_s: Largest delay between two nodes of one stage, where they may.

    Raises:
        InfeasibleError: There is no schedule, or none was found.
    """
    check_connected(instance)
    started_s = clock()
    search = PathSearch(instance, fixed=fixed, first=first, most_in_stage_s=most_in_stage_s)
    first_plan = search.start()
    first_plan_s = clock() - started_s
    bounds = PathBounds(instance, fixed=fixed, step_s=first_plan.step_s)
    bound = bounds.quick()

    def is_proven() -> bool:
        assert search.best is not None
        return search.best.step_s <= bound.seconds * (1 + _PROVEN)

    search.run(lambda: clock() - started_s >= _SEARCH_SHARE * time_limit_s or is_proven())
    assert search.best is not None
    schedule = search.schedule(search.best)
    times = path_times(instance, schedule)
    if times.step_s > 1e11:
        raise InfeasibleError(
            "delay_s: no schedule was found that avoids the missing links; add links or "
            "change partition_sizes"
        )
    problems = schedule_problems(instance, schedule, most_in_stage_s=most_in_stage_s)
    assert not problems, problems
    if not is_proven():
        bound = _best_bound(
            instance, bound, fixed=fixed, step_s=times.step_s,
            left_s=lambda: time_limit_s - (clock() - started_s),
        )  # fmt: skip
    lower_s = min(bound.seconds, times.step_s)
    how = "nodes stay in their stages" if fixed else "any node may serve any stage"
    return PathPlan(
        schedule=schedule,
        iteration_s=times.iteration_s,
        step_s=times.step_s,
        lower_bound_s=lower_s,
        bound_reason=bound.reason,
        first_plan_s=first_plan_s,
        first_step_s=first_plan.step_s,
        solve_s=clock() - started_s,
        reason=(
            f"shortest of {search.num_found} schedules annealed on the event simulator, where "
            f"{how}; none is more than {times.step_s / lower_s - 1:.1%} shorter, for "
            f"{bound.reason}"
        ),
    )


def check_connected(instance: PathInstance) -> None:
    """Raise where a node has no link to any other.

    Raises:
        InfeasibleError: Naming such a node.
    """
    nodes = [node for node in range(instance.num_nodes) if node not in instance.without]
    if instance.path_len == 1:
        return
    lone = [
        i
        for i in nodes
        if all(
            math.inf in (instance.delay_s[i][j], instance.delay_s[j][i])
            for j in nodes
            if j != i
        )
    ]
    if lone:
        raise InfeasibleError(
            f"delay_s: node {lone[0]} is disconnected: it has no link there and back to any "
            "other node; give it one, or leave it out by `without`"
        )


def _best_bound(
    instance: PathInstance,
    bound: PathBound,
    *,
    fixed: Partitions | None,
    step_s: float,
    left_s: Callable[[], float],
) -> PathBound:
    """The best bound that time allows: of fractions of paths, then of whole ones."""
    bounds = PathBounds(instance, fixed=fixed, step_s=step_s)
    for is_whole in (False, True):
        if left_s() <= 0:
            break
        found = bounds.covering(
            bound.seconds, is_whole=is_whole, is_over=lambda: left_s() <= 0,
            time_limit_s=max(0.05, left_s()),
        )  # fmt: skip
        if found is not None and found.seconds > bound.seconds:
            bound = found
    return bound
