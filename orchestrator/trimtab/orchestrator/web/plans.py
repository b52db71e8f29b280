"""The plan of one step as the page draws it: groups over ranks and predicted time."""

from typing import Any

from trimtab.core.errors import TrimtabError
from trimtab.core.events import StepPlanned
from trimtab.core.job import Request
from trimtab.core.plan import SequenceGroup
from trimtab.core.profile import StepProfile
from trimtab.orchestrator.step_planning import step_planner
from trimtab.planners.costs import group_s


def plan_document(
    event: StepPlanned, *, request: Request, num_ranks: int, measured_s: float | None
) -> dict[str, Any]:
    """The plan with the predicted time of each group.

    Args:
        event: The plan and the lengths it is for.
        request: What runs: its planner's profile predicts. Where that has none (no profile, and
            a device of unknown peak), `seconds` is null and waves are drawn equally long.
        num_ranks: How many ranks shared the step: a restart may have fewer than the request.
        measured_s: What the step took, once it has finished.
    """
    plan = event.plan
    profile = _profile(request)
    waves = [
        _wave_document([_group_document(group, event, profile) for group in wave.groups])
        for wave in plan.waves
    ]
    return {
        "step": event.step,
        "num_ranks": min(request.training[1].group_ranks, num_ranks),
        "waves": waves,
        "predicted_s": plan.step_s,
        "measured_s": measured_s,
        "lower_bound_s": plan.lower_bound_s,
        "method": plan.method,
        "solve_s": plan.solve_s,
        "reason": plan.reason,
        "num_sequences": len(event.lengths),
        "num_tokens": sum(event.lengths),
        "longest": max(event.lengths, default=0),
    }


def _profile(request: Request) -> StepProfile | None:
    try:
        return step_planner(*request.training).profile
    except TrimtabError:
        return None


def _wave_document(groups: list[dict[str, Any]]) -> dict[str, Any]:
    times_s = [group["seconds"] for group in groups]
    known = None not in times_s
    return {"groups": groups, "seconds": max(times_s) if known else None}


def _group_document(
    group: SequenceGroup, event: StepPlanned, profile: StepProfile | None
) -> dict[str, Any]:
    lengths = [event.lengths[index] for index in group.sequences]
    return {
        "degree": group.degree,
        "ranks": group.ranks,
        "num_sequences": len(lengths),
        "num_tokens": sum(lengths),
        "longest": max(lengths),
        "seconds": _group_s(lengths, group.degree, profile=profile),
    }


def _group_s(lengths: list[int], degree: int, *, profile: StepProfile | None) -> float | None:
    if profile is None:
        return None
    try:
        return group_s(lengths, degree, profile=profile)
    except TrimtabError:
        return None  # a degree the profile does not know has no predicted time
