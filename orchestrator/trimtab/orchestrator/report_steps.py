"""The events of each step of a run as it ran last, over restarts and resumes. Pure."""

from collections.abc import Iterable, Mapping
from typing import Final

from trimtab.core.events import (
    AnyEvent,
    AttemptStarted,
    CoefficientsRefined,
    RankStarted,
    StepFinished,
    StepPlanned,
    StepSummarized,
)
from trimtab.core.profile import StepProfile

WARMUP_STEPS: Final = 2
"""Of every attempt; their times are not measured."""


class StepsTaken:
    """The events of each step as it ran last, by step."""

    summaries: Mapping[int, StepSummarized]
    plans: Mapping[int, StepPlanned]
    refined: Mapping[int, StepProfile]
    """The coefficients that a step was planned with, where measured groups had refined them."""
    num_refinements: int
    rank_steps: Mapping[tuple[int, int], StepFinished]
    """By step and rank."""
    measured: frozenset[int]
    """The steps whose times count."""
    attempts: Mapping[int, int]
    """In which attempt each finished step ran last, counted from 0."""

    def __init__(self, events: Iterable[AnyEvent]) -> None:
        summaries: dict[int, StepSummarized] = {}
        plans: dict[int, StepPlanned] = {}
        rank_steps: dict[tuple[int, int], tuple[int, StepFinished]] = {}
        refined: dict[int, StepProfile] = {}
        in_force: StepProfile | None = None
        self.num_refinements = 0
        warmup: dict[int, bool] = {}
        attempts: dict[int, int] = {}
        ranks: list[dict[int, RankStarted]] = [{}]
        num_in_attempt = 0
        for event in events:
            match event:
                case AttemptStarted():
                    num_in_attempt = 0
                    in_force = None  # a new planning process starts with the job's own
                    ranks.append({})
                case RankStarted():
                    ranks[-1][event.rank] = event
                case StepSummarized():
                    num_in_attempt += 1
                    summaries[event.step] = event
                    attempts[event.step] = len(ranks) - 1
                    warmup[event.step] = num_in_attempt <= WARMUP_STEPS
                case StepPlanned():
                    plans[event.step] = event
                    refined.pop(event.step, None)
                    if in_force is not None:
                        refined[event.step] = in_force
                case CoefficientsRefined():
                    in_force = event.profile
                    self.num_refinements += 1
                case StepFinished():
                    rank_steps[event.step, event.rank] = (len(ranks) - 1, event)
        self.summaries = dict(sorted(summaries.items()))
        self.plans = dict(sorted(plans.items()))
        self.refined = refined
        self.rank_steps = {
            (step, rank): event
            for (step, rank), (attempt, event) in rank_steps.items()
            if attempt == attempts.get(step, attempt)  # a later one may have fewer ranks
        }
        self.attempts = attempts
        self._ranks = ranks
        settled = frozenset(step for step, is_warmup in warmup.items() if not is_warmup)
        self.measured = settled or frozenset(summaries)

    def ranks_of(self, step: int) -> list[RankStarted]:
        """What the ranks that ran a finished step said of themselves."""
        return list(self._ranks[self.attempts[step]].values())
