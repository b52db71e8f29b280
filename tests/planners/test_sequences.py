import time
from collections.abc import Callable, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trimtab.core.errors import InfeasibleError, InputError
from trimtab.core.plan import StepPlan
from trimtab.core.profile import DegreeBandwidth, StepProfile
from trimtab.planners.costs import group_s
from trimtab.planners.steps.bounds import area_bound_s
from trimtab.planners.steps.sequences import plan_step, step_seconds, uniform_step


def no_clock() -> float:
    return 0.0


def profiles() -> st.SearchStrategy[StepProfile]:
    """Profiles with any mix of degrees, bandwidths not monotone, and costs of any balance."""
    cost = st.floats(min_value=0.0, max_value=1.0)
    return st.builds(
        lambda quadratic_s, linear_s, fixed_s, degrees, token_cap: StepProfile(
            name="random",
            num_gpus=8,
            gpus_per_node=8,
            quadratic_s=quadratic_s,
            linear_s=linear_s,
            fixed_s=fixed_s,
            alltoall_bytes_per_token=1.0,
            bandwidths=tuple(
                DegreeBandwidth(degree=degree, bytes_per_s=bytes_per_s)
                for degree, bytes_per_s in sorted(degrees.items())
            ),
            token_cap=token_cap,
            step_fixed_s=0.5,
        ),
        quadratic_s=cost,
        linear_s=st.floats(min_value=0.01, max_value=1.0),
        fixed_s=st.floats(min_value=0.0, max_value=50.0),
        degrees=st.dictionaries(
            st.integers(min_value=2, max_value=8), st.floats(min_value=0.1, max_value=100.0)
        ),
        token_cap=st.integers(min_value=20, max_value=200),
    )


batches = st.lists(st.integers(min_value=1, max_value=150), min_size=1, max_size=40)
rank_counts = st.integers(min_value=1, max_value=12)


def check_plan(
    plan: StepPlan, lengths: Sequence[int], *, profile: StepProfile, num_ranks: int
) -> None:
    groups = [group for wave in plan.waves for group in wave.groups]
    assert sorted(i for group in groups for i in group.sequences) == list(range(len(lengths)))
    for group in groups:
        assert group.degree in profile.degrees
        assert sum(lengths[i] for i in group.sequences) <= group.degree * profile.token_cap
        assert sorted(set(group.ranks)) == list(group.ranks)
    for wave in plan.waves:
        ranks = [rank for group in wave.groups for rank in group.ranks]
        assert len(ranks) == len(set(ranks))
        assert max(ranks) < num_ranks
    assert len(plan.paths) == len(plan.waves)
    assert plan.step_s == step_seconds(plan.waves, lengths, profile=profile)
    assert 0 < plan.lower_bound_s <= plan.step_s


def fits(lengths: Sequence[int], profile: StepProfile, num_ranks: int) -> bool:
    widest = max(degree for degree in profile.degrees if degree <= num_ranks)
    return max(lengths) <= widest * profile.token_cap


@settings(deadline=None)
@given(lengths=batches, profile=profiles(), num_ranks=rank_counts)
def test_every_plan_is_sound_and_above_its_bound(
    lengths: list[int], profile: StepProfile, num_ranks: int
) -> None:
    if not fits(lengths, profile, num_ranks):
        lengths = [min(length, profile.token_cap) for length in lengths]
    plan = plan_step(lengths, profile=profile, num_ranks=num_ranks, clock=no_clock)
    check_plan(plan, lengths, profile=profile, num_ranks=num_ranks)
    bound_s = area_bound_s(lengths, profile=profile, num_ranks=num_ranks)
    assert bound_s <= plan.step_s * (1 + 1e-12)


@settings(deadline=None)
@given(lengths=batches, profile=profiles(), num_ranks=rank_counts)
def test_no_uniform_degree_is_faster_than_the_plan(
    lengths: list[int], profile: StepProfile, num_ranks: int
) -> None:
    if not fits(lengths, profile, num_ranks):
        lengths = [min(length, profile.token_cap) for length in lengths]
    plan = plan_step(lengths, profile=profile, num_ranks=num_ranks, clock=no_clock)
    for degree in profile.degrees:
        if degree <= num_ranks and max(lengths) <= degree * profile.token_cap:
            uniform = uniform_step(
                lengths, profile=profile, num_ranks=num_ranks, degree=degree, clock=no_clock
            )
            check_plan(uniform, lengths, profile=profile, num_ranks=num_ranks)
            assert {g.degree for w in uniform.waves for g in w.groups} == {degree}
            assert plan.step_s <= uniform.step_s * (1 + 1e-12)


@settings(deadline=None, max_examples=25)
@given(lengths=batches, profile=profiles(), num_ranks=rank_counts)
def test_search_keeps_every_promise_and_its_bound(
    lengths: list[int], profile: StepProfile, num_ranks: int
) -> None:
    if not fits(lengths, profile, num_ranks):
        lengths = [min(length, profile.token_cap) for length in lengths]
    first, better = (
        plan_step(
            lengths, profile=profile, num_ranks=num_ranks, clock=time.perf_counter,
            time_limit_s=limit_s,
        )
        for limit_s in (0.0, 0.2)
    )  # fmt: skip
    check_plan(better, lengths, profile=profile, num_ranks=num_ranks)
    assert first.lower_bound_s <= better.lower_bound_s * (1 + 1e-9)
    assert better.lower_bound_s <= better.step_s <= first.step_s


def test_a_long_sequence_goes_to_a_wide_group_and_short_ones_stay_alone(
    small_profile: StepProfile,
) -> None:
    plan = plan_step([120, 85, 85], profile=small_profile, num_ranks=4, clock=no_clock)
    (wave,) = plan.waves
    assert {(g.degree, g.sequences) for g in wave.groups} == {(2, (0,)), (1, (1,)), (1, (2,))}
    assert plan.step_s == pytest.approx(2 + group_s([120], 2, profile=small_profile))


def test_equal_sequences_share_the_ranks_evenly(small_profile: StepProfile) -> None:
    plan = plan_step([50] * 8, profile=small_profile, num_ranks=4, clock=no_clock)
    (wave,) = plan.waves
    assert sorted(len(g.sequences) for g in wave.groups) == [2, 2, 2, 2]
    assert plan.step_s == pytest.approx(2 + group_s([50, 50], 1, profile=small_profile))
    assert plan.gap_fraction == pytest.approx(0)


def test_one_sequence_takes_its_fastest_degree(small_profile: StepProfile) -> None:
    plan = plan_step([80], profile=small_profile, num_ranks=4, clock=no_clock)
    fastest = min(group_s([80], degree, profile=small_profile) for degree in (1, 2, 4))
    assert plan.step_s == pytest.approx(2 + fastest)


def test_one_rank_and_three_ranks_get_plans(small_profile: StepProfile) -> None:
    for num_ranks in (1, 3):
        lengths = [90, 80, 10, 10]
        plan = plan_step(lengths, profile=small_profile, num_ranks=num_ranks, clock=no_clock)
        check_plan(plan, lengths, profile=small_profile, num_ranks=num_ranks)


def test_allowed_degrees_are_kept(small_profile: StepProfile) -> None:
    plan = plan_step(
        [150, 90, 9], profile=small_profile, num_ranks=4, clock=no_clock, degrees=[4]
    )
    assert plan.degrees == (4,)


def test_ranks_may_outnumber_the_profile(small_profile: StepProfile) -> None:
    lengths = [90] * 16
    plan = plan_step(lengths, profile=small_profile, num_ranks=16, clock=no_clock)
    check_plan(plan, lengths, profile=small_profile, num_ranks=16)
    assert max(rank for g in plan.waves[0].groups for rank in g.ranks) == 15


RealBatch = Callable[[str, int], list[int]]


@pytest.mark.parametrize(
    ("dataset", "number", "at_most_ms"),
    [
        ("wikipedia", 0, 2929.5),
        ("wikipedia", 2, 3056),
        ("common_crawl", 0, 21158),
        ("github", 0, 16567),
    ],
)
def test_real_batches_stay_as_short_as_they_have_been(
    flexsp_7b: StepProfile,
    real_batch: RealBatch,
    dataset: str,
    number: int,
    at_most_ms: float,
) -> None:
    lengths = real_batch(dataset, number)
    plan = plan_step(lengths, profile=flexsp_7b, num_ranks=64, clock=no_clock)
    check_plan(plan, lengths, profile=flexsp_7b, num_ranks=64)
    assert plan.method == "heuristic"
    assert 1e3 * plan.step_s <= at_most_ms


def test_equal_input_gives_an_equal_plan(flexsp_7b: StepProfile, real_batch: RealBatch) -> None:
    lengths = real_batch("github", 1)
    first, second = (
        plan_step(lengths, profile=flexsp_7b, num_ranks=64, clock=no_clock) for _ in range(2)
    )
    assert first == second


def test_the_solve_time_is_the_callers_clock(small_profile: StepProfile) -> None:
    ticks = iter([10.0, 10.25])
    plan = plan_step([50], profile=small_profile, num_ranks=4, clock=lambda: next(ticks))
    assert plan.solve_s == 0.25


def test_the_reason_names_groups_and_gap(small_profile: StepProfile) -> None:
    plan = plan_step([120, 85, 85], profile=small_profile, num_ranks=4, clock=no_clock)
    assert "1 wave, groups: 2 of degree 1, 1 of degree 2" in plan.reason


BAD_BATCHES = [
    ([], InputError, "the batch is empty"),
    ([5, 0], InputError, r"lengths\[1\]: .* got 0"),
    ([-3], InputError, r"lengths\[0\]: .* got -3"),
    ([5, 6, 401], InfeasibleError, r"lengths\[2\]: a sequence of 401 tokens"),
]


@pytest.mark.parametrize(("lengths", "error", "message"), BAD_BATCHES)
def test_bad_batches_get_no_plan(
    small_profile: StepProfile, lengths: list[int], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        plan_step(lengths, profile=small_profile, num_ranks=4, clock=no_clock)


@pytest.mark.parametrize(("lengths", "error", "message"), BAD_BATCHES)
def test_bad_batches_get_no_uniform_plan(
    small_profile: StepProfile, lengths: list[int], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        uniform_step(lengths, profile=small_profile, num_ranks=4, degree=4, clock=no_clock)


def test_a_uniform_degree_must_be_available(small_profile: StepProfile) -> None:
    with pytest.raises(InputError, match=r"degrees: .* got \[3\]"):
        uniform_step([5], profile=small_profile, num_ranks=4, degree=3, clock=no_clock)
    with pytest.raises(InfeasibleError, match="the largest degree, 1, holds"):
        uniform_step([150], profile=small_profile, num_ranks=4, degree=1, clock=no_clock)
