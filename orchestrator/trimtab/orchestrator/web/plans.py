"""The plan of one step as the page draws it: groups over ranks and predicted time."""

from collections.abc import Sequence
from typing import Any

from trimtab.core.errors import TrimtabError
from trimtab.core.events import StepPlanned
from trimtab.core.job import Request
from trimtab.core.plan import SequenceGroup, Wave
from trimtab.core.profile import StepProfile
from trimtab.orchestrator.step_planning import step_planner
from trimtab.planners.steps.rank_blocks import placed_seconds


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
    waves = [_wave_document(wave, event, profile) for wave in plan.waves]
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


def _wave_document(
    wave: Wave, event: StepPlanned, profile: StepProfile | None
) -> dict[str, Any]:
    times_s = _times_s(wave, event.lengths, profile=profile)
    return {
        "groups": [
            _group_document(group, event, seconds)
            for group, seconds in zip(
                wave.groups, times_s or [None] * len(wave.groups), strict=True
            )
        ],
        "seconds": max(times_s, default=None),
    }


def _group_document(
    group: SequenceGroup, event: StepPlanned, seconds: float | None
) -> dict[str, Any]:
    lengths = [event.lengths[index] for index in group.sequences]
    return {
        "degree": group.degree,
        "attention": group.attention,
        "ranks": group.ranks,
        "num_sequences": len(lengths),
        "num_tokens": sum(lengths),
        "longest": max(lengths),
        "seconds": seconds,
    }


def _times_s(
    wave: Wave, lengths: Sequence[int], *, profile: StepProfile | None
) -> tuple[float, ...]:
    """Predicted times of the groups; none where they cannot be told."""
    if profile is None:
        return ()
    try:
        return placed_seconds(wave, lengths, profile=profile)
    except TrimtabError:
        return ()  # a degree the profile does not know has no predicted time
