"""Packing a batch into waves of sequence groups.

Work is in rank-seconds: a group of degree d with work w takes w / d seconds, and the fixed time
of its wave. Sequences are handled by *item*: their position in the batch ordered longest first.
"""

import bisect
import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from trimtab.core.profile import StepProfile
from trimtab.planners.costs import token_s

_TIME_SLACK = 1e-12
"""Relative tolerance on a target time, so that a target met exactly is met."""

_STRETCHES = (1.0, 1.03, 1.1, 1.25, 1.6)
"""Target times tried for a wave, in multiples of an even share of the work that is left."""

_DOUBTS = (1.03, 1.15, 1.0, 1.25)
"""How much longer than its bound the rest is taken to last; one greedy run for each."""

_GOOD_GAP = 0.005
"""A packing this close to the bound is not worth another greedy run."""


class BatchCosts:
    """What each sequence of a batch costs at each degree; every item fits some degree."""

    def __init__(
        self, lengths: Sequence[int], *, profile: StepProfile, degrees: Sequence[int]
    ) -> None:
        self.order = sorted(range(len(lengths)), key=lambda index: (-lengths[index], index))
        self.tokens = [lengths[index] for index in self.order]
        self.degrees = tuple(degrees)
        self.token_cap = profile.token_cap
        self.fixed_s = profile.fixed_s
        quadratic_s = profile.quadratic_s
        self.work: dict[int, list[float]] = {}
        for degree in degrees:
            per_token_s = token_s(degree, profile=profile)
            self.work[degree] = [(quadratic_s * s + per_token_s) * s for s in self.tokens]
        self.cheapest = [
            min(self.work[degree][item] for degree in self.degrees_of(item))
            for item in range(len(self.tokens))
        ]
        """Work of each item at its cheapest degree that holds it."""

    def degrees_of(self, item: int) -> list[int]:
        """The degrees that hold `item`, ascending; never none."""
        tokens = self.tokens[item]
        return [degree for degree in self.degrees if tokens <= degree * self.token_cap]

    def alone_s(self, item: int) -> list[float]:
        """Time of `item` alone in a group, for each degree that holds it."""
        return [self.work[degree][item] / degree for degree in self.degrees_of(item)]


@dataclass(slots=True)
class OpenGroup:
    """A group being filled."""

    degree: int
    work: float = 0.0
    tokens: int = 0
    items: list[int] = field(default_factory=list)

    @property
    def seconds(self) -> float:
        return self.work / self.degree


@dataclass(slots=True)
class Packing:
    """Waves of groups, and their time with the fixed time of each wave."""

    waves: list[list[OpenGroup]]
    seconds: float


def greedy_packing(costs: BatchCosts, *, num_ranks: int) -> Packing:
    """The best of a few greedy runs, improved by moves.

    A run fills wave after wave, each time with the target time that makes the wave's own time
    plus the bound of what is left, taken `_DOUBTS` times, smallest.
    """
    items = list(range(len(costs.tokens)))
    bound_s = _rest_s(items, costs=costs, num_ranks=num_ranks)
    best: Packing | None = None
    for doubt in _DOUBTS:
        packing = _greedy_run(items, doubt, costs=costs, num_ranks=num_ranks)
        if best is None or packing.seconds < best.seconds:
            best = packing
        if best.seconds <= bound_s * (1 + _GOOD_GAP):
            break
    assert best is not None
    return best


def uniform_packing(costs: BatchCosts, *, num_ranks: int) -> Packing:
    """Groups of the one degree of `costs`: the best of longest-first balancing and greedy."""
    (degree,) = costs.degrees
    items = list(range(len(costs.tokens)))
    best = _greedy_run(items, 1.0, costs=costs, num_ranks=num_ranks)
    num_groups = num_ranks // degree
    fewest = -(-sum(costs.tokens) // (num_groups * degree * costs.token_cap))
    for num_waves in range(fewest, fewest + 3):
        groups = _balanced_groups(num_waves * num_groups, costs=costs)
        if groups is None:
            continue
        starts = range(0, len(groups), num_groups)
        packing = _packing([groups[at : at + num_groups] for at in starts], costs=costs)
        best = min(best, packing, key=lambda candidate: candidate.seconds)
    return best


def pack_wave(
    items: Sequence[int], target_s: float, *, costs: BatchCosts, num_ranks: int
) -> tuple[list[OpenGroup], list[int]]:
    """Fill one wave; return its groups, and the items left over, longest first.

    Longest first, each item takes the narrowest degree that holds it and meets the target: an
    open group before a new one, and a wider group's slack only when no rank is free.

    Args:
        items: What to pack, longest first.
        target_s: Longest time of a group, without the fixed time of a wave.
        costs: What the items cost.
        num_ranks: Ranks of a wave.
    """
    limit_s = target_s * (1 + _TIME_SLACK)
    opened: dict[int, list[OpenGroup]] = {degree: [] for degree in costs.degrees}
    free = num_ranks
    left: list[int] = []
    position = 0
    while position < len(items):
        item = items[position]
        group, free = _place(item, limit_s, free, opened=opened, costs=costs)
        following = position + 1
        if group is not None:
            group.items.append(item)
            group.work += costs.work[group.degree][item]
            group.tokens += costs.tokens[item]
        else:
            if free == 0:
                following = _next_that_fits(items, following, opened=opened, costs=costs)
            left.extend(items[position:following])
        position = following
    return [group for groups in opened.values() for group in groups], left


def _place(
    item: int,
    limit_s: float,
    free: int,
    *,
    opened: dict[int, list[OpenGroup]],
    costs: BatchCosts,
) -> tuple[OpenGroup | None, int]:
    """The group `item` goes to, if any, and the ranks then free."""
    tokens, cap = costs.tokens[item], costs.token_cap
    narrowest = True
    for degree in costs.degrees:
        work = costs.work[degree][item]
        tokens_limit, work_limit = degree * cap - tokens, degree * limit_s - work
        if tokens_limit < 0 or work_limit < 0:
            continue
        for group in opened[degree]:
            if group.work <= work_limit and group.tokens <= tokens_limit:
                return group, free
        if narrowest and degree <= free:
            group = OpenGroup(degree)
            opened[degree].append(group)
            return group, free - degree
        narrowest = False
    return None, free


def _next_that_fits(
    items: Sequence[int],
    position: int,
    *,
    opened: dict[int, list[OpenGroup]],
    costs: BatchCosts,
) -> int:
    """The first position from `position` on whose tokens some open group has room for."""
    room = max(
        degree * costs.token_cap - group.tokens
        for degree, groups in opened.items()
        for group in groups
    )
    return bisect.bisect_left(items, -room, lo=position, key=lambda other: -costs.tokens[other])


def _greedy_run(
    items: Sequence[int], doubt: float, *, costs: BatchCosts, num_ranks: int
) -> Packing:
    waves = []
    left = list(items)
    while left:
        best: tuple[float, list[OpenGroup], list[int]] | None = None
        for target_s in _targets_s(left, costs=costs, num_ranks=num_ranks):
            groups, rest = pack_wave(left, target_s, costs=costs, num_ranks=num_ranks)
            wave_s = max(group.seconds for group in groups) + costs.fixed_s
            total_s = wave_s + doubt * _rest_s(rest, costs=costs, num_ranks=num_ranks)
            if best is None or total_s < best[0]:
                best = total_s, groups, rest
        assert best is not None
        waves.append(best[1])
        left = best[2]
    return _packing(waves, costs=costs)


def _targets_s(items: Sequence[int], *, costs: BatchCosts, num_ranks: int) -> list[float]:
    """Target times worth trying: those of the longest item, and shares of the work left."""
    alone_s = costs.alone_s(items[0])
    shortest_s = min(alone_s)
    total_s = sum(costs.cheapest[item] for item in items) / num_ranks
    share_s = total_s / _num_waves(items, costs=costs, num_ranks=num_ranks)
    targets = {max(shortest_s, stretch * share_s) for stretch in _STRETCHES}
    targets |= {target for target in alone_s if target <= max(shortest_s, 1.5 * total_s)}
    return sorted(targets)


def _rest_s(items: Sequence[int], *, costs: BatchCosts, num_ranks: int) -> float:
    """The area bound of `items` (see `bounds.area_bound_s`)."""
    if not items:
        return 0.0
    area_s = sum(costs.cheapest[item] for item in items) / num_ranks
    num_waves = _num_waves(items, costs=costs, num_ranks=num_ranks)
    return max(area_s, min(costs.alone_s(items[0]))) + num_waves * costs.fixed_s


def _num_waves(items: Sequence[int], *, costs: BatchCosts, num_ranks: int) -> int:
    tokens = sum(costs.tokens[item] for item in items)
    return math.ceil(tokens / (num_ranks * costs.token_cap))


def _balanced_groups(num_groups: int, *, costs: BatchCosts) -> list[OpenGroup] | None:
    """Each item to the group with least work that holds it; slowest group first.

    None where an item finds no room.

    Source: Graham (1969), longest processing time first.
    """
    (degree,) = costs.degrees
    groups = [OpenGroup(degree) for _ in range(num_groups)]
    queue = [(0.0, index) for index in range(num_groups)]
    for item, tokens in enumerate(costs.tokens):
        full = []
        while queue and groups[queue[0][1]].tokens + tokens > degree * costs.token_cap:
            full.append(heapq.heappop(queue))
        if not queue:
            return None
        group = groups[queue[0][1]]
        group.items.append(item)
        group.tokens += tokens
        group.work += costs.work[degree][item]
        heapq.heapreplace(queue, (group.work, queue[0][1]))
        for entry in full:
            heapq.heappush(queue, entry)
    used = [group for group in groups if group.items]
    return sorted(used, key=lambda group: -group.work)


def _packing(waves: list[list[OpenGroup]], *, costs: BatchCosts) -> Packing:
    seconds = sum(max(group.seconds for group in wave) + costs.fixed_s for wave in waves)
    return Packing(waves, seconds)
