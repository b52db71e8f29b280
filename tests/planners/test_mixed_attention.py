"""Plans over both attention kinds and odd degrees: brute force, and what always holds."""

import itertools
import math
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import TypeVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trimtab.core.errors import InfeasibleError
from trimtab.core.plan import StepPlan
from trimtab.core.profile import DegreeBandwidth, RingCosts, StepProfile
from trimtab.planners.costs import group_s
from trimtab.planners.steps.bounds import BoundTerms, area_bound_s, certified_bound_s
from trimtab.planners.steps.program import solve_bound
from trimtab.planners.steps.sequences import plan_step, step_seconds, uniform_step

_Item = TypeVar("_Item")


@pytest.fixture(scope="module")
def profile(small_profile: StepProfile) -> StepProfile:
    """Ulysses over 2 and 4; rings over 2, 3 and 4 that hide what long sequences pass on."""
    ring = RingCosts(
        quadratic_s=0.011,
        bytes_per_token=2.0,
        bandwidths=tuple(
            DegreeBandwidth(degree=d, bytes_per_s=5.0, latency_s=0.125) for d in (2, 3, 4)
        ),
        overlap_fraction=0.9,
    )
    return replace(
        small_profile,
        alltoall_bytes_per_token=5.0,
        bandwidths=tuple(replace(e, latency_s=0.0625) for e in small_profile.bandwidths),
        ring=ring,
    )


def partitions(items: list[_Item]) -> list[list[list[_Item]]]:
    if not items:
        return [[]]
    found = []
    for part in partitions(items[1:]):
        found.append([items[:1], *part])
        found += [[*part[:i], [items[0], *part[i]], *part[i + 1 :]] for i in range(len(part))]
    return found


def best_step_s(lengths: list[int], *, profile: StepProfile, num_ranks: int) -> float:
    """By trying every partition into groups, every degree and kind, and every set of waves."""
    options = [option for option in profile.options if option.degree <= num_ranks]
    best = math.inf
    for parts in partitions(lengths):
        for chosen in itertools.product(options, repeat=len(parts)):
            groups = list(zip(parts, chosen, strict=True))
            if any(sum(part) > o.degree * profile.token_cap for part, o in groups):
                continue
            timed = [
                (o.degree, group_s(part, o.degree, profile=profile, attention=o.attention))
                for part, o in groups
            ]
            for waves in partitions(timed):
                if all(sum(degree for degree, _ in wave) <= num_ranks for wave in waves):
                    best = min(best, sum(max(each_s for _, each_s in wave) for wave in waves))
    return best + profile.step_fixed_s


@pytest.mark.parametrize(
    ("lengths", "num_ranks"),
    [([150, 60, 60], 3), ([290, 40], 3), ([120, 85, 30], 4), ([390, 10], 4), ([250, 9, 9], 6)],
)
def test_plan_and_bound_enclose_the_best_of_all(
    profile: StepProfile, lengths: list[int], num_ranks: int
) -> None:
    best_s = best_step_s(lengths, profile=profile, num_ranks=num_ranks)
    plan = plan_step(lengths, profile=profile, num_ranks=num_ranks, clock=lambda: 0.0)
    degrees = [degree for degree in profile.degrees if degree <= num_ranks]
    terms = BoundTerms(
        lengths, profile=profile, num_ranks=num_ranks, degrees=degrees,
        step_s=plan.step_s - profile.step_fixed_s,
    )  # fmt: skip
    certificate = solve_bound(terms, [best_s / 2], is_over=lambda: False)
    bound_s = certified_bound_s(certificate, lengths, profile=profile, num_ranks=num_ranks)
    area_s = area_bound_s(lengths, profile=profile, num_ranks=num_ranks)
    assert area_s <= bound_s <= best_s * (1 + 1e-9)
    assert best_s <= plan.step_s * (1 + 1e-9)
    assert plan.step_s <= 1.2 * best_s


def test_a_long_sequence_takes_the_ring_and_short_ones_ulysses(profile: StepProfile) -> None:
    """At 80 tokens a ring of two hides what it passes on; at 10 most of it shows."""
    long, short = (
        plan_step(lengths, profile=profile, num_ranks=2, clock=lambda: 0.0, degrees=[2])
        for lengths in ([80], [10] * 4)
    )
    assert [g.attention for w in long.waves for g in w.groups] == ["ring"]
    assert [g.attention for w in short.waves for g in w.groups] == ["ulysses"]
    assert long.step_s < replace(profile, ring=None).step_fixed_s + group_s(
        [80], 2, profile=profile
    )


def test_three_ranks_and_a_sequence_for_all_of_them_need_the_ring(
    profile: StepProfile,
) -> None:
    plan = plan_step([290], profile=profile, num_ranks=3, clock=lambda: 0.0)
    assert [(g.degree, g.attention) for w in plan.waves for g in w.groups] == [(3, "ring")]
    with pytest.raises(InfeasibleError, match="fits in no group: the largest degree, 2,"):
        plan_step([290], profile=replace(profile, ring=None), num_ranks=3, clock=lambda: 0.0)


@st.composite
def problems(draw: st.DrawFn) -> tuple[list[int], StepProfile, int]:
    """Batches, profiles of both kinds with any degrees, and ranks of nodes of any size."""
    degrees = st.dictionaries(
        st.integers(min_value=2, max_value=12), st.floats(min_value=0.1, max_value=100.0)
    )
    latency = draw(st.floats(min_value=0.0, max_value=2.0))

    def bandwidths(table: dict[int, float]) -> tuple[DegreeBandwidth, ...]:
        return tuple(
            DegreeBandwidth(degree=d, bytes_per_s=rate, latency_s=latency)
            for d, rate in sorted(table.items())
        )

    cost = st.floats(min_value=0.0, max_value=1.0)
    rings = draw(degrees.filter(bool))
    profile = StepProfile(
        name="random",
        num_gpus=12,
        gpus_per_node=draw(st.sampled_from([2, 3, 4, 6, 8])),
        quadratic_s=draw(cost),
        linear_s=draw(st.floats(min_value=0.01, max_value=1.0)),
        fixed_s=draw(st.floats(min_value=0.0, max_value=50.0)),
        alltoall_bytes_per_token=1.0,
        bandwidths=bandwidths(draw(degrees)),
        token_cap=draw(st.integers(min_value=20, max_value=200)),
        step_fixed_s=0.5,
        ring=RingCosts(
            quadratic_s=draw(cost),
            bytes_per_token=draw(cost),
            bandwidths=bandwidths(rings),
            overlap_fraction=draw(cost),
        ),
    )
    num_ranks = draw(st.sampled_from([1, 2, 3, 4, 6, 12]))
    widest = max(degree for degree in profile.degrees if degree <= num_ranks)
    longest = min(150, widest * profile.token_cap)
    lengths = draw(
        st.lists(st.integers(min_value=1, max_value=longest), min_size=1, max_size=24)
    )
    return lengths, profile, num_ranks


def check(
    plan: StepPlan, lengths: Sequence[int], *, profile: StepProfile, num_ranks: int
) -> None:
    groups = [group for wave in plan.waves for group in wave.groups]
    assert sorted(i for group in groups for i in group.sequences) == list(range(len(lengths)))
    options = {(option.degree, option.attention) for option in profile.options}
    for group in groups:
        assert (group.degree, group.attention) in options
        assert sum(lengths[i] for i in group.sequences) <= group.degree * profile.token_cap
    for wave in plan.waves:
        ranks = [rank for group in wave.groups for rank in group.ranks]
        assert len(ranks) == len(set(ranks))
        assert max(ranks) < num_ranks
    assert plan.step_s == step_seconds(plan.waves, lengths, profile=profile)
    base_s = profile.step_fixed_s + sum(
        max(
            group_s(
                [lengths[i] for i in group.sequences], group.degree, profile=profile,
                attention=group.attention,
            )
            for group in wave.groups
        )
        for wave in plan.waves
    )  # fmt: skip
    assert base_s <= plan.step_s * (1 + 1e-12)
    assert 0 < plan.lower_bound_s <= plan.step_s


@settings(deadline=None, max_examples=60)
@given(problem=problems())
def test_plans_are_sound_whatever_the_kinds_degrees_and_nodes(
    problem: tuple[list[int], StepProfile, int],
) -> None:
    lengths, profile, num_ranks = problem
    plan = plan_step(lengths, profile=profile, num_ranks=num_ranks, clock=lambda: 0.0)
    check(plan, lengths, profile=profile, num_ranks=num_ranks)
    for degree in profile.degrees:
        if degree <= num_ranks and max(lengths) <= degree * profile.token_cap:
            uniform = uniform_step(
                lengths, profile=profile, num_ranks=num_ranks, degree=degree, clock=lambda: 0.0
            )
            check(uniform, lengths, profile=profile, num_ranks=num_ranks)
            assert plan.step_s <= uniform.step_s * (1 + 1e-9)


@settings(deadline=None, max_examples=10)
@given(problem=problems())
def test_search_keeps_every_promise_too(
    problem: tuple[list[int], StepProfile, int],
) -> None:
    lengths, profile, num_ranks = problem
    first, better = (
        plan_step(
            lengths, profile=profile, num_ranks=num_ranks, clock=time.perf_counter,
            time_limit_s=limit_s,
        )
        for limit_s in (0.0, 0.1)
    )  # fmt: skip
    check(better, lengths, profile=profile, num_ranks=num_ranks)
    assert first.lower_bound_s <= better.lower_bound_s * (1 + 1e-9)
    assert better.step_s <= first.step_s


def test_known_rank_sets_change_the_places_and_nothing_else(profile: StepProfile) -> None:
    lengths = [150, 90, 80]
    fresh = plan_step(lengths, profile=profile, num_ranks=4, clock=lambda: 0.0)
    again = plan_step(
        lengths, profile=profile, num_ranks=4, clock=lambda: 0.0,
        existing=[(1, 3), (0, 1, 3), (0, 2)],
    )  # fmt: skip
    assert again.step_s == fresh.step_s
    assert [[g.sequences for g in w.groups] for w in again.waves] != []
    wide = {g.ranks for w in again.waves for g in w.groups if 1 < g.degree < 4}
    assert wide <= {(1, 3), (0, 1, 3), (0, 2)}
