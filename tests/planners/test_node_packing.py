import itertools

from hypothesis import given, settings
from hypothesis import strategies as st

from trimtab.planners.steps.node_packing import pack_nodes


def fewest_left(sizes: list[int], capacities: list[int]) -> int:
    """By trying every node, or none, for every item."""
    best = len(sizes)
    for places in itertools.product(range(-1, len(capacities)), repeat=len(sizes)):
        loads = [
            sum(size for size, at in zip(sizes, places, strict=True) if at == node)
            for node in range(len(capacities))
        ]
        if all(load <= most for load, most in zip(loads, capacities, strict=True)):
            best = min(best, places.count(-1))
    return best


@settings(deadline=None, max_examples=80, derandomize=True)
@given(
    sizes=st.lists(st.integers(min_value=2, max_value=7), max_size=6),
    capacities=st.lists(st.integers(min_value=2, max_value=8), min_size=1, max_size=3),
)
def test_items_are_packed_once_and_no_more_are_left_than_must(
    sizes: list[int], capacities: list[int]
) -> None:
    while sum(sizes) > sum(capacities):
        sizes = sizes[1:]
    packing = pack_nodes(sizes, capacities, sharers=[False] * len(sizes))
    items = [item for node in packing.nodes for item in node]
    assert sorted([*items, *packing.left]) == list(range(len(sizes)))
    for node, most in zip(packing.nodes, capacities, strict=True):
        assert sum(sizes[item] for item in node) <= most
    assert len(packing.left) == fewest_left(sizes, capacities)


def test_a_choice_that_best_fit_misses_is_found() -> None:
    """Best fit puts 4 and 3 together and is left with a 3."""
    packing = pack_nodes([4, 3, 3, 2, 2, 2], [8, 8], sharers=[False] * 6)
    assert packing.left == ()


def test_sharers_get_a_node_each_where_all_the_rest_still_fits() -> None:
    packing = pack_nodes([4, 4, 4, 4], [8, 8], sharers=[True, True, False, False])
    shares = [sum(item < 2 for item in node) for node in packing.nodes]
    assert shares == [1, 1]
    assert packing.left == ()
