"""The plan of one step: which sequences share a group, on which ranks, in which wave.

The heuristic fills wave after wave. For each it tries a few target times and takes the one
whose own time plus the area bound of what is left over is smallest; a few settings of that rule
are tried, and compared with every uniform degree.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import islice

from trimtab.core.plan import PlanMethod, SequenceGroup, StagePath, StepPlan, Wave
from trimtab.core.profile import StepProfile
from trimtab.core.units import duration_text
from trimtab.planners.bounds import area_bound_s, check_lengths, usable_degrees
from trimtab.planners.costs import group_s
from trimtab.planners.packing import (
    BatchCosts,
    OpenGroup,
    Packing,
    greedy_packing,
    packing_s,
    uniform_packing,
)


def plan_step(
    lengths: Sequence[int],
    *,
    profile: StepProfile,
    num_ranks: int,
    clock: Callable[[], float],
    degrees: Sequence[int] | None = None,
) -> StepPlan:
    """Choose waves of sequence groups so that the step is short.

    The plan is never slower than `uniform_step` at any degree that holds every sequence. Equal
    input gives an equal plan, but for `solve_s`.

    Args:
        lengths: Tokens of every sequence, in the order of the batch.
        profile: What groups cost; `num_ranks` need not be its `num_gpus`.
        num_ranks: The dp * cp ranks that groups are formed over.
        clock: A monotonic clock in seconds (`time.perf_counter`), for `solve_s`.
        degrees: Degrees allowed; None allows all that the profile has.

    Raises:
        InputError: The batch or the set of degrees is empty, or a length is not >= 1.
        InfeasibleError: A sequence is longer than any group can hold.
    """
    started_s = clock()
    usable = usable_degrees(profile=profile, num_ranks=num_ranks, degrees=degrees)
    check_lengths(lengths, profile=profile, degrees=usable)
    costs = BatchCosts(lengths, profile=profile, degrees=usable)
    best = greedy_packing(costs, num_ranks=num_ranks)
    best_s = packing_s(best, costs=costs)
    method: PlanMethod = "heuristic"
    for degree in usable:
        if max(lengths) > degree * profile.token_cap:
            continue
        bound_s = area_bound_s(lengths, profile=profile, num_ranks=num_ranks, degrees=[degree])
        if bound_s - profile.step_fixed_s >= best_s:
            continue
        costs_d = BatchCosts(lengths, profile=profile, degrees=[degree])
        uniform = uniform_packing(costs_d, num_ranks=num_ranks)
        uniform_s = packing_s(uniform, costs=costs_d)
        if uniform_s < best_s:
            best, best_s, costs, method = uniform, uniform_s, costs_d, "uniform"
    return _step_plan(
        best, lengths, costs=costs, profile=profile, num_ranks=num_ranks, degrees=usable,
        method=method, started_s=started_s, clock=clock,
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
    return _step_plan(
        uniform_packing(costs, num_ranks=num_ranks), lengths,
        costs=costs, profile=profile, num_ranks=num_ranks, degrees=available, method="uniform",
        started_s=started_s, clock=clock,
    )  # fmt: skip


def _step_plan(
    packing: Packing,
    lengths: Sequence[int],
    *,
    costs: BatchCosts,
    profile: StepProfile,
    num_ranks: int,
    degrees: Sequence[int],
    method: PlanMethod,
    started_s: float,
    clock: Callable[[], float],
) -> StepPlan:
    members = [iter(indices) for indices in costs.members]
    waves = tuple(_wave(groups, members=members) for groups in packing)
    step_s = step_seconds(waves, lengths, profile=profile)
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


def step_seconds(
    waves: Sequence[Wave], lengths: Sequence[int], *, profile: StepProfile
) -> float:
    """Time of a step: its waves one after the other, each as slow as its slowest group."""
    return profile.step_fixed_s + sum(
        max(
            group_s([lengths[i] for i in group.sequences], group.degree, profile=profile)
            for group in wave.groups
        )
        for wave in waves
    )


def _wave(groups: Sequence[OpenGroup], *, members: Sequence[Iterator[int]]) -> Wave:
    """The groups on contiguous ranks, powers of two aligned to a multiple of their degree.

    `members` holds the indices into the batch that are not yet placed, by size.
    """

    def by_place(group: OpenGroup) -> tuple[bool, int, int]:
        return group.degree.bit_count() > 1, -group.degree, group.parts[0][0]

    placed = []
    first = 0
    for group in sorted(groups, key=by_place):
        ranks = tuple(range(first, first + group.degree))
        sequences = tuple(
            index for size, count in group.parts for index in islice(members[size], count)
        )
        placed.append(SequenceGroup(ranks=ranks, sequences=sequences))
        first += group.degree
    return Wave(groups=tuple(placed))


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
