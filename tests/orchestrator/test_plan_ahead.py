"""The planning process, for real: it answers, it is late, it dies."""

import os
import signal
from collections.abc import Iterator
from dataclasses import replace

import pytest

from trimtab.core.errors import TrimtabError
from trimtab.core.profile import DegreeBandwidth, StepProfile
from trimtab.launch.plans import MeasuredStep
from trimtab.orchestrator.plan_ahead import PlanAhead
from trimtab.orchestrator.step_planning import StepPlanner
from trimtab.planners.costs import group_s

PLANNER = StepPlanner(
    profile=StepProfile(
        name="tiny",
        num_gpus=4,
        gpus_per_node=4,
        quadratic_s=1e-7,
        linear_s=1e-5,
        fixed_s=1e-3,
        alltoall_bytes_per_token=1e3,
        bandwidths=(DegreeBandwidth(degree=2, bytes_per_s=1e9),),
        token_cap=100,
    ),
    num_ranks=4,
    degrees=(1, 2),
    grouping="planned",
    uniform_degree=None,
)
LENGTHS = (150, 90, 20, 30)


@pytest.fixture
def plans() -> Iterator[PlanAhead]:
    ahead = PlanAhead(PLANNER, deadline_s=60.0)
    yield ahead
    ahead.close()


def test_plans_asked_for_ahead_are_those_the_planner_makes(plans: PlanAhead) -> None:
    for step in (1, 2, 3):
        plans.prefetch(step, [length + step for length in LENGTHS])
    for step in (1, 2, 3):
        lengths = [length + step for length in LENGTHS]
        answer = plans.take(step, lengths)
        expected = PLANNER.plan(lengths, step=step)
        assert replace(answer.plan, solve_s=0.0) == replace(expected, solve_s=0.0)
        assert answer.late is None


def test_a_step_that_was_not_asked_for_is_planned_all_the_same(plans: PlanAhead) -> None:
    assert plans.take(9, LENGTHS).late is None


def test_a_batch_without_a_plan_is_an_error_not_a_fallback(plans: PlanAhead) -> None:
    with pytest.raises(TrimtabError, match="201"):
        plans.take(1, [201])


def test_measured_groups_refine_the_plans_to_come(plans: PlanAhead) -> None:
    """Groups that take twice as long as the profile says: the next prediction says so too."""
    before = plans.take(1, LENGTHS).plan
    waves_s = [[0.0] * len(before.waves) for _ in range(4)]
    for index, wave in enumerate(before.waves):
        for group in wave.groups:
            lengths = [LENGTHS[sequence] for sequence in group.sequences]
            for rank in group.ranks:
                waves_s[rank][index] = 2 * group_s(
                    lengths, group.degree, profile=PLANNER.profile
                )
    step = MeasuredStep(
        plan=before, lengths=LENGTHS, waves_s=tuple(tuple(waves) for waves in waves_s)
    )
    plans.learn([step] * 50)
    answer = plans.take(2, LENGTHS)
    assert answer.refined is not None
    assert answer.refined.error_before == pytest.approx(0.5)
    assert answer.refined.error_after < 0.1
    assert answer.plan.step_s == pytest.approx(2 * before.step_s, rel=0.1)
    assert plans.take(3, LENGTHS).refined is None


def test_a_late_plan_is_replaced_and_the_reason_told() -> None:
    ahead = PlanAhead(PLANNER, deadline_s=0.0)
    try:
        answer = ahead.take(1, LENGTHS)
    finally:
        ahead.close()
    assert answer.plan.method == "fallback"
    assert answer.plan.degrees == (2,)
    assert answer.late is not None
    assert "fallback" in answer.late


def test_a_dead_planning_process_does_not_stop_training(plans: PlanAhead) -> None:
    assert plans.take(1, LENGTHS).late is None
    os.kill(plans.pid, signal.SIGKILL)
    plans.prefetch(2, LENGTHS)
    answer = plans.take(2, LENGTHS)
    assert answer.plan.method == "fallback"
    assert answer.late is not None
    assert "died (exit code -9)" in answer.late
    again = plans.take(3, LENGTHS)
    assert again.plan.method == "fallback"
    assert again.late is None


def test_a_stopped_planning_process_holds_up_nothing_but_the_deadline() -> None:
    ahead = PlanAhead(PLANNER, deadline_s=0.05)
    os.kill(ahead.pid, signal.SIGSTOP)
    long_batch = [1 + index % 90 for index in range(40_000)]
    for step in range(1, 6):
        for coming in range(step, step + 4):
            ahead.prefetch(coming, long_batch)
        assert ahead.take(step, LENGTHS).plan.method == "fallback"
    ahead.close()


def test_steps_that_have_passed_are_not_planned_any_more() -> None:
    ahead = PlanAhead(PLANNER, deadline_s=0.0)
    for step in range(1, 200):
        ahead.prefetch(step, LENGTHS)
    for step in range(1, 199):
        ahead.take(step, LENGTHS)
    ahead._deadline_s = 60.0
    assert ahead.take(199, LENGTHS).late is None
    ahead.close()


def test_closing_leaves_no_process(plans: PlanAhead) -> None:
    plans.close()
    with pytest.raises(ProcessLookupError):
        os.kill(plans.pid, 0)
