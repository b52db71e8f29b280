"""What FlexSP's MILP and megatron-core's greedy would run for a batch, under the same costs.

FlexSP's solver is written anew from its paper (arXiv:2412.01523, section 4): lengths in 16
buckets whose total over-estimate is least, the sorted batch cut into M contiguous micro-batches
of about equal tokens for M from the fewest to four more, and for each micro-batch a MILP over
virtual groups. Its degrees start at 2. megatron-core's scheduler is the installed one.
"""

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pulp

from trimtab.core.profile import StepProfile
from trimtab.planners.costs import group_s

_NUM_BUCKETS = 16
_MORE_WAVES = 5

Groups = list[tuple[int, list[int]]]
"""Degree and lengths of every group of a wave."""


def flexsp_step_s(
    lengths: Sequence[int], *, profile: StepProfile, num_ranks: int, seconds_a_milp: float
) -> float | None:
    """The step FlexSP would run; None where a MILP found no plan for any M."""
    fewest = -(-sum(lengths) // (num_ranks * profile.token_cap))
    edges = _bucket_edges(lengths)
    best: float | None = None
    for num_waves in range(fewest, fewest + _MORE_WAVES):
        step_s = profile.step_fixed_s
        for wave in _chunks(sorted(lengths), num_waves):
            groups = _milp(
                wave, edges=edges, profile=profile, num_ranks=num_ranks, seconds=seconds_a_milp
            )
            if groups is None:
                break
            step_s += max(group_s(part, d, profile=profile) for d, part in groups)
        else:
            best = step_s if best is None else min(best, step_s)
    return best


def megatron_step_s(lengths: Sequence[int], *, profile: StepProfile, num_ranks: int) -> float:
    """The step that megatron-core's hybrid context parallelism would run.

    It balances s^2 / cp. Its samples run one after the other, none packed, each with a fixed
    time of its own; here a rank is charged no more fixed times than its tokens fill
    micro-batches of `token_cap`, which favours it. Its sets of samples end with a barrier.
    """
    from megatron.core.pipeline_parallel.hybrid_cp_schedule import BalancedCPScheduler

    scheduler: Any = BalancedCPScheduler(profile.token_cap, _World(num_ranks))
    _, sets = scheduler.get_groups_and_subsamples(list(enumerate(lengths)), None)
    step_s = profile.step_fixed_s
    for samples_by_rank in sets:
        degree_of = {
            sample: sum(sample in samples for samples in samples_by_rank)
            for sample in {sample for samples in samples_by_rank for sample in samples}
        }
        step_s += max(
            _rank_s(
                [(lengths[sample], degree_of[sample]) for sample in samples], profile=profile
            )
            for samples in samples_by_rank
        )
    return step_s


def _rank_s(samples: Sequence[tuple[int, int]], *, profile: StepProfile) -> float:
    """Time of one rank for samples of given length and degree."""
    work_s = sum(
        group_s([length], degree, profile=profile) - profile.fixed_s
        for length, degree in samples
    )
    tokens = sum(length / degree for length, degree in samples)
    return work_s + math.ceil(tokens / profile.token_cap) * profile.fixed_s


class _World:
    """What the scheduler asks of a process group."""

    def __init__(self, num_ranks: int) -> None:
        self._num_ranks = num_ranks

    def size(self) -> int:
        return self._num_ranks


def _bucket_edges(lengths: Sequence[int]) -> list[int]:
    """Upper edges of buckets, so that lengths rounded up to them grow least in total."""
    sizes, counts = np.unique(lengths, return_counts=True)
    number = min(_NUM_BUCKETS, len(sizes))
    total = np.concatenate([[0], np.cumsum(counts)])
    tokens = np.concatenate([[0], np.cumsum(sizes * counts)])
    least = np.full((number + 1, len(sizes) + 1), np.inf)
    least[0, 0] = 0
    cut = np.zeros((number + 1, len(sizes) + 1), dtype=int)
    for used in range(1, number + 1):
        for end in range(1, len(sizes) + 1):
            added = sizes[end - 1] * (total[end] - total[:end]) - (tokens[end] - tokens[:end])
            options = least[used - 1, :end] + added
            cut[used, end] = int(options.argmin())
            least[used, end] = options.min()
    edges, end = [], len(sizes)
    for used in range(number, 0, -1):
        edges.append(int(sizes[end - 1]))
        end = cut[used, end]
    return sorted(edges)


def _chunks(ordered: Sequence[int], number: int) -> Iterator[list[int]]:
    """Contiguous parts of about equal tokens."""
    ends = np.cumsum(ordered)
    cuts = [int(np.searchsorted(ends, ends[-1] * i / number)) for i in range(1, number)]
    for start, end in itertools.pairwise([0, *cuts, len(ordered)]):
        if end > start:
            yield list(ordered[start:end])


def _milp(
    wave: Sequence[int],
    *,
    edges: Sequence[int],
    profile: StepProfile,
    num_ranks: int,
    seconds: float,
) -> Groups | None:
    """Which virtual groups are used, and what each holds; big-M linking, as in the paper."""
    bucket = np.searchsorted(edges, wave)
    members = {
        b: [s for s, at in zip(wave, bucket, strict=True) if at == b] for b in set(bucket)
    }
    degrees = [
        entry.degree
        for entry in profile.bandwidths
        for _ in range(num_ranks // entry.degree)
        if entry.degree <= num_ranks
    ]
    model = pulp.LpProblem("wave", pulp.LpMinimize)
    time_s = model.add_variable("time", 0)
    used = [model.add_variable(f"m_{p}", cat=pulp.LpBinary) for p in range(len(degrees))]
    held = {
        (b, p): model.add_variable(f"a_{b}_{p}", 0, len(members[b]), cat=pulp.LpInteger)
        for b in members
        for p in range(len(degrees))
    }
    model.setObjective(1.0 * time_s)
    for p, degree in enumerate(degrees):
        cost_s = {
            b: group_s([edges[b]], degree, profile=profile) - profile.fixed_s for b in members
        }
        model += pulp.lpSum(cost_s[b] * held[b, p] for b in members) <= time_s
        room = degree * profile.token_cap
        model += pulp.lpSum(int(edges[b]) * held[b, p] for b in members) <= room
        for b in members:
            model += held[b, p] <= len(members[b]) * used[p]
    model += pulp.lpSum(d * m for d, m in zip(degrees, used, strict=True)) <= num_ranks
    for b in members:
        model += pulp.lpSum(held[b, p] for p in range(len(degrees))) == len(members[b])
    model.solve(pulp.HiGHS(msg=False, timeLimit=seconds))
    if model.sol_status not in (pulp.LpSolutionOptimal, pulp.LpSolutionIntegerFeasible):
        return None
    left = {b: iter(lengths) for b, lengths in members.items()}
    groups = []
    for p, degree in enumerate(degrees):
        part = [
            length
            for b in members
            for length in itertools.islice(left[b], round(held[b, p].varValue or 0))
        ]
        if part:
            groups.append((degree, part))
    return groups
