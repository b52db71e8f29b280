import pytest

from trimtab.core.profile import StepProfile
from trimtab.planners.compiled import floats, ints
from trimtab.planners.steps import kernels
from trimtab.planners.steps.packing import (
    BatchCosts,
    Packing,
    PackingSearch,
    packing_s,
    uniform_packing,
)


def costs_of(lengths: list[int], *, profile: StepProfile) -> BatchCosts:
    return BatchCosts(lengths, profile=profile, degrees=profile.degrees)


def fill(
    lengths: list[int], target_s: float, *, profile: StepProfile, num_ranks: int
) -> tuple[list[tuple[int, int]], list[int]]:
    """Degree and tokens of the groups of one wave, and how many of each size are left over."""
    costs = costs_of(lengths, profile=profile)
    batch = costs.batch(num_ranks)
    num_sizes, num_degrees = len(costs.sizes), len(costs.degrees)
    num_groups = batch.first_group[num_degrees]
    out = kernels.Filling(
        taken=ints([0] * num_sizes),
        open_groups=ints([0] * num_degrees),
        group_work=floats([0.0] * num_groups),
        group_tokens=ints([0] * num_groups),
        log_group=ints([0] * len(lengths)),
        log_size=ints([0] * len(lengths)),
        log_count=ints([0] * len(lengths)),
    )
    kernels.fill_wave(batch, batch.counts, 0, target_s, out)
    groups = [
        (degree, int(out.group_tokens[batch.first_group[k] + number]))
        for k, degree in enumerate(costs.degrees)
        for number in range(out.open_groups[k])
    ]
    return groups, [
        count - int(taken) for count, taken in zip(costs.counts, out.taken, strict=True)
    ]


def placed(packing: Packing, *, num_sizes: int) -> list[int]:
    """How many sequences of each size a packing holds."""
    counts = [0] * num_sizes
    for group in (group for wave in packing for group in wave):
        for size, count in group.parts:
            counts[size] += count
    return counts


def test_equal_lengths_are_one_size(small_profile: StepProfile) -> None:
    costs = costs_of([30, 50, 30], profile=small_profile)
    assert costs.sizes == [50, 30]
    assert costs.counts == (1, 2)
    assert costs.members == [[1], [0, 2]]


def test_the_cheapest_degree_is_the_narrowest_that_holds(small_profile: StepProfile) -> None:
    batch = costs_of([150, 50], profile=small_profile).batch(4)
    assert list(batch.cheapest) == [
        pytest.approx(225 + 15 + 150 / 20), pytest.approx(25 + 5)
    ]  # fmt: skip


def test_a_wave_leaves_what_no_rank_has_room_for(small_profile: StepProfile) -> None:
    groups, left = fill([60] * 5, 1000.0, profile=small_profile, num_ranks=4)
    assert groups == [(1, 60)] * 4
    assert left == [1]


@pytest.mark.parametrize(("target_s", "degree"), [(100.0, 1), (60.0, 2), (25.0, 4)])
def test_a_tight_target_widens_the_groups(
    target_s: float, degree: int, small_profile: StepProfile
) -> None:
    groups, _ = fill([80], target_s, profile=small_profile, num_ranks=4)
    assert groups == [(degree, 80)]


@pytest.mark.parametrize(
    ("num_ranks", "groups", "left"), [(3, [(1, 60), (2, 150)], [0, 0]), (2, [(2, 190)], [0, 1])]
)
def test_short_sequences_fill_a_wide_group_only_without_free_ranks(
    num_ranks: int,
    groups: list[tuple[int, int]],
    left: list[int],
    small_profile: StepProfile,
) -> None:
    lengths = [150, 20, 20, 20]
    filled = fill(lengths, 1000.0, profile=small_profile, num_ranks=num_ranks)
    assert filled == (groups, left)


def test_a_target_met_exactly_is_met(small_profile: StepProfile) -> None:
    batch = costs_of([70], profile=small_profile).batch(1)
    _, left = fill([70], batch.work[0], profile=small_profile, num_ranks=1)
    assert left == [0]


def test_balancing_spreads_equal_work(small_profile: StepProfile) -> None:
    costs = BatchCosts([40, 40, 30, 30, 20, 20], profile=small_profile, degrees=[1])
    packing = uniform_packing(costs, num_ranks=2)
    assert len(packing) == 1
    assert packing_s(packing, fixed_s=costs.fixed_s) == pytest.approx(5 + 16 + 9 + 4 + 9)


def test_a_packing_takes_the_sum_of_its_waves(small_profile: StepProfile) -> None:
    costs = costs_of([100] * 8, profile=small_profile)
    search = PackingSearch(costs, num_ranks=4)
    (plan,) = search.builds(1)
    packing = search.groups(plan)
    assert plan.seconds == pytest.approx(packing_s(packing, fixed_s=costs.fixed_s))
    assert plan.seconds == pytest.approx(2 * (5 + 100 + 10))


def test_improving_keeps_every_sequence_and_never_makes_a_plan_longer(
    small_profile: StepProfile,
) -> None:
    lengths = [350, 170, 150, 120, *range(5, 100, 3), *range(5, 60)]
    costs = costs_of(lengths, profile=small_profile)
    search = PackingSearch(costs, num_ranks=4)
    gains = []
    for plan in search.builds(5):
        first_s = before_s = plan.seconds
        for _ in range(20):
            search.improve(plan, trials=10)
            assert plan.seconds <= before_s * (1 + 1e-12)
            before_s = plan.seconds
        packing = search.groups(plan)
        assert tuple(placed(packing, num_sizes=len(costs.sizes))) == costs.counts
        assert packing_s(packing, fixed_s=costs.fixed_s) == pytest.approx(plan.seconds)
        gains.append(first_s - plan.seconds)
        check_groups(packing, costs=costs, num_ranks=4)
    assert max(gains) > 1.0


def check_groups(packing: Packing, *, costs: BatchCosts, num_ranks: int) -> None:
    for wave in packing:
        assert sum(group.degree for group in wave) <= num_ranks
        for group in wave:
            tokens = sum(costs.sizes[size] * count for size, count in group.parts)
            work = sum(
                costs.work[costs.degrees.index(group.degree)][size] * count
                for size, count in group.parts
            )
            assert tokens == group.tokens <= group.degree * costs.token_cap
            assert group.work == pytest.approx(work)


def test_a_batch_that_few_settings_suit_still_gets_a_plan(small_profile: StepProfile) -> None:
    costs = costs_of([101] * 40, profile=small_profile)
    search = PackingSearch(costs, num_ranks=3)
    packing = search.groups(search.builds(1)[0])
    assert len(packing) == 40
    assert all(
        [(group.degree, group.tokens) for group in wave] == [(2, 101)] for wave in packing
    )
