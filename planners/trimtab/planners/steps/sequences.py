"""The plan of one step: which sequences share a group, on which ranks, in which wave.

A first plan is built wave by wave, with a few settings, and compared with every uniform degree.
It is then improved, and a linear program proves how short a step could be at best, as long as
the time limit allows.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import islice

from trimtab.core import checks
from trimtab.core.plan import PlanMethod, SequenceGroup, StagePath, StepPlan, Wave
from trimtab.core.profile import StepProfile
from trimtab.core.units import duration_text
from trimtab.planners.steps.bounds import (
    BoundTerms,
    area_bound_s,
    certified_bound_s,
    check_lengths,
    usable_degrees,
)
from trimtab.planners.steps.packing import (
    BatchCosts,
    OpenGroup,
    PackedWaves,
    Packing,
    PackingSearch,
    uniform_packing,
    warm_up,
)
from trimtab.planners.steps.program import solve_bound
from trimtab.planners.steps.rank_blocks import RankBlocks, placed_seconds

_FIRST_BUILDS, _FIRST_TRIALS = 20, 60
"""Plans built for the first answer, and trials to improve the best of them."""

_MORE_BUILDS = 400
"""Plans built after the first answer."""

_ROUNDS = ((6, 1000), (3, 2000), (2, 4000))
"""Plans kept and trials for each, round after round; then the best one alone."""

_SLICE = 20
"""Trials between two looks at the clock."""

_MOST_IDLE_TRIALS = 20_000
"""The search ends when so many trials in a row have found nothing."""

_BOUND_FROM, _BOUND_UNTIL = 0.2, 0.75
"""Parts of the time limit between which the bound is worked on."""

_MOST_PLACED = 8
"""Plans of which the one is taken that is shortest once its groups lie on ranks."""

_ROUNDING = 1e-9
"""A plan must be so much shorter to be worth placing: sums of doubles differ in order."""

_GOOD_GAP = 0.001
"""A plan this close to its bound is not worth more search."""


def plan_step(
    lengths: Sequence[int],
    *,
    profile: StepProfile,
    num_ranks: int,
    clock: Callable[[], float],
    degrees: Sequence[int] | None = None,
    time_limit_s: float = 0.0,
    existing: Sequence[tuple[int, ...]] = (),
) -> StepPlan:
    """Choose waves of sequence groups so that the step is short.

    The plan is never slower than `uniform_step` at any degree that holds every sequence. Equal
    input gives an equal plan, but for the times it took; the limit only cuts the search short,
    so more time never gives a longer step.

    Args:
        lengths: Tokens of every sequence, in the order of the batch.
        profile: What groups cost; `num_ranks` need not be its `num_gpus`.
        num_ranks: The dp * cp ranks that groups are formed over.
        clock: A monotonic clock in seconds (`time.perf_counter`).
        degrees: Degrees allowed; None allows all that the profile has.
        time_limit_s: When to stop improving the plan and its bound, in seconds after kernels
            are compiled; 0 returns the first plan, with the area bound.
        existing: Rank sets that communicators exist for; they are taken again where that costs
            nothing (`rank_blocks`).

    Raises:
        InputError: The batch or the set of degrees is empty, or a length is not >= 1.
        InfeasibleError: A sequence is longer than any group can hold.
    """
    checks.not_negative("time_limit_s", time_limit_s)
    warm_up()
    started_s = clock()
    usable = usable_degrees(profile=profile, num_ranks=num_ranks, degrees=degrees)
    check_lengths(lengths, profile=profile, degrees=usable)
    planning = _Planning(
        lengths, profile=profile, num_ranks=num_ranks, degrees=usable, started_s=started_s,
        clock=clock, existing=existing,
    )  # fmt: skip
    first = planning.first_plan()
    if not time_limit_s or first.gap_fraction <= _GOOD_GAP:
        return first
    return planning.improved(first, time_limit_s=time_limit_s)


class _Planning:
    """One batch on its way from a first plan to a good one."""

    def __init__(
        self,
        lengths: Sequence[int],
        *,
        profile: StepProfile,
        num_ranks: int,
        degrees: Sequence[int],
        started_s: float,
        clock: Callable[[], float],
        existing: Sequence[tuple[int, ...]],
    ) -> None:
        self._existing = existing
        self._lengths, self._profile, self._num_ranks = lengths, profile, num_ranks
        self._degrees, self._started_s, self._clock = degrees, started_s, clock
        self._costs = BatchCosts(lengths, profile=profile, degrees=degrees)
        self._search, self._plans = self._built(self._costs)
        self._first = self._best_placed(self._search, self._plans)
        self._prefer_whole_nodes()

    def _built(self, costs: BatchCosts) -> tuple[PackingSearch, list[PackedWaves]]:
        """A search and its first plans, the best of them improved a little."""
        search = PackingSearch(costs, num_ranks=self._num_ranks)
        plans = sorted(search.builds(_FIRST_BUILDS), key=_seconds)
        search.improve(plans[0], trials=_FIRST_TRIALS)
        return search, plans

    def _prefer_whole_nodes(self) -> None:
        """Go on with degrees that tile nodes, where straddling makes the others slower."""
        tiling = tiling_degrees(
            self._degrees, longest=max(self._lengths), token_cap=self._costs.token_cap,
            ranks_per_node=self._profile.gpus_per_node,
        )  # fmt: skip
        base_s = self._plans[0].seconds + self._profile.step_fixed_s
        if not tiling or self._first[1] <= base_s * (1 + _GOOD_GAP):
            return
        costs = BatchCosts(self._lengths, profile=self._profile, degrees=tiling)
        search, plans = self._built(costs)
        placed = self._best_placed(search, plans)
        if placed[1] < self._first[1]:
            self._search, self._plans, self._first = search, plans, placed

    def first_plan(self) -> StepPlan:
        """The best of the plans built first and of all uniform degrees."""
        method: PlanMethod = "heuristic"
        waves, step_s = self._first
        for degree in self._degrees:
            if max(self._lengths) > degree * self._costs.token_cap:
                continue
            area_s = self._costs.area_s(degree, num_ranks=self._num_ranks)
            if area_s + self._costs.fixed_s + self._profile.step_fixed_s >= step_s:
                continue
            costs = BatchCosts(self._lengths, profile=self._profile, degrees=[degree])
            packing = uniform_packing(costs, num_ranks=self._num_ranks)
            uniform, uniform_s = self._placed(packing, costs=costs)
            if uniform_s < step_s:
                waves, step_s, method = uniform, uniform_s, "uniform"
        return self._plan(waves, step_s, method=method)

    def _best_placed(
        self, search: PackingSearch, plans: Sequence[PackedWaves]
    ) -> tuple[tuple[Wave, ...], float]:
        """The waves of the plan that is shortest once its groups are placed, and its time."""
        best: tuple[Wave, ...] = ()
        best_s = math.inf
        for plan in sorted(plans, key=_seconds)[:_MOST_PLACED]:
            if plan.seconds + self._profile.step_fixed_s < best_s * (1 - _ROUNDING):
                waves, step_s = self._placed(search.groups(plan), costs=search.costs)
                if step_s < best_s:
                    best, best_s = waves, step_s
        return best, best_s

    def _placed(self, packing: Packing, *, costs: BatchCosts) -> tuple[tuple[Wave, ...], float]:
        waves = placed_waves(
            packing, costs=costs, profile=self._profile, num_ranks=self._num_ranks,
            existing=self._existing,
        )  # fmt: skip
        return waves, step_seconds(waves, self._lengths, profile=self._profile)

    def improved(self, first: StepPlan, *, time_limit_s: float) -> StepPlan:
        """The best plan found within the limit, with the best bound."""

        def is_before(part: float) -> bool:
            return self._clock() - self._started_s < part * time_limit_s

        search = self._improvement()
        while is_before(_BOUND_FROM) and next(search, False):
            pass
        best = min(self._plans, key=_seconds)
        certificate = solve_bound(
            BoundTerms(
                self._lengths, profile=self._profile, num_ranks=self._num_ranks,
                degrees=self._degrees,
                step_s=min(best.seconds, first.step_s - self._profile.step_fixed_s),
            ),
            best.wave_times_s,
            is_over=lambda: not is_before(_BOUND_UNTIL),
        )  # fmt: skip
        bound_s = certified_bound_s(
            certificate, self._lengths, profile=self._profile, num_ranks=self._num_ranks,
            degrees=self._degrees,
        )  # fmt: skip
        enough_s = bound_s * (1 + _GOOD_GAP) - self._profile.step_fixed_s
        while is_before(1) and best.seconds > enough_s and next(search, False):
            best = min(self._plans, key=_seconds)
        waves, step_s = self._best_placed(self._search, self._plans)
        plan = self._plan(waves, step_s, method="search") if step_s < first.step_s else first
        bound_s = min(bound_s, plan.step_s)
        return replace(
            plan,
            lower_bound_s=bound_s,
            reason=_reason(plan.waves, plan.step_s, bound_s),
            solve_s=self._clock() - self._started_s,
            first_plan_s=first.solve_s,
            first_step_s=first.step_s,
            certificate=certificate,
        )

    def _improvement(self) -> Iterator[bool]:
        """Build and improve plans, a little at a time; yields True until nothing is found."""
        most = _ROUNDS[0][0]
        for _ in range(_MORE_BUILDS):
            plans = {plan.seconds: plan for plan in [*self._plans, *self._search.builds(1)]}
            self._plans = [plans[seconds] for seconds in sorted(plans)[:most]]
            yield True
        for kept, trials in _ROUNDS:
            for plan in self._plans[:kept]:
                for _ in range(trials // _SLICE):
                    self._search.improve(plan, trials=_SLICE)
                    yield True
            self._plans.sort(key=_seconds)
        best = self._plans[0]
        idle = 0
        while idle < _MOST_IDLE_TRIALS:
            before_s = best.seconds
            self._search.improve(best, trials=_SLICE)
            idle = 0 if best.seconds < before_s else idle + _SLICE
            yield True

    def _plan(self, waves: tuple[Wave, ...], step_s: float, *, method: PlanMethod) -> StepPlan:
        return _step_plan(
            waves, self._lengths, step_s=step_s, profile=self._profile,
            num_ranks=self._num_ranks, degrees=self._degrees, method=method,
            started_s=self._started_s, clock=self._clock,
        )  # fmt: skip


def uniform_step(
    lengths: Sequence[int],
    *,
    profile: StepProfile,
    num_ranks: int,
    degree: int,
    clock: Callable[[], float],
) -> StepPlan:
    """The step with groups of one degree only, side by side: what a static layout does.

    Ranks beyond the last whole group stay idle.

    Args:
        lengths: Tokens of every sequence, in the order of the batch.
        profile: What groups cost.
        num_ranks: The dp * cp ranks that groups are formed over.
        degree: Ranks of every group.
        clock: A monotonic clock in seconds (`time.perf_counter`), for `solve_s`.

    Raises:
        InputError: The batch is empty, a length is not >= 1, or the degree is not available.
        InfeasibleError: A sequence is longer than a group can hold.
    """
    started_s = clock()
    available = usable_degrees(profile=profile, num_ranks=num_ranks)
    usable = usable_degrees(profile=profile, num_ranks=num_ranks, degrees=[degree])
    check_lengths(lengths, profile=profile, degrees=usable)
    costs = BatchCosts(lengths, profile=profile, degrees=usable)
    waves = placed_waves(
        uniform_packing(costs, num_ranks=num_ranks),
        costs=costs, profile=profile, num_ranks=num_ranks,
    )  # fmt: skip
    return _step_plan(
        waves, lengths, step_s=step_seconds(waves, lengths, profile=profile), profile=profile,
        num_ranks=num_ranks, degrees=available,
        method="uniform", started_s=started_s, clock=clock,
    )  # fmt: skip


def tiling_degrees(
    degrees: Sequence[int], *, longest: int, token_cap: int, ranks_per_node: int
) -> list[int]:
    """Those that tile nodes, so that none of their groups need straddle.

    None where they cannot hold a sequence of `longest` tokens.
    """
    tiling = [d for d in degrees if ranks_per_node % d == 0 or d % ranks_per_node == 0]
    return tiling if tiling and longest <= max(tiling) * token_cap else []


def placed_waves(
    packing: Packing,
    *,
    costs: BatchCosts,
    profile: StepProfile,
    num_ranks: int,
    existing: Sequence[tuple[int, ...]] = (),
) -> tuple[Wave, ...]:
    """The groups of a packing on their ranks, with their sequences."""
    members = [iter(indices) for indices in costs.members]
    blocks = RankBlocks(num_ranks, ranks_per_node=profile.gpus_per_node, existing=existing)
    return tuple(_wave(groups, members=members, blocks=blocks) for groups in packing)


def _step_plan(
    waves: tuple[Wave, ...],
    lengths: Sequence[int],
    *,
    step_s: float,
    profile: StepProfile,
    num_ranks: int,
    degrees: Sequence[int],
    method: PlanMethod,
    started_s: float,
    clock: Callable[[], float],
) -> StepPlan:
    bound_s = area_bound_s(lengths, profile=profile, num_ranks=num_ranks, degrees=degrees)
    bound_s = min(bound_s, step_s)  # they may differ in the last bit where the plan is optimal
    return StepPlan(
        waves=waves,
        paths=(StagePath(stages=(0,)),) * len(waves),
        step_s=step_s,
        lower_bound_s=bound_s,
        method=method,
        solve_s=clock() - started_s,
        reason=_reason(waves, step_s, bound_s),
    )


def _seconds(plan: PackedWaves) -> float:
    return plan.seconds


def step_seconds(
    waves: Sequence[Wave], lengths: Sequence[int], *, profile: StepProfile
) -> float:
    """Time of a step: its waves one after the other, each as slow as its slowest group."""
    return profile.step_fixed_s + sum(
        max(placed_seconds(wave, lengths, profile=profile)) for wave in waves
    )


def _wave(
    groups: Sequence[OpenGroup], *, members: Sequence[Iterator[int]], blocks: RankBlocks
) -> Wave:
    """The groups on their ranks; of equal degrees the slowest has the best place.

    `members` holds the indices into the batch that are not yet placed, by size.
    """
    ordered = sorted(groups, key=lambda group: (-group.degree, -group.seconds, group.parts))
    placed = []
    for group, ranks in zip(ordered, blocks.place([g.degree for g in ordered]), strict=True):
        sequences = tuple(
            index for size, count in group.parts for index in islice(members[size], count)
        )
        placed.append(
            SequenceGroup(ranks=ranks, sequences=sequences, attention=group.attention)
        )
    return Wave(groups=tuple(sorted(placed, key=lambda group: group.ranks)))


def _reason(waves: Sequence[Wave], step_s: float, bound_s: float) -> str:
    count = Counter(group.degree for wave in waves for group in wave.groups)
    groups = ", ".join(
        f"{number} of degree {degree}" for degree, number in sorted(count.items())
    )
    plural = "" if len(waves) == 1 else "s"
    return (
        f"{len(waves)} wave{plural}, groups: {groups}; {duration_text(step_s)}, "
        f"at most {step_s / bound_s - 1:.1%} above the best possible"
    )
