"""The peer: sequence groups, then placement, then paths, each decided without the others.

Groups come from the step planner under one speed for all, that of the slowest replica of each
stage, as if the ranks were alike. Each group, in turn, then takes at every stage the replica
that would be done first. Placement is the layout's.
"""

from collections.abc import Callable, Sequence

import numpy as np

from trimtab.core.errors import InfeasibleError, InputError
from trimtab.core.profile import DegreeBandwidth, StepProfile
from trimtab.core.staged import StagedLayout
from trimtab.planners.staged.staged_packing import orders
from trimtab.planners.staged.staged_schedule import Draft, Tables, draft_of
from trimtab.planners.steps.sequences import plan_step

_CAP_DIVISORS = (1, 2, 4, 8)
"""Groups are planned as full as memory allows with a micro-batch a stage in flight, or less."""


def apart_drafts(
    lengths: Sequence[int], staged: StagedLayout, *, clock: Callable[[], float]
) -> list[Draft]:
    """Plans whose groups and paths were chosen apart; none where there are no such groups."""
    tables = Tables(staged)
    drafts = []
    for divisor in _CAP_DIVISORS:
        profile = slowest_profile(staged, divisor=divisor)
        num_ranks = min(
            sum(staged.replicas[v].num_ranks for v in staged.of_stage(stage))
            for stage in range(staged.num_stages)
        )
        try:
            plan = plan_step(lengths, profile=profile, num_ranks=num_ranks, clock=clock)
        except (InfeasibleError, InputError):
            continue
        groups = [
            (group.degree, group.sequences) for wave in plan.waves for group in wave.groups
        ]
        routed = _routed(groups, lengths, tables)
        if routed is not None:
            waves = np.repeat(
                np.arange(len(plan.waves)), [len(wave.groups) for wave in plan.waves]
            )
            drafts += [routed.ordered(order) for order in orders(routed, waves, tables)]
    return drafts


def slowest_profile(staged: StagedLayout, *, divisor: float = 1) -> StepProfile:
    """One cost for all ranks: of each stage the slowest replica's, added up over the stages.

    Args:
        staged: The layout.
        divisor: Into how many parts the tokens that memory holds are cut, besides the stages.
    """
    tables = Tables(staged)
    stages = [list(staged.of_stage(stage)) for stage in range(staged.num_stages)]
    usable = [
        k
        for k in range(len(tables.degrees))
        if all(np.isfinite(tables.token_s[stage, k]).any() for stage in stages)
    ]

    def linear_s(k: int) -> float:
        costs = [tables.token_s[stage, k] for stage in stages]
        return float(sum(cost[np.isfinite(cost)].max() for cost in costs))

    alone_s = linear_s(0)
    return StepProfile(
        name="slowest of each stage",
        num_gpus=staged.num_ranks,
        gpus_per_node=8,
        quadratic_s=float(sum(tables.quadratic_s[stage].max() for stage in stages)),
        linear_s=alone_s,
        fixed_s=float(sum(tables.fixed_s[stage].max() for stage in stages)),
        alltoall_bytes_per_token=1.0,
        bandwidths=tuple(
            DegreeBandwidth(
                degree=tables.degrees[k], bytes_per_s=1 / max(1e-15, linear_s(k) - alone_s)
            )
            for k in usable[1:]
        ),
        token_cap=max(1, int(tables.cap.min() / (staged.num_stages * divisor))),
        evidence="analytic",
    )


def _routed(
    groups: Sequence[tuple[int, Sequence[int]]], lengths: Sequence[int], tables: Tables
) -> Draft | None:
    """Every group on the replicas that would be done with it first; None: one fits nowhere."""
    staged = tables.staged
    busy_s = np.zeros(len(staged.replicas))
    routed = []
    for degree, members in groups:
        k = tables.degrees.index(degree)
        tokens = float(sum(lengths[i] for i in members))
        squares = float(sum(lengths[i] ** 2 for i in members))
        path: list[int] = []
        for stage in range(staged.num_stages):
            done = []
            for v in staged.of_stage(stage):
                work = tables.quadratic_s[v] * squares + tables.token_s[v, k] * tokens
                work += degree * tables.fixed_s[v]
                fits = np.isfinite(work) and tokens <= degree * tables.cap[v]
                reached = not path or tables.channel[path[-1], v] >= 0
                if fits and reached:
                    done.append((busy_s[v] + float(work) / tables.num_ranks[v], v))
            if not done:
                return None
            busy_s[min(done)[1]] = min(done)[0]
            path.append(min(done)[1])
        routed.append((degree, tuple(path), tuple(members)))
    return draft_of(routed, lengths)
