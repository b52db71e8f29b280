"""Where a worker's step plans come from: the seam to whoever plans."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from trimtab.core.plan import StepPlan


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanAnswer:
    """A step's plan, and why it is not the one that was asked for, if it is not."""

    plan: StepPlan
    late: str | None = None


class StepPlans(Protocol):
    """Plans for coming steps; only rank 0 has one, the other ranks receive."""

    def prefetch(self, step: int, lengths: Sequence[int]) -> None:
        """Start planning a coming step."""

    def take(self, step: int, lengths: Sequence[int]) -> PlanAnswer:
        """The plan of a step, or a fast one when it is late."""

    def fast(self, lengths: Sequence[int]) -> StepPlan:
        """A plan at once, for a batch that was not asked for before."""
