"""Packing a batch into waves of sequence groups.

Sequences of equal length are alike, so a batch is handled as sizes, longest first, with a
count each. Work is in rank-seconds: a group of degree d with work w takes w / d seconds, and
the fixed time of its wave.
"""

import bisect
import heapq
import math
import operator
from collections.abc import Sequence
from dataclasses import dataclass, field

from trimtab.core.profile import StepProfile
from trimtab.planners.costs import token_s

_TIME_SLACK = 1e-12
"""Relative tolerance on a target time, so that a target met exactly is met."""

_STRETCHES = ((1.0, 1.03, 1.1, 1.25, 1.6), (1.0, 1.02, 1.2, 1.5, 2.2))
"""Target times tried for a wave, in multiples of an even share of the work that is left: one
set for each search."""

_DOUBTS = (1.03, 1.15, 1.0, 1.25)
"""How much longer than its bound the rest is taken to last; one greedy run for each."""

_GOOD_GAP = 0.005
"""A packing this close to the bound is not worth another greedy run."""

Counts = tuple[int, ...]
"""How many sequences of each size there are."""


class BatchCosts:
    """What the sequences of a batch cost; every size fits some degree."""

    def __init__(
        self, lengths: Sequence[int], *, profile: StepProfile, degrees: Sequence[int]
    ) -> None:
        members: dict[int, list[int]] = {}
        for index, length in enumerate(lengths):
            members.setdefault(length, []).append(index)
        self.sizes = sorted(members, reverse=True)
        """The different lengths, longest first."""
        self.members = [members[size] for size in self.sizes]
        """Indices into the batch of the sequences of each size."""
        self.counts: Counts = tuple(len(indices) for indices in self.members)
        self.degrees = tuple(degrees)
        self.token_cap = profile.token_cap
        self.fixed_s = profile.fixed_s
        quadratic_s = profile.quadratic_s
        self.work: dict[int, list[float]] = {}
        for degree in degrees:
            per_token_s = token_s(degree, profile=profile)
            self.work[degree] = [(quadratic_s * s + per_token_s) * s for s in self.sizes]
        self.cheapest = [
            min(self.work[degree][size] for degree in self.degrees_of(size))
            for size in range(len(self.sizes))
        ]
        """Work of a sequence of each size at its cheapest degree that holds it."""

    def degrees_of(self, size: int) -> list[int]:
        """The degrees that hold a sequence of `size`, ascending; never none."""
        tokens = self.sizes[size]
        return [degree for degree in self.degrees if tokens <= degree * self.token_cap]

    def alone_s(self, size: int) -> list[float]:
        """Time of one sequence alone in a group, for each degree that holds it."""
        return [self.work[degree][size] / degree for degree in self.degrees_of(size)]


@dataclass(slots=True)
class OpenGroup:
    """A group being filled."""

    degree: int
    work: float = 0.0
    tokens: int = 0
    parts: list[tuple[int, int]] = field(default_factory=list)
    """Sizes with the number of sequences of each."""

    @property
    def seconds(self) -> float:
        return self.work / self.degree


Packing = list[list[OpenGroup]]
"""Waves of groups."""


def packing_s(packing: Packing, *, costs: BatchCosts) -> float:
    """Time of the waves one after the other, each with its fixed time."""
    return sum(max(group.seconds for group in wave) + costs.fixed_s for wave in packing)


def greedy_packing(costs: BatchCosts, *, num_ranks: int) -> Packing:
    """The best of a few greedy runs.

    A run fills wave after wave, each time with the target time that makes the wave's own time
    plus the bound of what is left, taken `_DOUBTS` times, smallest.
    """
    best: Packing = []
    best_s = math.inf
    for stretches in _STRETCHES:
        search = _GreedySearch(costs, num_ranks=num_ranks, stretches=stretches)
        good_s = search.bound_s(costs.counts) * (1 + _GOOD_GAP)
        for doubt in _DOUBTS:
            packing = search.run(doubt)
            seconds = packing_s(packing, costs=costs)
            if seconds < best_s:
                best, best_s = packing, seconds
            if best_s <= good_s:
                return best
    return best


def uniform_packing(costs: BatchCosts, *, num_ranks: int) -> Packing:
    """Groups of the one degree of `costs`: the best of longest-first balancing and greedy."""
    (degree,) = costs.degrees
    search = _GreedySearch(costs, num_ranks=num_ranks, stretches=_STRETCHES[0])
    candidates = [search.run(1.0)]
    num_groups = num_ranks // degree
    tokens = sum(size * count for size, count in zip(costs.sizes, costs.counts, strict=True))
    fewest = -(-tokens // (num_groups * degree * costs.token_cap))
    for num_waves in range(fewest, fewest + 3):
        groups = _balanced_groups(num_waves * num_groups, costs=costs)
        if groups is not None:
            starts = range(0, len(groups), num_groups)
            candidates.append([groups[at : at + num_groups] for at in starts])
    return min(candidates, key=lambda packing: packing_s(packing, costs=costs))


def pack_wave(
    counts: Sequence[int], target_s: float, *, costs: BatchCosts, num_ranks: int
) -> tuple[list[OpenGroup], Counts]:
    """Fill one wave; return its groups, and what is left over.

    Longest first, each sequence takes the narrowest degree that holds it and meets the target:
    an open group before a new one, and a wider group's slack only when no rank is free.

    Args:
        counts: What to pack.
        target_s: Longest time of a group, without the fixed time of a wave.
        costs: What the sequences cost.
        num_ranks: Ranks of a wave.
    """
    limit_s = target_s * (1 + _TIME_SLACK)
    opened: dict[int, list[OpenGroup]] = {degree: [] for degree in costs.degrees}
    free = num_ranks
    left = list(counts)
    size = 0
    while size < len(left):
        if left[size]:
            left[size], free = _place(
                size, left[size], limit_s, free, opened=opened, costs=costs
            )
            if left[size] and free == 0:
                size = _next_that_fits(size + 1, limit_s, opened=opened, costs=costs)
                continue
        size += 1
    return [group for groups in opened.values() for group in groups], tuple(left)


def _place(
    size: int,
    count: int,
    limit_s: float,
    free: int,
    *,
    opened: dict[int, list[OpenGroup]],
    costs: BatchCosts,
) -> tuple[int, int]:
    """Place up to `count` sequences; return how many are left, and the ranks still free."""
    tokens, cap = costs.sizes[size], costs.token_cap
    narrowest = True
    for degree in costs.degrees:
        work = costs.work[degree][size]
        tokens_limit, work_limit = degree * cap, degree * limit_s
        if tokens > tokens_limit or work > work_limit:
            continue
        groups = opened[degree]
        position = 0
        while count:
            if position == len(groups):
                if not narrowest or degree > free:
                    break
                groups.append(OpenGroup(degree))
                free -= degree
            group = groups[position]
            room = (tokens_limit - group.tokens) // tokens
            if room and group.work + work <= work_limit:
                fitting = min(count, room, max(1, int((work_limit - group.work) / work)))
                group.parts.append((size, fitting))
                group.work += fitting * work
                group.tokens += fitting * tokens
                count -= fitting
            position += 1
        if not count:
            break
        narrowest = False
    return count, free


def _next_that_fits(
    size: int, limit_s: float, *, opened: dict[int, list[OpenGroup]], costs: BatchCosts
) -> int:
    """The first size from `size` on that the room left in the open groups may hold."""
    nearest = len(costs.sizes)
    for degree, groups in opened.items():
        if groups:
            tokens = degree * costs.token_cap - min([group.tokens for group in groups])
            work = degree * limit_s - min([group.work for group in groups])
            fitting = bisect.bisect_left(costs.sizes, -tokens, lo=size, key=operator.neg)
            fast = bisect.bisect_left(costs.work[degree], -work, lo=size, key=operator.neg)
            nearest = min(nearest, max(fitting, fast))
    return nearest


@dataclass(frozen=True, slots=True)
class _Option:
    """One way to fill the next wave."""

    groups: list[OpenGroup]
    wave_s: float
    left: Counts
    left_bound_s: float


class _GreedySearch:
    """Greedy runs that share what they have in common."""

    def __init__(
        self, costs: BatchCosts, *, num_ranks: int, stretches: Sequence[float]
    ) -> None:
        self.costs = costs
        self.num_ranks = num_ranks
        self.stretches = stretches
        self._options: dict[Counts, list[_Option]] = {}

    def run(self, doubt: float) -> Packing:
        """Waves, each the option with the least time plus `doubt` times the bound left."""
        packing: Packing = []
        left = self.costs.counts
        while any(left):
            option = min(
                self._options_of(left), key=lambda o: o.wave_s + doubt * o.left_bound_s
            )
            packing.append(option.groups)
            left = option.left
        return packing

    def bound_s(self, counts: Counts) -> float:
        """The area bound of `counts` (see `bounds.area_bound_s`)."""
        if not any(counts):
            return 0.0
        area_s, num_waves = self._area(counts)
        longest = next(size for size, count in enumerate(counts) if count)
        return max(area_s, min(self.costs.alone_s(longest))) + num_waves * self.costs.fixed_s

    def _options_of(self, counts: Counts) -> list[_Option]:
        options = self._options.get(counts)
        if options is None:
            options = [self._option(counts, target_s) for target_s in self._targets_s(counts)]
            self._options[counts] = options
        return options

    def _option(self, counts: Counts, target_s: float) -> _Option:
        groups, left = pack_wave(counts, target_s, costs=self.costs, num_ranks=self.num_ranks)
        wave_s = max(group.seconds for group in groups) + self.costs.fixed_s
        return _Option(groups, wave_s, left, self.bound_s(left))

    def _targets_s(self, counts: Counts) -> list[float]:
        """Target times worth trying: those of the longest, and shares of the work left."""
        area_s, num_waves = self._area(counts)
        alone_s = self.costs.alone_s(next(s for s, count in enumerate(counts) if count))
        shortest_s = min(alone_s)
        targets = {max(shortest_s, stretch * area_s / num_waves) for stretch in self.stretches}
        targets |= {target for target in alone_s if target <= max(shortest_s, 1.5 * area_s)}
        return sorted(targets)

    def _area(self, counts: Counts) -> tuple[float, int]:
        """Cheapest work over the ranks, and the fewest waves by tokens."""
        costs = self.costs
        work = sum(map(float.__mul__, costs.cheapest, map(float, counts)))
        tokens = sum(map(int.__mul__, costs.sizes, counts))
        return work / self.num_ranks, math.ceil(tokens / (self.num_ranks * costs.token_cap))


def _balanced_groups(num_groups: int, *, costs: BatchCosts) -> list[OpenGroup] | None:
    """Each sequence to the group with least work that holds it; slowest group first.

    None where one finds no room.

    Source: Graham (1969), longest processing time first.
    """
    (degree,) = costs.degrees
    limit = degree * costs.token_cap
    groups = [OpenGroup(degree) for _ in range(num_groups)]
    queue = [(0.0, index) for index in range(num_groups)]
    items = [size for size, count in enumerate(costs.counts) for _ in range(count)]
    for size in items:
        full = []
        while queue and groups[queue[0][1]].tokens + costs.sizes[size] > limit:
            full.append(heapq.heappop(queue))
        if not queue:
            return None
        index = queue[0][1]
        groups[index].parts.append((size, 1))
        groups[index].tokens += costs.sizes[size]
        groups[index].work += costs.work[degree][size]
        heapq.heapreplace(queue, (groups[index].work, index))
        for entry in full:
            heapq.heappush(queue, entry)
    used = [group for group in groups if group.parts]
    return sorted(used, key=lambda group: -group.work)
