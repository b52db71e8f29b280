from dataclasses import replace

import pytest

from trimtab.core.errors import InfeasibleError, InputError
from trimtab.core.job import Grouping, JobSpec, StepPlanningSpec
from trimtab.core.plan import Layout, StepPlan
from trimtab.core.profile import DegreeBandwidth, RingCosts, StepProfile
from trimtab.orchestrator.step_planning import StepPlanner, step_planner

PROFILE = StepProfile(
    name="tiny",
    num_gpus=6,
    gpus_per_node=6,
    quadratic_s=1e-7,
    linear_s=1e-5,
    fixed_s=1e-3,
    alltoall_bytes_per_token=1e3,
    bandwidths=tuple(DegreeBandwidth(degree=d, bytes_per_s=1e9) for d in (2, 3, 4)),
    token_cap=100,
    step_fixed_s=0.5,
)
RINGED = replace(
    PROFILE,
    ring=RingCosts(
        quadratic_s=1e-7,
        bytes_per_token=1e2,
        bandwidths=tuple(DegreeBandwidth(degree=d, bytes_per_s=1e9) for d in (2, 3)),
        overlap_fraction=0.5,
    ),
)
PLANNER = StepPlanner(
    profile=PROFILE, num_ranks=4, degrees=(1, 2, 4), grouping="planned", uniform_degree=None
)


def members(plan: StepPlan) -> list[int]:
    return sorted(s for wave in plan.waves for group in wave.groups for s in group.sequences)


@pytest.fixture
def job(small_job: JobSpec) -> JobSpec:
    """Three ranks, a model of four heads."""
    return replace(small_job, profile=PROFILE)


def test_degrees_are_those_that_divide_the_heads_and_fit_the_ranks(job: JobSpec) -> None:
    assert step_planner(job, Layout(dp=3)).degrees == (1, 2)


def test_a_ring_takes_degrees_that_do_not_divide_the_heads(job: JobSpec) -> None:
    planner = step_planner(replace(job, profile=RINGED), Layout(dp=3))
    assert planner.degrees == (1, 2, 3)
    assert planner.plan([290], step=1).waves[0].groups[0].attention == "ring"


def test_probing_gives_each_attention_kind_its_turn() -> None:
    planner = StepPlanner(
        profile=RINGED.for_heads(4), num_ranks=4, degrees=(1, 2, 3, 4), grouping="probe",
        uniform_degree=None,
    )  # fmt: skip
    assert [(o.degree, o.attention[0]) for o in planner.probes] == [
        (1, "u"), (2, "u"), (2, "r"), (3, "r"), (4, "u"),
    ]  # fmt: skip
    kinds = [
        {(g.degree, g.attention[0]) for w in planner.plan([50, 250], step=step).waves
         for g in w.groups}
        for step in (6, 7, 8)
    ]  # fmt: skip
    assert kinds == [{(2, "u"), (4, "u")}, {(2, "r"), (3, "r")}, {(3, "r")}]


def test_a_token_cap_of_the_job_wins_over_the_profiles(job: JobSpec) -> None:
    capped = replace(job, step_planning=StepPlanningSpec(token_cap=7))
    assert step_planner(capped, Layout(dp=3)).profile.token_cap == 7


def test_a_uniform_degree_that_does_not_divide_the_heads_is_refused(job: JobSpec) -> None:
    asked = replace(job, step_planning=StepPlanningSpec(grouping="uniform", uniform_degree=3))
    with pytest.raises(InputError, match=r"uniform_degree: expected one of \[1, 2\].*got 3"):
        step_planner(asked, Layout(dp=3))


def test_uniform_without_a_degree_takes_the_least_that_holds_the_longest() -> None:
    plan = replace(PLANNER, grouping="uniform").plan([150, 20, 30], step=1)
    assert plan.degrees == (2,)
    assert members(plan) == [0, 1, 2]


def test_the_fallback_skips_degrees_that_the_heads_forbid() -> None:
    plan = PLANNER.fallback([250, 10])
    assert plan.degrees == (4,)
    assert plan.method == "fallback"


def test_probing_gives_each_least_degree_its_turn() -> None:
    prober = replace(PLANNER, grouping="probe")
    lengths = [50, 150, 350, 60]
    plans = [prober.plan(lengths, step=step) for step in (3, 4, 5)]
    assert [plan.degrees for plan in plans] == [(1, 2, 4), (2, 4), (4,)]
    for plan in plans:
        assert members(plan) == [0, 1, 2, 3]
        assert plan.lower_bound_s <= plan.step_s


def test_a_probing_plan_counts_the_fixed_time_of_the_step_once() -> None:
    plan = replace(PLANNER, grouping="probe").plan([50, 150, 350], step=3)
    assert 0.5 < plan.step_s < 0.6


@pytest.mark.parametrize("grouping", ["planned", "uniform", "probe"])
def test_a_sequence_too_long_for_all_ranks_is_refused(grouping: Grouping) -> None:
    planner = replace(PLANNER, grouping=grouping)
    with pytest.raises(InfeasibleError, match="401"):
        planner.plan([5, 401], step=1)
