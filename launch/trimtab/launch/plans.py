"""Where a worker's step plans come from: the seam to whoever plans."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from trimtab.core.plan import StepPlan
from trimtab.core.profile import StepProfile


@dataclass(frozen=True, slots=True, kw_only=True)
class Refinement:
    """New coefficients for plans, and how well the groups that they rest on are predicted."""

    profile: StepProfile
    num_groups: int
    error_before: float
    """Median of |predicted - measured| / measured, by the coefficients before."""
    error_after: float


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanAnswer:
    """A step's plan, and why it is not the one that was asked for, if it is not."""

    plan: StepPlan
    late: str | None = None
    refined: Refinement | None = None
    """Coefficients that this plan is the first to rest on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredStep:
    """What every rank has taken for the waves of a step."""

    plan: StepPlan
    lengths: tuple[int, ...]
    waves_s: tuple[tuple[float, ...], ...]
    """By rank, then by wave; 0 where the rank had no group."""


class StepPlans(Protocol):
    """Plans for coming steps; only rank 0 has one, the other ranks receive."""

    def prefetch(self, step: int, lengths: Sequence[int]) -> None:
        """Start planning a coming step."""

    def take(self, step: int, lengths: Sequence[int]) -> PlanAnswer:
        """The plan of a step, or a fast one when it is late."""

    def learn(self, steps: Sequence[MeasuredStep]) -> None:
        """Let measured steps refine the coefficients; returns at once."""

    def fast(self, lengths: Sequence[int]) -> StepPlan:
        """A plan at once, for a batch that was not asked for before."""
