"""One step of a job over uneven machines: a layout, then groups and stage paths together."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from trimtab.core.errors import InfeasibleError, InputError
from trimtab.core.job import JobSpec
from trimtab.core.plan import Layout
from trimtab.core.staged import StagedLayout, StagedPlan
from trimtab.orchestrator.rate_books import stack_of
from trimtab.planners.staged.staged_apart import apart_drafts
from trimtab.planners.staged.staged_costs import StagedCosts
from trimtab.planners.staged.staged_layouts import (
    check_stage_layers,
    choose_layout,
    megatron_assignment,
)
from trimtab.planners.staged.staged_planning import plan_staged_step
from trimtab.planners.staged.staged_schedule import Draft, Tables, simulate

_MOST_SEQUENCES = 20_000
"""Of a batch; the simulation of more would take seconds a time."""


_NEEDED: Final = (
    ("ep", 1), ("cp", 1), ("vpp", 1), ("zero", 1), ("schedule", "1f1b"), ("offload", "none"),
)  # fmt: skip
"""What the costs of stages know of a layout, besides tp, pp and recompute."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JointPlan:
    """A step, the layout it is planned on, and what deciding apart comes to."""

    staged: StagedLayout
    plan: StagedPlan
    apart_s: float | None
    """The best step with groups, placement and paths decided one after the other; None: that
    finds no step."""
    layout_s: float
    """Time it took to choose the layout."""


def plan_joint_step(
    job: JobSpec,
    lengths: Sequence[int],
    *,
    time_limit_s: float = 1.0,
    clock: Callable[[], float] = time.perf_counter,
) -> JointPlan:
    """Choose who serves which stage, then the step's groups, replicas and paths together.

    The plan is never longer than the best step with groups, placement and paths decided one
    after the other (`planners.staged.staged_apart`).

    Args:
        job: Its layout says tp and pp, perhaps `stage_layers`; its `stage_paths` what is left
            out.
        lengths: Tokens of every sequence of the step.
        time_limit_s: When to stop improving the plan, once the layout is chosen; 0 takes the
            first.
        clock: A monotonic clock in seconds.

    Raises:
        InputError: The job has no layout with one sequence a micro-batch and no experts split,
            more stages than nodes, or a device of unknown peak.
        InfeasibleError: The stages, a sequence or the skip fractions do not fit.
    """
    layout = _usable(job)
    if len(lengths) > _MOST_SEQUENCES:
        raise InputError(
            f"lengths: at most {_MOST_SEQUENCES:,} sequences can be planned over stages, got "
            f"{len(lengths):,}; name fewer with --batch"
        )
    costs = StagedCosts(
        job.model, job.cluster, layout, precision=job.training.precision,
        rates=stack_of(job.cluster).rates,
    )  # fmt: skip
    check_stage_layers(costs)
    paths = job.stage_paths
    started_s = clock()
    staged = choose_layout(
        costs, [lengths], skip_fractions=paths.skip_fractions,
        skip_tolerance=paths.skip_tolerance,
    )  # fmt: skip
    layout_s = clock() - started_s
    plan = _planned(lengths, staged, time_limit_s=time_limit_s, clock=clock)
    peer, peer_drafts, apart_s = _apart(costs, lengths, clock=clock)
    if apart_s is None or plan.step_s <= apart_s or peer is None or paths.skip_fractions:
        return JointPlan(staged=staged, plan=plan, apart_s=apart_s, layout_s=layout_s)
    other = plan_staged_step(
        lengths, staged=peer, clock=clock, time_limit_s=time_limit_s,
        apart=peer_drafts,
    )  # fmt: skip
    return JointPlan(staged=peer, plan=other, apart_s=apart_s, layout_s=layout_s)


def _usable(job: JobSpec) -> Layout:
    layout = job.layout
    if layout is None:
        raise InputError(
            "layout: missing from the job; name the number of stages, layout: {pp: 2}"
        )
    for field, expected in _NEEDED:
        if getattr(layout, field) != expected:
            raise InputError(
                f"layout.{field}: expected {expected} where groups and stage paths are planned "
                f"together, got {getattr(layout, field)}"
            )
    return layout


def _planned(
    lengths: Sequence[int],
    staged: StagedLayout,
    *,
    time_limit_s: float,
    clock: Callable[[], float],
) -> StagedPlan:
    """The plan on the chosen layout, no worse than groups and paths apart on it."""
    apart: list[Draft] = []
    if not any(staged.skip_fractions):
        apart = apart_drafts(lengths, staged, clock=clock)
    return plan_staged_step(
        lengths, staged=staged, clock=clock, time_limit_s=time_limit_s, apart=apart
    )


def _apart(
    costs: StagedCosts, lengths: Sequence[int], *, clock: Callable[[], float]
) -> tuple[StagedLayout | None, list[Draft], float | None]:
    """What deciding apart finds: layout, plans, and the best of their steps.

    It leaves out no stage: with skip fractions it does more work, and is shown all the same.
    """
    assignment = megatron_assignment(costs)
    try:
        staged = costs.layout_of(assignment.servings, assignment.stage_layers)
    except InfeasibleError:
        return None, [], None
    drafts = apart_drafts(lengths, staged, clock=clock)
    tables = Tables(staged)
    step_s = min((simulate(draft, tables)[0] for draft in drafts), default=None)
    return staged, drafts, step_s
