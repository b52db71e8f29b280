"""The plan of one step with pipeline stages: which micro-batches, and in which order.

A wave is a micro-batch: its groups run on the dp * cp ranks of every stage in turn. The step is
the timeline of 1F1B, interleaved with vpp > 1, so waves that are best one after the other
(`sequences.plan_step`) are not best here: more and more equal ones fill the pipeline better,
short ones first and last, and each costs its fixed time. Plans are therefore built for many
target times and, with vpp = 1, for several sizes of the largest wave, ordered, and improved on
the exact timeline.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from trimtab.core import checks
from trimtab.core.errors import InputError
from trimtab.core.pipeline import Pipeline, PipelinePlan
from trimtab.core.plan import StagePath, StepPlan
from trimtab.core.profile import StepProfile
from trimtab.core.units import counted, duration_text
from trimtab.planners.pipelines.micro_batches import Candidate, MicroBatches
from trimtab.planners.pipelines.ordering import operations_of, peak_tokens
from trimtab.planners.pipelines.pipeline_bound import PipelineBound
from trimtab.planners.pipelines.stages import StageCosts
from trimtab.planners.pipelines.wave_search import WavePlan, warm_up
from trimtab.planners.steps.bounds import check_lengths, usable_degrees
from trimtab.planners.steps.rank_blocks import placed_seconds
from trimtab.planners.steps.sequences import plan_step, tiling_degrees

_KEPT = 8
"""Candidates that are improved."""
_SAME_SIZE = 2
"""Of which have as many micro-batches, at most: their number stays."""
_FIRST_TRIALS, _LAST_TRIALS = 200, 2_000
"""Changes of order tried for a first plan, and at the end."""
_SLICE = 50
"""Trials between two looks at the clock."""
_ROUNDS = (10, 20, 40)
"""Slices for every candidate; after each round the better half is kept."""
_MOST_IDLE_TRIALS = 20_000
_PLAIN_PART, _BOUND_FROM, _WAVES_UNTIL, _BOUND_UNTIL = 0.15, 0.4, 0.55, 0.75
"""Parts of the time limit: how long waves are planned as for one stage, between which the bound
is worked on, and until when on that of the sum of the waves."""
_GOOD_GAP = 0.001


def pipelined_step(
    lengths: Sequence[int],
    *,
    profile: StepProfile,
    pipeline: Pipeline,
    num_ranks: int,
    clock: Callable[[], float],
    degrees: Sequence[int] | None = None,
    time_limit_s: float = 0.0,
) -> StepPlan:
    """Choose micro-batches of sequence groups, and their order, so that the step is short.

    The plan is never slower than `uniform_pipelined_step` at any degree, nor, with vpp = 1,
    than the waves of the first plan of `sequences.plan_step` in the best order found for them.
    Equal input gives an equal plan as long as the limit does not cut the search short.

    Args:
        lengths: Tokens of every sequence, in the order of the batch.
        profile: What groups cost over all layers; see `stages` for what a stage takes.
        pipeline: The stages.
        num_ranks: The dp * cp ranks of one stage.
        clock: A monotonic clock in seconds (`time.perf_counter`).
        degrees: Degrees allowed; None allows all that the profile has.
        time_limit_s: When to stop improving the plan and its bound, in seconds after kernels
            are compiled; 0 returns the first plan, with the area bound.

    Raises:
        InputError: The batch or the set of degrees is empty, a length is not >= 1, the stages
            do not suit the profile, or interleaving has fewer sequences than stages.
        InfeasibleError: A sequence is longer than any group can hold.
    """
    checks.not_negative("time_limit_s", time_limit_s)
    warm_up()
    planning = _Planning(
        lengths, profile=profile, pipeline=pipeline, num_ranks=num_ranks, degrees=degrees,
        clock=clock,
    )  # fmt: skip
    first = planning.first_plan()
    if not time_limit_s or first.gap_fraction <= _GOOD_GAP:
        return first
    return planning.improved(first, time_limit_s=time_limit_s)


def uniform_pipelined_step(
    lengths: Sequence[int],
    *,
    profile: StepProfile,
    pipeline: Pipeline,
    num_ranks: int,
    degree: int,
    clock: Callable[[], float],
) -> StepPlan:
    """The step with groups of one degree only, in the best number of micro-batches found.

    Raises:
        InputError, InfeasibleError: As `pipelined_step`.
    """
    warm_up()
    planning = _Planning(
        lengths, profile=profile, pipeline=pipeline, num_ranks=num_ranks, degrees=[degree],
        clock=clock,
    )  # fmt: skip
    return planning.uniform_plan(degree)


def best_uniform_pipelined_step(
    lengths: Sequence[int],
    *,
    profile: StepProfile,
    pipeline: Pipeline,
    num_ranks: int,
    clock: Callable[[], float],
) -> StepPlan | None:
    """The shortest `uniform_pipelined_step`; None where no degree holds every sequence.

    Raises:
        InputError: As `pipelined_step`.
    """
    wave_cap = StageCosts(profile, pipeline).wave_cap
    plans = [
        uniform_pipelined_step(
            lengths, profile=profile, pipeline=pipeline, num_ranks=num_ranks, degree=degree,
            clock=clock,
        )
        for degree in profile.degrees
        if degree <= num_ranks and max(lengths) <= degree * wave_cap
    ]  # fmt: skip
    return min(plans, key=lambda plan: plan.step_s, default=None)


class _Planning:
    """One batch on its way from a first plan to a good one."""

    def __init__(
        self,
        lengths: Sequence[int],
        *,
        profile: StepProfile,
        pipeline: Pipeline,
        num_ranks: int,
        degrees: Sequence[int] | None,
        clock: Callable[[], float],
    ) -> None:
        self._started_s, self._clock = clock(), clock
        self._lengths, self._profile, self._num_ranks = lengths, profile, num_ranks
        self._costs = costs = StageCosts(profile, pipeline)
        self._degrees = usable_degrees(profile=profile, num_ranks=num_ranks, degrees=degrees)
        widest = replace(profile, token_cap=costs.wave_cap)
        check_lengths(lengths, profile=widest, degrees=self._degrees)
        if pipeline.vpp > 1 and len(lengths) < pipeline.pp:
            raise InputError(
                f"pipeline.vpp: interleaving over pp = {pipeline.pp} stages needs as many "
                f"micro-batches, but the batch has {counted(len(lengths), 'sequence')}; set "
                "vpp to 1"
            )
        self._bound = PipelineBound(
            lengths, costs=costs, num_ranks=num_ranks, degrees=self._degrees
        )
        self._micro_batches = MicroBatches(lengths, costs=costs, num_ranks=num_ranks)
        self._plans: list[WavePlan] = []
        """The best found first, which are improved."""
        self._others: list[Candidate] = []
        """What only its order is improved of."""

    def first_plan(self) -> StepPlan:
        """The best of plans for many targets, of all uniform degrees, and of one stage's."""
        self._plans, best = self._built(self._degrees)
        tiling = tiling_degrees(
            self._degrees, longest=max(self._lengths), token_cap=self._costs.wave_cap,
            ranks_per_node=self._profile.gpus_per_node,
        )  # fmt: skip
        base_s = min(plan.step_s for plan in self._plans)
        if tiling and best.step_s > base_s * (1 + _GOOD_GAP):
            plans, other = self._built(tiling)
            if other.step_s < best.step_s:
                self._plans, best = plans, other
        self._others = [best, *self._as_for_one_stage(time_limit_s=0.0)]
        for degree in self._degrees:
            if max(self._lengths) > degree * self._costs.wave_cap:
                continue
            if self._bound.uniform_s(degree) < self._best.step_s:
                self._others.append(self._uniform(degree))
        return self._plan(self._best)

    def _built(self, degrees: Sequence[int]) -> tuple[list[WavePlan], Candidate]:
        """Plans to go on with, and the one with the shortest step on its ranks."""
        plans = sorted(self._micro_batches.of_degrees(degrees), key=_step_s)
        plans = _varied(plans, number=_KEPT)
        for plan in plans:
            plan.improve_order(trials=_FIRST_TRIALS)
        best = min(plans, key=_step_s)
        return plans, self._micro_batches.finished(best, method="heuristic")

    def uniform_plan(self, degree: int) -> StepPlan:
        return self._plan(self._uniform(degree))

    def improved(self, first: StepPlan, *, time_limit_s: float) -> StepPlan:
        """The best plan found within the limit, with the best bound."""

        def is_before(part: float) -> bool:
            return self._clock() - self._started_s < part * time_limit_s

        self._others += self._as_for_one_stage(time_limit_s=_PLAIN_PART * time_limit_s)
        improvement = self._improvement()
        while is_before(_BOUND_FROM) and next(improvement, False):
            pass
        first_s = first.step_s - self._profile.step_fixed_s
        best_s = min([first_s, *(plan.step_s for plan in self._plans)])
        bound = self._bound.certified(
            best_s,
            [
                max(placed_seconds(wave, self._lengths, profile=self._profile))
                - self._profile.fixed_s
                for wave in self._best.waves
            ],
            is_over=lambda: not is_before(_WAVES_UNTIL),
            is_late=lambda: not is_before(_BOUND_UNTIL),
        )
        enough_s = bound.waves_s * (1 + _GOOD_GAP)
        while is_before(1) and best_s > enough_s and next(improvement, False):
            best_s = min([best_s, *(plan.step_s for plan in self._plans)])
        self._others += [
            self._micro_batches.finished(plan, method="search") for plan in self._plans
        ]
        best = self._best.reordered(self._costs, trials=_LAST_TRIALS)
        plan = self._plan(best) if best.step_s < first_s else first
        assert plan.pipeline is not None
        bound_s = min(bound.waves_s + self._profile.step_fixed_s, plan.step_s)
        return replace(
            plan,
            lower_bound_s=bound_s,
            reason=_reason(plan, bound_s),
            solve_s=self._clock() - self._started_s,
            first_plan_s=first.solve_s,
            first_step_s=first.step_s,
            certificate=bound.certificate,
            pipeline=replace(plan.pipeline, least_waves=bound.num_waves),
        )

    @property
    def _best(self) -> Candidate:
        return min(self._others, key=_step_s)

    def _uniform(self, degree: int) -> Candidate:
        plans = [*self._micro_batches.of_degrees([degree])]
        balanced = self._micro_batches.balanced(degree)
        found = [] if balanced is None else [balanced]
        if plans:
            plan = min(plans, key=_step_s)
            plan.improve_order(trials=_FIRST_TRIALS)
            found.append(self._micro_batches.finished(plan, method="uniform"))
        return min(found, key=_step_s).reordered(self._costs, trials=_FIRST_TRIALS)

    def _as_for_one_stage(self, *, time_limit_s: float) -> list[Candidate]:
        """The waves of a plan whose waves run one after the other; not with interleaving."""
        if self._costs.stages.vpp > 1:
            return []
        longest = -(-max(self._lengths) // max(self._degrees))
        profile = replace(self._profile, token_cap=max(longest, self._costs.even_cap))
        plan = plan_step(
            self._lengths, profile=profile, num_ranks=self._num_ranks, clock=self._clock,
            degrees=self._degrees, time_limit_s=time_limit_s,
        )  # fmt: skip
        found = self._micro_batches.candidate(plan.waves, method="heuristic")
        return [found.reordered(self._costs, trials=_FIRST_TRIALS)]

    def _improvement(self) -> Iterator[bool]:
        """Improve all in turn, then the better half, and so on; True until nothing is found."""
        kept = list(self._plans)
        for num_slices in _ROUNDS:
            for plan in kept:
                for _ in range(num_slices):
                    plan.improve(trials=_SLICE)
                    yield True
            kept.sort(key=_step_s)
            kept = kept[: -(-len(kept) // 2)]
        idle = 0
        while idle < _MOST_IDLE_TRIALS:
            before_s = kept[0].step_s
            kept[0].improve(trials=_SLICE)
            idle = 0 if kept[0].step_s < before_s else idle + _SLICE
            yield True

    def _plan(self, candidate: Candidate) -> StepPlan:
        costs, stages = self._costs, self._costs.stages
        times = tuple(candidate.times[m] for m in candidate.order)
        operations = operations_of(times, limits=costs.limits, vpp=stages.vpp)
        busy = [0.0] * stages.pp
        for operation in operations:
            busy[operation.rank] += operation.end_s - operation.start_s
        step_s = max(operation.end_s for operation in operations) + self._profile.step_fixed_s
        bound_s = min(self._bound.waves_s + self._profile.step_fixed_s, step_s)
        path = StagePath(stages=tuple(range(stages.pp * stages.vpp)))
        plan = StepPlan(
            waves=tuple(candidate.waves[m] for m in candidate.order),
            paths=(path,) * len(times),
            step_s=step_s,
            lower_bound_s=bound_s,
            method=candidate.method,
            solve_s=self._clock() - self._started_s,
            reason="",
            pipeline=PipelinePlan(
                stages=stages,
                micro_batches=times,
                token_limits=costs.limits,
                busy_s=tuple(busy),
                peak_tokens=peak_tokens(
                    operations, [each.tokens for each in times], pp=stages.pp, vpp=stages.vpp
                ),
                wave_cap=costs.wave_cap,
            ),
        )
        return replace(plan, reason=_reason(plan, bound_s))


def _varied(plans: Sequence[WavePlan], *, number: int) -> list[WavePlan]:
    """The first plans, but no more than `_SAME_SIZE` with as many micro-batches."""
    kept: list[WavePlan] = []
    sizes: Counter[int] = Counter()
    for plan in plans:
        if sizes[plan.num_waves] < _SAME_SIZE and len(kept) < number:
            kept.append(plan)
            sizes[plan.num_waves] += 1
    return kept


def _step_s(plan: WavePlan | Candidate) -> float:
    return plan.step_s


def _reason(plan: StepPlan, bound_s: float) -> str:
    assert plan.pipeline is not None
    stages = plan.pipeline.stages
    count = Counter(group.degree for wave in plan.waves for group in wave.groups)
    groups = ", ".join(
        f"{number} of degree {degree}" for degree, number in sorted(count.items())
    )
    busy = sum(plan.pipeline.busy_s) / stages.pp / plan.step_s
    return (
        f"{counted(len(plan.waves), 'micro-batch')} over {stages.pp} stages, {busy:.0%} busy, "
        f"groups: {groups}; {duration_text(plan.step_s)}, at most "
        f"{plan.step_s / bound_s - 1:.1%} above the best possible"
    )
