import pytest

from trimtab.core.profile import StepProfile
from trimtab.planners.packing import (
    BatchCosts,
    greedy_packing,
    pack_wave,
    packing_s,
    uniform_packing,
)


def costs_of(lengths: list[int], *, profile: StepProfile) -> BatchCosts:
    return BatchCosts(lengths, profile=profile, degrees=profile.degrees)


def test_equal_lengths_are_one_size(small_profile: StepProfile) -> None:
    costs = costs_of([30, 50, 30], profile=small_profile)
    assert costs.sizes == [50, 30]
    assert costs.counts == (1, 2)
    assert costs.members == [[1], [0, 2]]


def test_the_cheapest_degree_is_the_narrowest_that_holds(small_profile: StepProfile) -> None:
    costs = costs_of([150, 50], profile=small_profile)
    assert costs.cheapest == [pytest.approx(225 + 15 + 150 / 20), pytest.approx(25 + 5)]


def test_a_wave_leaves_what_no_rank_has_room_for(small_profile: StepProfile) -> None:
    costs = costs_of([60] * 5, profile=small_profile)
    groups, left = pack_wave(costs.counts, 1000.0, costs=costs, num_ranks=4)
    assert [(group.degree, group.tokens) for group in groups] == [(1, 60)] * 4
    assert left == (1,)


def test_a_tight_target_widens_the_groups(small_profile: StepProfile) -> None:
    costs = costs_of([80], profile=small_profile)
    degrees = []
    for target_s in (100.0, 60.0, 25.0):
        (group,), _ = pack_wave(costs.counts, target_s, costs=costs, num_ranks=4)
        degrees.append(group.degree)
    assert degrees == [1, 2, 4]


def test_short_sequences_fill_a_wide_group_only_without_free_ranks(
    small_profile: StepProfile,
) -> None:
    costs = costs_of([150, 20, 20, 20], profile=small_profile)
    groups, left = pack_wave(costs.counts, 1000.0, costs=costs, num_ranks=3)
    assert not any(left)
    assert [(group.degree, group.tokens) for group in groups] == [(1, 60), (2, 150)]
    groups, left = pack_wave(costs.counts, 1000.0, costs=costs, num_ranks=2)
    assert [(group.degree, group.tokens) for group in groups] == [(2, 190)]
    assert left == (0, 1)


def test_a_target_met_exactly_is_met(small_profile: StepProfile) -> None:
    costs = costs_of([70], profile=small_profile)
    _, left = pack_wave(costs.counts, costs.alone_s(0)[0], costs=costs, num_ranks=1)
    assert left == (0,)


def test_balancing_spreads_equal_work(small_profile: StepProfile) -> None:
    costs = BatchCosts([40, 40, 30, 30, 20, 20], profile=small_profile, degrees=[1])
    packing = uniform_packing(costs, num_ranks=2)
    assert len(packing) == 1
    assert packing_s(packing, costs=costs) == pytest.approx(5 + 16 + 9 + 4 + 9)


def test_a_packing_takes_the_sum_of_its_waves(small_profile: StepProfile) -> None:
    costs = costs_of([100] * 8, profile=small_profile)
    packing = greedy_packing(costs, num_ranks=4)
    assert packing_s(packing, costs=costs) == pytest.approx(2 * (5 + 100 + 10))
