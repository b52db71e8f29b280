"""Which planner a job's steps get, and with what: one for forecast, training and fallback."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

from trimtab.core.errors import InputError
from trimtab.core.job import Grouping, JobSpec
from trimtab.core.plan import Layout, StepPlan, Wave
from trimtab.core.profile import AttentionKind, GroupOption, StepProfile
from trimtab.orchestrator.rate_books import stack_of
from trimtab.planners.costs import analytic_profile
from trimtab.planners.steps.sequences import plan_step, uniform_step


@dataclass(frozen=True, slots=True, kw_only=True)
class StepPlanner:
    """Everything that decides the plan of a batch; equal planners give equal plans."""

    profile: StepProfile
    num_ranks: int
    """The dp * cp ranks that groups are formed over."""
    degrees: tuple[int, ...]
    """Degrees of the profile that there are ranks for."""
    grouping: Grouping
    uniform_degree: int | None
    time_limit_s: float = 0.0
    """How long a plan is improved; 0: plans do not depend on how fast the machine is."""

    @property
    def probes(self) -> tuple[GroupOption, ...]:
        """The degrees and attention kinds that probing plans begin with, in turn."""
        return tuple(o for o in self.profile.options if o.degree in self.degrees)

    def plan(
        self,
        lengths: Sequence[int],
        *,
        step: int,
        existing: Sequence[tuple[int, ...]] = (),
    ) -> StepPlan:
        """The plan of a step.

        Args:
            lengths: Tokens of every sequence.
            step: Number of the step; probing goes by it.
            existing: Rank sets that communicators exist for.

        Raises:
            InfeasibleError: A sequence is longer than any group can hold.
        """
        if self.grouping == "uniform":
            degree = self.uniform_degree or self._least_degree(max(lengths))
            return self._uniform(lengths, degree=degree)
        if self.grouping == "probe":
            return self._probe(lengths, first=self.probes[step % len(self.probes)])
        plan = plan_step(
            lengths,
            profile=self.profile,
            num_ranks=self.num_ranks,
            clock=time.perf_counter,
            degrees=self.degrees,
            time_limit_s=self.time_limit_s,
            existing=existing,
        )
        return replace(plan, certificate=None)  # ranks that run it have no use for it

    def fallback(self, lengths: Sequence[int]) -> StepPlan:
        """One degree for all sequences: quick to find, whatever the batch."""
        plan = self._uniform(lengths, degree=self._least_degree(max(lengths)))
        return replace(plan, method="fallback")

    def _probe(self, lengths: Sequence[int], *, first: GroupOption) -> StepPlan:
        """Each sequence in groups of the least degree from the first that holds it.

        Of the first's attention kind, unless that has no degree that holds the longest.
        """
        profile = self.profile
        if first.degree > 1:
            of_kind = _of_kind(profile, first.attention)
            widest = max(d for d in of_kind.degrees if d in self.degrees)
            if max(lengths) <= widest * profile.token_cap:
                profile = of_kind
        degrees = [d for d in profile.degrees if d in self.degrees and d >= first.degree]
        plans: list[StepPlan] = []
        for degree in degrees:
            members = [
                index
                for index, length in enumerate(lengths)
                if degree == self._least_degree(length, degrees=degrees)
            ]
            if members:
                part = self._uniform(
                    [lengths[index] for index in members], degree=degree, profile=profile
                )
                plans.append(_renumbered(part, members))
        return StepPlan(
            waves=tuple(wave for plan in plans for wave in plan.waves),
            paths=tuple(path for plan in plans for path in plan.paths),
            step_s=sum(plan.step_s for plan in plans)
            - (len(plans) - 1) * self.profile.step_fixed_s,
            lower_bound_s=max(plan.lower_bound_s for plan in plans),
            method="probe",
            solve_s=sum(plan.solve_s for plan in plans),
            reason=f"measures what groups of {first.degree} and more ranks cost"
            + (f" with {first.attention} attention" if first.degree > 1 else ""),
        )

    def _least_degree(self, length: int, *, degrees: Sequence[int] | None = None) -> int:
        """The least degree that holds a sequence; the largest where none does."""
        degrees = degrees or self.degrees
        return next((d for d in degrees if length <= d * self.profile.token_cap), degrees[-1])

    def _uniform(
        self, lengths: Sequence[int], *, degree: int, profile: StepProfile | None = None
    ) -> StepPlan:
        return uniform_step(
            lengths,
            profile=profile or self.profile,
            num_ranks=self.num_ranks,
            degree=degree,
            clock=time.perf_counter,
        )


def _of_kind(profile: StepProfile, attention: AttentionKind) -> StepProfile:
    """`profile` with groups of one attention kind only."""
    if attention == "ulysses":
        return replace(profile, ring=None)
    return replace(profile, bandwidths=())


def step_planner(job: JobSpec, layout: Layout) -> StepPlanner:
    """The planner of a job's steps within `layout`.

    Raises:
        InputError: The job has no profile and its device no datasheet peak, or its uniform
            degree is not available.
    """
    profile = job.profile or analytic_profile(
        job.model,
        job.cluster,
        layout,
        precision=job.training.precision,
        rates=stack_of(job.cluster).rates,
    )
    if job.step_planning.token_cap is not None:
        profile = replace(profile, token_cap=job.step_planning.token_cap)
    heads = job.model.num_heads // layout.tp
    profile = profile.for_heads(heads)
    degrees = tuple(degree for degree in profile.degrees if degree <= layout.group_ranks)
    uniform_degree = job.step_planning.uniform_degree
    if uniform_degree is not None and uniform_degree not in degrees:
        raise InputError(
            f"step_planning.uniform_degree: expected one of {list(degrees)} (in the profile, "
            f"dividing the model's {heads} heads unless in a ring, not above "
            f"{layout.group_ranks} ranks), got {uniform_degree}"
        )
    return StepPlanner(
        profile=profile,
        num_ranks=layout.group_ranks,
        degrees=degrees,
        grouping=job.step_planning.grouping,
        uniform_degree=uniform_degree,
        time_limit_s=job.step_planning.time_limit_s,
    )


def _renumbered(plan: StepPlan, members: Sequence[int]) -> StepPlan:
    """`plan` of a part of a batch, in terms of the batch: sequence i is `members[i]`."""
    waves = tuple(
        Wave(
            groups=tuple(
                replace(group, sequences=tuple(members[index] for index in group.sequences))
                for group in wave.groups
            )
        )
        for wave in plan.waves
    )
    return replace(plan, waves=waves)
