"""Which planner a job's steps get, and with what: one for forecast, training and fallback."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

from trimtab.core.errors import InfeasibleError
from trimtab.core.job import Grouping, JobSpec
from trimtab.core.plan import Layout, StepPlan
from trimtab.core.profile import StepProfile
from trimtab.planners.costs import analytic_profile
from trimtab.planners.sequences import plan_step, uniform_step


@dataclass(frozen=True, slots=True, kw_only=True)
class StepPlanner:
    """Everything that decides the plan of a batch; equal planners give equal plans."""

    profile: StepProfile
    num_ranks: int
    """The dp * cp ranks that groups are formed over."""
    degrees: tuple[int, ...]
    """Degrees that the model's heads allow."""
    grouping: Grouping
    uniform_degree: int | None

    def plan(self, lengths: Sequence[int], *, step: int) -> StepPlan:
        """The plan of a step.

        Raises:
            InfeasibleError: A sequence is longer than any group can hold.
        """
        if self.grouping == "uniform":
            return self._uniform(lengths, degree=self.uniform_degree)
        degrees = self.degrees
        if self.grouping == "probe":
            degrees = degrees[step % len(degrees) :]
        return plan_step(
            lengths,
            profile=self.profile,
            num_ranks=self.num_ranks,
            clock=time.perf_counter,
            degrees=degrees,
        )

    def fallback(self, lengths: Sequence[int]) -> StepPlan:
        """One degree for all sequences: quick to find, whatever the batch."""
        return replace(self._uniform(lengths, degree=None), method="fallback")

    def _uniform(self, lengths: Sequence[int], *, degree: int | None) -> StepPlan:
        return uniform_step(
            lengths,
            profile=self.profile,
            num_ranks=self.num_ranks,
            degree=degree,
            clock=time.perf_counter,
        )


def step_planner(job: JobSpec, layout: Layout) -> StepPlanner:
    """The planner of a job's steps within `layout`.

    Raises:
        InfeasibleError: No degree of the profile divides the model's heads.
        InputError: The job has no profile and its device no datasheet peak.
    """
    profile = job.profile or analytic_profile(
        job.model, job.cluster, layout, precision=job.training.precision
    )
    if job.step_planning.token_cap is not None:
        profile = replace(profile, token_cap=job.step_planning.token_cap)
    heads = job.model.num_heads // layout.tp
    degrees = tuple(
        degree
        for degree in profile.degrees
        if heads % degree == 0 and degree <= layout.group_ranks
    )
    if not degrees:
        raise InfeasibleError(
            f"none of the degrees {list(profile.degrees)} of profile {profile.name!r} divides "
            f"the model's {heads} heads"
        )
    return StepPlanner(
        profile=profile,
        num_ranks=layout.group_ranks,
        degrees=degrees,
        grouping=job.step_planning.grouping,
        uniform_degree=job.step_planning.uniform_degree,
    )
