import dataclasses
import itertools
import math
import subprocess
import sys
from collections import Counter
from pathlib import Path

import path_cases
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from path_cases import Ticks, arrangement, case, schedule_of, small_instance

from trimtab.core.errors import InfeasibleError
from trimtab.core.stage_paths import PathInstance, PathPlan, PathSchedule, SharedLink
from trimtab.planners.compiled import IS_COMPILED
from trimtab.planners.paths.path_starts import Partitions
from trimtab.planners.paths.path_times import path_times, schedule_problems
from trimtab.planners.paths.paths import plan_paths


def _planned(
    instance: PathInstance, *, fixed: Partitions | None = None, time_limit_s: float = 1.0
) -> PathPlan:
    return plan_paths(instance, clock=Ticks(), time_limit_s=time_limit_s, fixed=fixed)


def _least_s(instance: PathInstance, *, fixed: Partitions | None = None) -> float:
    """The best step of a small instance, by trying all of them."""
    least_s = math.inf
    for a, b, c, d in itertools.permutations(range(4)) if fixed is None else [(0, 1, 2, 3)]:
        for visited in set(itertools.permutations((c, c, d, d))):
            paths = [(a, visited[0]), (a, visited[1]), (b, visited[2]), (b, visited[3])]
            times = path_times(instance, schedule_of(instance, [[a, b], [c], [d]], paths))
            least_s = min(least_s, times.step_s)
    return least_s


@pytest.mark.parametrize("seed", range(4))
def test_small_plans_are_the_best_there_are_and_bounds_no_more(seed: int) -> None:
    instance = small_instance(seed)
    least_s = _least_s(instance)
    plan = _planned(instance)
    assert plan.step_s == pytest.approx(least_s)
    assert plan.lower_bound_s <= least_s + 1e-9


@pytest.mark.parametrize("seed", range(4))
def test_fixed_stages_stay_and_their_bound_is_no_more_than_the_best(seed: int) -> None:
    instance = small_instance(seed)
    fixed = ((0, 1), (2,), (3,))
    least_s = _least_s(instance, fixed=fixed)
    plan = _planned(instance, fixed=fixed)
    assert tuple(sorted(nodes) for nodes in plan.schedule.partitions) == ([0, 1], [2], [3])
    assert plan.step_s == pytest.approx(least_s)
    assert plan.lower_bound_s <= least_s + 1e-9


instances = st.builds(
    lambda seed, shape, memory, waves, speed: small_instance(
        seed, partition_sizes=shape[0], path_len=shape[1], num_waves=waves,
        paths_per_origin=memory, memory=(memory,) * 4,
        forward_s=(1.0, 1.0 + speed, 1.5, 2.0 - speed / 2),
    ),
    st.integers(0, 10_000),
    st.sampled_from((((2, 1, 1), 2), ((2, 2), 2), ((4,), 1), ((1, 1, 1, 1), 3), ((1, 3), 2))),
    st.integers(1, 3),
    st.integers(1, 3),
    st.floats(0, 1),
)  # fmt: skip


@settings(deadline=None, max_examples=25)
@given(instances)
def test_plans_keep_every_rule_and_bounds_stay_below(instance: PathInstance) -> None:
    plan = _planned(instance, time_limit_s=0.3)
    assert schedule_problems(instance, plan.schedule) == []
    assert 0 < plan.lower_bound_s <= plan.step_s
    assert plan.step_s == path_times(instance, plan.schedule).step_s <= plan.first_step_s


@settings(deadline=None, max_examples=15)
@given(instances)
def test_no_path_is_done_sooner_than_alone(instance: PathInstance) -> None:
    schedule = _planned(instance, time_limit_s=0.1).schedule
    together = path_times(instance, schedule)
    for a, path in enumerate(schedule.paths):
        alone = PathSchedule(
            partitions=schedule.partitions, paths=(path,), release_s=(schedule.release_s[a],)
        )
        alone_s = path_times(instance, alone).iteration_s
        last_s = together.starts_s[a][-1][-1] + 1.5 * instance.forward_s[path[0]]
        assert last_s >= alone_s - 1e-9


@pytest.mark.parametrize("name", ["n09_s4_skip25", "n06_s3_skip00"])
def test_more_time_never_gives_a_longer_step(name: str) -> None:
    instance = case(name)
    times_s = [_planned(instance, time_limit_s=limit).step_s for limit in (0.0, 0.1, 0.4)]
    assert times_s == sorted(times_s, reverse=True)
    assert times_s[0] > times_s[-1]


def test_equal_inputs_give_equal_plans() -> None:
    instance = case("n09_s4_skip25")
    one, other = (_planned(instance, time_limit_s=0.3) for _ in range(2))
    assert (one.schedule, one.lower_bound_s) == (other.schedule, other.lower_bound_s)


def test_the_published_arrangement_of_six_nodes_is_planned_to_proven_optimum() -> None:
    plan = _planned(case("n06_s4_skip50"), fixed=arrangement("n06_s4_skip50"))
    # Iowa serves Australia, 3.2166 s away, for all three of its micro-batches
    assert plan.step_s == pytest.approx(53.5829, abs=1e-3)
    assert plan.gap_fraction < 1e-3


def test_zero_skip_routes_among_replicas() -> None:
    plan = _planned(case("n06_s3_skip00"))
    assert all(len(path) == 3 for path in plan.schedule.paths)
    uses = Counter(node for path in plan.schedule.paths for node in path)
    assert set(uses.values()) == {3}


def test_nodes_of_a_stage_are_no_further_apart_than_asked() -> None:
    instance = case("n09_s4_skip25")
    most_s = instance.in_stage_delay_s(arrangement("n09_s4_skip25"))
    plan = plan_paths(instance, clock=Ticks(), time_limit_s=1.0, most_in_stage_s=most_s)
    assert instance.in_stage_delay_s(plan.schedule.partitions) <= most_s


def test_stages_that_cannot_be_near_are_named() -> None:
    with pytest.raises(InfeasibleError, match="--most-in-stage-delay"):
        plan_paths(small_instance(), clock=Ticks(), most_in_stage_s=0.1)


def test_a_missing_link_is_avoided() -> None:
    instance = small_instance(2)
    free = _planned(instance).schedule
    (i, j) = free.paths[0]
    delay_s = [list(row) for row in instance.delay_s]
    delay_s[i][j] = math.inf
    without = dataclasses.replace(instance, delay_s=tuple(map(tuple, delay_s)))
    plan = _planned(without)
    hops = {hop for path in plan.schedule.paths for hop in itertools.pairwise(path)}
    assert (i, j) not in hops
    assert plan.step_s >= _least_s(instance) - 1e-9


def test_a_disconnected_node_is_named() -> None:
    instance = small_instance()
    delay_s = tuple(
        tuple(math.inf if 3 in (i, j) and i != j else s for j, s in enumerate(row))
        for i, row in enumerate(instance.delay_s)
    )
    with pytest.raises(InfeasibleError, match="node 3 is disconnected"):
        _planned(dataclasses.replace(instance, delay_s=delay_s))


def test_too_many_paths_for_the_memory_name_the_nearest_skip_ratio() -> None:
    # 2 x 2 paths of 3 stages need 8 places after the first stage, and 2 nodes hold 2 each
    with pytest.raises(InfeasibleError, match=r"the nearest skip ratio .* 0\.3333"):
        _planned(small_instance(path_len=3))


def test_shared_links_and_gradient_reductions_are_planned_for() -> None:
    instance = small_instance(1)
    pairs = tuple((i, j) for i in range(4) for j in range(4) if i != j)
    slow = dataclasses.replace(
        instance,
        shared_links=(SharedLink(pairs=pairs, transfer_s=2.0),),
        gradient_bytes=100.0,
        latency_s=instance.delay_s,
        bytes_per_s=((100.0,) * 4,) * 4,
    )
    plan, before = _planned(slow), _planned(instance)
    # 8 micro-batches send 4 times each, 2 s apart
    assert plan.iteration_s >= 8 * 4 * 2.0
    assert plan.step_s > plan.iteration_s > before.iteration_s
    assert schedule_problems(slow, plan.schedule) == []


def test_nodes_may_differ_in_memory_and_speed() -> None:
    instance = small_instance(memory=(2, 2, 3, 1), forward_s=(1.0, 1.0, 1.0, 9.0))
    plan = _planned(instance)
    uses = Counter(node for path in plan.schedule.paths for node in path[1:])
    assert all(uses[node] <= instance.memory[node] for node in uses)


@pytest.mark.parametrize(
    ("paths", "problem"),
    [
        ([(0, 2), (0, 2), (1, 3), (1, 2)], "node 2 is on 3 paths, and holds 2"),
        ([(0, 2), (0, 2), (1, 3)], "expected 4 paths, got 3"),
        ([(0, 2), (0, 2), (1, 3), (0, 3)], "path 3 starts at node 0, not at its origin 1"),
        ([(0, 2), (0, 2), (1, 3), (1,)], "path 3 visits 1 stages, not 2"),
        ([(0, 2), (0, 2), (1, 3), (1, 0)], "path 3 visits a stage twice"),
    ],
)
def test_the_checker_finds_what_is_wrong(paths: list[tuple[int, ...]], problem: str) -> None:
    instance = small_instance()
    schedule = schedule_of(instance, [[0, 1], [2], [3]], paths)
    assert problem in schedule_problems(instance, schedule)


def test_the_checker_finds_overlapping_stages() -> None:
    instance = small_instance()
    paths = [(0, 2), (0, 2), (1, 2), (1, 2)]
    problems = schedule_problems(instance, schedule_of(instance, [[0, 1], [2], [2]], paths))
    assert "not every node is in exactly one stage" in problems


_WITHOUT_NUMBA = """
import sys
if sys.argv[2] == "plain":
    sys.modules["numba"] = None  # importing it fails, as where it is not installed
sys.path.insert(0, sys.argv[1])
from path_cases import Ticks, small_instance
from trimtab.planners import compiled
from trimtab.planners.paths.paths import plan_paths

assert compiled.IS_COMPILED == (sys.argv[2] == "compiled")
plan = plan_paths(small_instance(3), clock=Ticks(), time_limit_s=0.05)
print(plan.schedule, plan.step_s, plan.lower_bound_s)
"""


@pytest.mark.skipif(not IS_COMPILED, reason="numba is not installed: nothing to compare")
def test_plans_are_the_same_without_numba() -> None:
    folder = str(Path(path_cases.__file__).parent)
    compiled, plain = (
        subprocess.run(
            [sys.executable, "-c", _WITHOUT_NUMBA, folder, kind],
            check=True, capture_output=True, text=True,
        ).stdout
        for kind in ("compiled", "plain")
    )  # fmt: skip
    assert compiled == plain
