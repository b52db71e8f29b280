from collections.abc import Sequence
from dataclasses import replace
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trimtab.core.plan import SequenceGroup, Wave
from trimtab.core.profile import DegreeBandwidth, StepProfile
from trimtab.planners.costs import group_s
from trimtab.planners.steps.rank_blocks import RankBlocks, placed_seconds


def num_straddling(sets: Sequence[tuple[int, ...]], per_node: int) -> int:
    """Groups on more nodes than they need."""
    return sum(
        len({rank // per_node for rank in ranks}) > -(-len(ranks) // per_node) for ranks in sets
    )


def fewest_straddling(degrees: Sequence[int], *, num_ranks: int, per_node: int) -> int:
    """By trying every way to spread every group over the nodes."""
    sizes = [per_node] * (num_ranks // per_node)
    sizes += [num_ranks % per_node] if num_ranks % per_node else []

    def spreads(degree: int, free: tuple[int, ...]) -> list[tuple[int, ...]]:
        if not free:
            return [()] if degree == 0 else []
        return [
            (first - taken, *rest)
            for first in free[:1]
            for taken in range(min(degree, first) + 1)
            for rest in spreads(degree - taken, free[1:])
        ]

    @cache
    def fewest(at: int, free: tuple[int, ...]) -> int:
        if at == len(degrees):
            return 0
        needed = -(-degrees[at] // per_node)
        return min(
            (sum(a != b for a, b in zip(left, free, strict=True)) > needed)
            + fewest(at + 1, tuple(sorted(left)))
            for left in spreads(degrees[at], free)
        )

    return fewest(0, tuple(sorted(sizes)))


@st.composite
def waves(draw: st.DrawFn) -> tuple[list[int], int, int]:
    """Degrees of one wave, ranks, ranks of a node."""
    per_node = draw(st.sampled_from([2, 3, 4, 6, 8]))
    num_ranks = draw(st.integers(min_value=2, max_value=min(18, 3 * per_node)))
    degrees: list[int] = []
    while sum(degrees) < num_ranks and draw(st.booleans() if degrees else st.just(True)):
        degrees.append(draw(st.integers(min_value=1, max_value=num_ranks - sum(degrees))))
    return degrees, num_ranks, per_node


@settings(deadline=None, max_examples=150, derandomize=True)
@given(wave=waves())
def test_no_other_places_cut_fewer_groups(wave: tuple[list[int], int, int]) -> None:
    degrees, num_ranks, per_node = wave
    sets = RankBlocks(num_ranks, ranks_per_node=per_node).place(degrees)
    assert [len(ranks) for ranks in sets] == degrees
    ranks = [rank for each in sets for rank in each]
    assert len(set(ranks)) == len(ranks)
    assert max(ranks) < num_ranks
    fewest = fewest_straddling(
        sorted(degrees, reverse=True), num_ranks=num_ranks, per_node=per_node
    )
    assert num_straddling(sets, per_node) == fewest


@settings(deadline=None, max_examples=50)
@given(wave=waves(), other=waves())
def test_known_sets_never_cut_more_groups(
    wave: tuple[list[int], int, int], other: tuple[list[int], int, int]
) -> None:
    degrees, num_ranks, per_node = wave
    existing = RankBlocks(num_ranks, ranks_per_node=other[2]).place(
        [degree for degree in other[0] if degree <= num_ranks][:1]
    )
    fresh = RankBlocks(num_ranks, ranks_per_node=per_node).place(degrees)
    sets = RankBlocks(num_ranks, ranks_per_node=per_node, existing=existing).place(degrees)
    assert sorted({rank for each in sets for rank in each}) == sorted(
        rank for each in sets for rank in each
    )
    assert num_straddling(sets, per_node) <= num_straddling(fresh, per_node)


@pytest.mark.parametrize(
    ("degrees", "sets"),
    [
        ([4, 2, 1, 1], [(0, 1, 2, 3), (4, 5), (6,), (7,)]),
        ([8, 4, 4], [tuple(range(8)), (8, 9, 10, 11), (12, 13, 14, 15)]),
        ([4, 3, 1], [(4, 5, 6, 7), (0, 1, 2), (3,)]),
        ([12, 4], [(*range(8), *range(8, 12)), (12, 13, 14, 15)]),
        ([3, 3, 2], [(0, 1, 2), (3, 4, 5), (6, 7)]),
        ([5, 6, 5], [(8, 9, 10, 11, 12), (0, 1, 2, 3, 4, 5), (6, 7, 13, 14, 15)]),
    ],
)
def test_places_on_two_nodes_of_eight(degrees: list[int], sets: list[tuple[int, ...]]) -> None:
    assert RankBlocks(16, ranks_per_node=8).place(degrees) == sets


def test_a_known_set_is_taken_again_where_it_costs_nothing() -> None:
    blocks = RankBlocks(8, ranks_per_node=8, existing=[(5, 6, 7), (2, 3)])
    assert blocks.place([3, 2, 2]) == [(5, 6, 7), (0, 1), (2, 3)]
    across = RankBlocks(16, ranks_per_node=8, existing=[(6, 7, 8)])
    assert across.place([3]) == [(0, 1, 2)]


@pytest.fixture
def two_nodes(small_profile: StepProfile) -> StepProfile:
    """Nodes of 4 ranks; 8 and 16 ranks, on two nodes and four, at 2 and 1 bytes/s."""
    far = (
        DegreeBandwidth(degree=8, bytes_per_s=2.0),
        DegreeBandwidth(degree=16, bytes_per_s=1),
    )
    return replace(small_profile, num_gpus=16, bandwidths=(*small_profile.bandwidths, *far))


def seconds(*sets: tuple[int, ...], profile: StepProfile) -> list[float]:
    groups = tuple(SequenceGroup(ranks=r, sequences=(i,)) for i, r in enumerate(sets))
    return list(placed_seconds(Wave(groups=groups), [40] * len(sets), profile=profile))


def test_a_group_inside_a_node_costs_what_the_profile_says(two_nodes: StepProfile) -> None:
    assert seconds((0, 1), (4, 5, 6, 7), profile=two_nodes) == [
        group_s([40], 2, profile=two_nodes), group_s([40], 4, profile=two_nodes)
    ]  # fmt: skip
    assert seconds(tuple(range(8)), profile=two_nodes) == [group_s([40], 8, profile=two_nodes)]


def test_a_straddling_group_exchanges_at_the_rate_of_groups_wider_than_a_node(
    two_nodes: StepProfile,
) -> None:
    (found,) = seconds((3, 4), profile=two_nodes)
    assert found == pytest.approx(5 + (0.01 * 1600 + 0.1 * 40 + 40 / 2.0) / 2)


def test_two_groups_that_leave_a_node_share_its_nics(two_nodes: StepProfile) -> None:
    found = seconds((3, 4), (2, 5), (6, 7), profile=two_nodes)
    shared = 5 + (0.01 * 1600 + 0.1 * 40 + 40 / 1.0) / 2
    assert found == pytest.approx([shared, shared, group_s([40], 2, profile=two_nodes)])


def test_more_nodes_than_needed_cost_bandwidth_in_proportion(two_nodes: StepProfile) -> None:
    (found,) = seconds((0, 1, 2, 3, 4, 5, 8, 9), profile=two_nodes)
    assert found == pytest.approx(5 + (0.01 * 1600 + 0.1 * 40 + 40 / (2.0 * 2 / 3)) / 8)


def test_where_no_degree_is_wider_than_a_node_nothing_is_known_to_charge(
    small_profile: StepProfile,
) -> None:
    assert seconds((3, 4), profile=small_profile) == [group_s([40], 2, profile=small_profile)]
