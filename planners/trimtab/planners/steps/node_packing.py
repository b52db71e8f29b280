"""Which groups share a node: bin packing of group sizes, so that few groups are cut in two."""

import heapq
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class NodePacking:
    """Items by index, packed into nodes."""

    nodes: tuple[tuple[int, ...], ...]
    """Items of every node."""
    left: tuple[int, ...]
    """Items that no node has room for as a whole, largest first."""


def pack_nodes(
    sizes: Sequence[int], capacities: Sequence[int], *, sharers: Sequence[bool]
) -> NodePacking:
    """Pack items into nodes so that few are left over, and few nodes hold two sharers.

    The best of three: best fit, longest first; the same after the sharers have had a node each;
    and node after node filled as full as any choice of items can.

    Args:
        sizes: Ranks of every item, >= 1.
        capacities: Free ranks of every node.
        sharers: Which items use the node's NICs.

    Sources: best fit decreasing, Johnson (1974); minimum bin slack, Gupta & Ho (1999).
    """
    largest_first = sorted(range(len(sizes)), key=lambda item: -sizes[item])
    sharing = [item for item in largest_first if sharers[item]]

    def score(packing: NodePacking) -> tuple[int, int]:
        shared = sum(max(0, sum(sharers[i] for i in node) - 1) for node in packing.nodes)
        return len(packing.left), shared

    best = _best_fit(largest_first, sizes, capacities)
    if score(best) == (0, 0):
        return best
    candidates = [best, _fullest(largest_first, sizes, capacities)]
    if sharing:
        candidates.append(_best_fit(largest_first, sizes, capacities, apart=sharing))
    return min(candidates, key=score)


def _best_fit(
    order: Sequence[int],
    sizes: Sequence[int],
    capacities: Sequence[int],
    *,
    apart: Sequence[int] = (),
) -> NodePacking:
    """Each item to the fullest node that holds it; before that, those of `apart` one a node."""
    nodes: list[list[int]] = [[] for _ in capacities]
    free = list(capacities)
    roomiest_first = sorted(range(len(free)), key=lambda node: -free[node])
    for item, node in zip(apart, roomiest_first, strict=False):
        if sizes[item] <= free[node]:
            nodes[node].append(item)
            free[node] -= sizes[item]
    spread = {item for node in nodes for item in node}
    by_room: list[list[int]] = [[] for _ in range(max(capacities, default=0) + 1)]
    for node, room in enumerate(free):
        by_room[room].append(node)  # ascending, so already a heap
    left: list[int] = []
    for item in order:
        if item in spread:
            continue
        size = sizes[item]
        room = next((r for r in range(size, len(by_room)) if by_room[r]), 0)
        if not room:
            left.append(item)
            continue
        node = heapq.heappop(by_room[room])
        nodes[node].append(item)
        heapq.heappush(by_room[room - size], node)
    return NodePacking(tuple(map(tuple, nodes)), tuple(left))


def _fullest(
    order: Sequence[int], sizes: Sequence[int], capacities: Sequence[int]
) -> NodePacking:
    """Node after node gets the items that fill it most, of those the largest."""
    items: dict[int, list[int]] = {}
    for item in reversed(order):
        items.setdefault(sizes[item], []).append(item)
    nodes: list[tuple[int, ...]] = [()] * len(capacities)
    for node in sorted(range(len(capacities)), key=lambda node: -capacities[node]):
        counts = {size: len(alike) for size, alike in items.items()}
        chosen = _fullest_choice(counts, capacities[node])
        nodes[node] = tuple(
            items[size].pop() for size, count in chosen.items() for _ in range(count)
        )
    left = sorted((i for alike in items.values() for i in alike), key=lambda i: -sizes[i])
    return NodePacking(tuple(nodes), tuple(left))


def _fullest_choice(counts: dict[int, int], capacity: int) -> Counter[int]:
    """How many items of each size fill `capacity` most; the largest sizes where several do."""
    sizes = sorted((size for size in counts if size <= capacity), reverse=True)
    reached: dict[int, tuple[int, ...]] = {0: ()}
    for size in sizes:
        further: dict[int, tuple[int, ...]] = {}
        for total, used in reached.items():
            most = min(counts[size], (capacity - total) // size)
            for number in range(most + 1):
                at, choice = total + number * size, (*used, number)
                if at not in further or choice > further[at]:
                    further[at] = choice
        reached = further
    return Counter(dict(zip(sizes, reached[max(reached)], strict=True)))
