"""Packing a batch into waves of sequence groups.

Sequences of equal length are alike, so a batch is handled as sizes, longest first, with a
count each. Work is in rank-seconds: a group of degree d with work w takes w / d seconds, and
the fixed time of its wave.
"""

import functools
import heapq
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate

import numpy as np

from trimtab.core.profile import AttentionKind, StepProfile
from trimtab.planners.attention_costs import sharing_costs
from trimtab.planners.compiled import Floats, floats, ints, zero_floats, zero_ints
from trimtab.planners.steps import kernels

_NUM_STRETCHES, _WIDEST_STRETCH, _MOST_DOUBT = 6, 2.5, 0.35
"""A plan is built with so many target times a wave, from 1 to so many even shares of the work
that is left, the small ones more often; and with so much doubt in its bound at most."""

_MOST_WAVES = 4
"""Waves a search may have, in multiples of the fewest by tokens: groups filled one after the
other are at least half full on average, and groups side by side use half of the ranks."""

_LEAST_ROOM = 64

_NO_TARGET_S = 1e300

_UNIFORM_BUILDS = 4

_SEED = 23_758


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
        self.counts = tuple(len(indices) for indices in self.members)
        self.options = tuple(o for o in profile.options if o.degree in set(degrees))
        """Degrees and attention kinds, ascending by degree."""
        self.degrees = tuple(option.degree for option in self.options)
        """The degree of each option: twice where both kinds are available."""
        self._kinds: dict[int, list[int]] = {}
        for k, degree in enumerate(self.degrees):
            self._kinds.setdefault(degree, []).append(k)
        self.token_cap = profile.token_cap
        self.fixed_s = profile.fixed_s
        costs = [sharing_costs(option, profile=profile) for option in self.options]
        all_sizes = np.array(self.sizes, dtype=np.float64)
        self.work: list[list[float]] = [cost.works(all_sizes).tolist() for cost in costs]
        """Rank-seconds of a sequence, by option and size."""
        self.opening = [cost.opening_s for cost in costs]
        """Rank-seconds of a group besides its sequences, by option."""

    def options_of(self, size: int) -> list[int]:
        """The options that hold a sequence of `size`, ascending by degree; never none."""
        tokens = self.sizes[size]
        return [k for k, degree in enumerate(self.degrees) if tokens <= degree * self.token_cap]

    def _order(self, size: int) -> list[int]:
        """Options by degree, the cheaper kind of each degree first."""
        if len(self._kinds) == len(self.options):
            return list(range(len(self.options)))
        order = []
        for kinds in self._kinds.values():
            order += sorted(kinds, key=lambda k: self.work[k][size])
        return order

    def alone_s(self, k: int, size: int) -> float:
        """Time of a sequence of `size` alone in a group of option `k`."""
        return (self.opening[k] + self.work[k][size]) / self.degrees[k]

    def area_s(self, degree: int, *, num_ranks: int) -> float:
        """Work of all sequences at one degree, the cheaper kind each, over the ranks."""
        works = [self.work[k] for k in self._kinds[degree]]
        least = works[0] if len(works) == 1 else map(min, *works)
        return sum(map(float.__mul__, least, map(float, self.counts))) / num_ranks

    def settle(self, group: "OpenGroup") -> "OpenGroup":
        """Give a group the cheaper kind at its degree for what it holds; returns it."""
        kinds = self._kinds[group.degree]
        if len(kinds) > 1:
            works = [
                self.opening[k] + sum(count * self.work[k][size] for size, count in group.parts)
                for k in kinds
            ]
            best = works.index(min(works))
            group.attention, group.work = self.options[kinds[best]].attention, works[best]
        return group

    def batch(self, num_ranks: int) -> kernels.Batch:
        """What the kernels read."""
        sizes = range(len(self.sizes))
        holding = [self.options_of(size) for size in sizes]
        orders = [self._order(i) for i in sizes]
        most_groups = [num_ranks // degree for degree in self.degrees]
        return kernels.Batch(
            sizes=ints(self.sizes),
            counts=ints(self.counts),
            degrees=ints(self.degrees),
            work=floats(work for works in self.work for work in works),
            opening=floats(self.opening),
            order=ints(k for options in orders for k in options),
            ordered_work=floats(self.work[k][i] for i in sizes for k in orders[i]),
            cheapest=floats(min(self.work[k][i] for k in holding[i]) for i in sizes),
            fastest_s=floats(min(self.alone_s(k, i) for k in holding[i]) for i in sizes),
            first_group=ints(accumulate(most_groups, initial=0)),
            num_ranks=num_ranks,
            token_cap=self.token_cap,
            fixed_s=self.fixed_s,
            is_plain=len(self._kinds) == len(self.options) and not any(self.opening),
        )


@dataclass(slots=True)
class OpenGroup:
    """A group being filled."""

    degree: int
    attention: AttentionKind = "ulysses"
    work: float = 0.0
    tokens: int = 0
    parts: list[tuple[int, int]] = field(default_factory=list)
    """Sizes with the number of sequences of each."""

    @property
    def seconds(self) -> float:
        return self.work / self.degree


Packing = list[list[OpenGroup]]
"""Waves of groups."""


def packing_s(packing: Packing, *, fixed_s: float) -> float:
    """Time of the waves one after the other, each with its fixed time."""
    return sum(max(group.seconds for group in wave) + fixed_s for wave in packing)


class PackingSearch:
    """Plans of one batch that get shorter; equal calls give equal plans.

    `builds` makes plans wave by wave (`kernels.build`), each with other settings; `improve`
    goes on from any of them (`kernels.improve`).
    """

    def __init__(self, costs: BatchCosts, *, num_ranks: int) -> None:
        self.costs = costs
        self._batch = batch = costs.batch(num_ranks)
        num_sizes = len(costs.sizes)
        self._out = empty_filling(batch)
        _, fewest, _ = kernels.area_of(batch, batch.counts)
        self._room = min(sum(costs.counts), max(_LEAST_ROOM, _MOST_WAVES * (fewest + 1)))
        self._left, self._best = zero_ints(num_sizes), zero_ints(num_sizes)
        self._order = ints(range(self._room))
        self._new = self._empty_waves()
        self._random = ints([_SEED])

    def builds(self, number: int) -> "list[PackedWaves]":
        """So many more plans, or fewer where settings suit the batch badly; at least one."""
        plans = [
            self._build(self._random_stretches(), self._random_doubt()) for _ in range(number)
        ]
        found = [plan for plan in plans if plan is not None]
        return found or [self._fullest()]

    def _fullest(self) -> "PackedWaves":
        """Waves that nothing but tokens limits: as few as longest-first packing finds."""
        waves = self._empty_waves()
        num_sizes = len(self.costs.sizes)
        left = ints(self.costs.counts)
        w = 0
        while sum(left):
            wave_s, _ = kernels.fill_wave(self._batch, left, 0, _NO_TARGET_S, self._out)
            waves.target_s[w], waves.wave_s[w] = _NO_TARGET_S, wave_s
            for i in range(num_sizes):
                waves.counts[w * num_sizes + i] = self._out.taken[i]
                left[i] -= self._out.taken[i]
            w += 1
        return PackedWaves(waves, w, fixed_s=self.costs.fixed_s)

    def _random_stretches(self) -> Floats:
        return floats(
            1 + (_WIDEST_STRETCH - 1) * kernels.next_random(self._random) ** 2
            for _ in range(_NUM_STRETCHES)
        )

    def _random_doubt(self) -> float:
        return 1 + _MOST_DOUBT * kernels.next_random(self._random)

    def _build(self, stretches: Floats, doubt: float) -> "PackedWaves | None":
        waves = self._empty_waves()
        num_waves = kernels.build(
            self._batch, stretches, doubt, self._out, self._left, self._best, waves
        )
        if not num_waves:
            return None
        return PackedWaves(waves, num_waves, fixed_s=self.costs.fixed_s)

    def improve(self, plan: "PackedWaves", *, trials: int) -> None:
        """Try to make `plan` shorter; it never gets longer.

        Args:
            plan: One of `builds`; changed in place.
            trials: How many changes to try.
        """
        plan.num_waves = kernels.improve(
            self._batch, plan.num_waves, trials, self._random, self._out,
            self._left, self._order, self._new, plan.waves,
        )  # fmt: skip

    def groups(self, plan: "PackedWaves") -> Packing:
        """The groups of every wave of `plan`."""
        return [self._groups_of(plan.waves, w) for w in range(plan.num_waves)]

    def _groups_of(self, waves: kernels.Waves, w: int) -> list[OpenGroup]:
        batch, out = self._batch, self._out
        num_sizes = len(batch.sizes)
        for i in range(num_sizes):
            self._left[i] = waves.counts[w * num_sizes + i]
        _, num_logged = kernels.fill_wave(batch, self._left, 0, waves.target_s[w], out)
        groups = {
            int(batch.first_group[k]) + number: OpenGroup(option.degree, option.attention)
            for k, option in enumerate(self.costs.options)
            for number in range(out.open_groups[k])
        }
        for at in range(num_logged):
            part = (int(out.log_size[at]), int(out.log_count[at]))
            groups[int(out.log_group[at])].parts.append(part)
        for g, group in groups.items():
            group.work, group.tokens = float(out.group_work[g]), int(out.group_tokens[g])
        return [self.costs.settle(group) for group in groups.values()]

    def _empty_waves(self) -> kernels.Waves:
        return kernels.Waves(
            counts=zero_ints(self._room * len(self.costs.sizes)),
            target_s=zero_floats(self._room),
            wave_s=zero_floats(self._room),
        )


def empty_filling(batch: kernels.Batch) -> kernels.Filling:
    """What `kernels.fill_wave` writes to."""
    num_groups, num_sequences = batch.first_group[len(batch.degrees)], sum(batch.counts)
    return kernels.Filling(
        taken=zero_ints(len(batch.sizes)),
        open_groups=zero_ints(len(batch.degrees)),
        group_work=zero_floats(num_groups),
        group_tokens=zero_ints(num_groups),
        log_group=zero_ints(num_sequences),
        log_size=zero_ints(num_sequences),
        log_count=zero_ints(num_sequences),
    )


@functools.cache
def warm_up() -> None:
    """Have every kernel compiled, or read from numba's cache, before a clock runs."""
    profile = StepProfile(
        name="warm-up", num_gpus=2, gpus_per_node=2, quadratic_s=1e-3, linear_s=1.0,
        fixed_s=1.0, alltoall_bytes_per_token=0.0, bandwidths=(), token_cap=9,
    )  # fmt: skip
    costs = BatchCosts([9, 5, 5, 2, 2], profile=profile, degrees=[1])
    search = PackingSearch(costs, num_ranks=1)
    for plan in search.builds(1):
        search.improve(plan, trials=20)


class PackedWaves:
    """A plan as the kernels keep it."""

    def __init__(self, waves: kernels.Waves, num_waves: int, *, fixed_s: float) -> None:
        self.waves, self.num_waves = waves, num_waves
        self._fixed_s = fixed_s

    @property
    def wave_times_s(self) -> list[float]:
        """Time of the slowest group of every wave, without the fixed time."""
        return [float(self.waves.wave_s[w]) for w in range(self.num_waves)]

    @property
    def seconds(self) -> float:
        """Time of the waves, each with its fixed time."""
        return sum(self.wave_times_s) + self.num_waves * self._fixed_s


def uniform_packing(costs: BatchCosts, *, num_ranks: int) -> Packing:
    """Groups of the one degree of `costs`: the best of longest-first balancing and a search."""
    (degree,) = set(costs.degrees)
    search = PackingSearch(costs, num_ranks=num_ranks)
    best = search.groups(min(search.builds(_UNIFORM_BUILDS), key=lambda plan: plan.seconds))
    best_s = packing_s(best, fixed_s=costs.fixed_s)
    num_groups = num_ranks // degree
    area_s = costs.area_s(degree, num_ranks=num_groups * degree)
    tokens = sum(size * count for size, count in zip(costs.sizes, costs.counts, strict=True))
    fewest = -(-tokens // (num_groups * degree * costs.token_cap))
    for num_waves in range(fewest, fewest + 3):
        if area_s + num_waves * costs.fixed_s >= best_s:
            break
        for k in range(len(costs.options)):
            balanced = balanced_packing(num_waves, k, costs=costs, num_groups=num_groups)
            if balanced is not None:
                balanced_s = packing_s(balanced, fixed_s=costs.fixed_s)
                if balanced_s < best_s:
                    best, best_s = balanced, balanced_s
    return best


def balanced_packing(
    num_waves: int, option: int, *, costs: BatchCosts, num_groups: int
) -> Packing | None:
    """So many waves of `num_groups` groups of one option of `costs`; None: no room."""
    groups = _balanced_groups(num_waves * num_groups, option, costs=costs)
    if groups is None:
        return None
    starts = range(0, len(groups), num_groups)
    return [groups[at : at + num_groups] for at in starts]


def _balanced_groups(
    num_groups: int, option: int, *, costs: BatchCosts
) -> list[OpenGroup] | None:
    """Each sequence to the group with least work that holds it; slowest group first.

    None where one finds no room.

    Source: Graham (1969), longest processing time first.
    """
    degree, attention = costs.degrees[option], costs.options[option].attention
    limit, opening = degree * costs.token_cap, costs.opening[option]
    groups = [OpenGroup(degree, attention, opening) for _ in range(num_groups)]
    queue = [(opening, index) for index in range(num_groups)]
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
        groups[index].work += costs.work[option][size]
        heapq.heapreplace(queue, (groups[index].work, index))
        for entry in full:
            heapq.heappush(queue, entry)
    used = [costs.settle(group) for group in groups if group.parts]
    return sorted(used, key=lambda group: -group.work)
