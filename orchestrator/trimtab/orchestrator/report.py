"""What a run did, in figures: one run summarized, and two runs of the same batches compared.

`summarize` and `compare` are pure functions of what a run directory holds. A step that ran
twice, before and after a resume, counts once: as it ran last. The first `WARMUP_STEPS` steps of
every attempt (first allocations, cold caches) count in the losses, and not in the times:
`report_steps`.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Final, NamedTuple, TypeVar

from trimtab.core.errors import InputError
from trimtab.core.events import (
    STEP_PARTS,
    AnyEvent,
    AttemptStarted,
    CheckpointSaved,
    CoefficientsRefined,
    EvaluationFinished,
    Event,
    JobFinished,
    RankStarted,
    StepFinished,
    StepPlanned,
    StepSummarized,
)
from trimtab.core.job import Grouping, JobHandle, Request
from trimtab.core.model import MFU_FORMULA, mfu
from trimtab.core.plan import JobPlan, TimePart
from trimtab.core.profile import AttentionKind, StepProfile
from trimtab.core.units import flop_rate_text
from trimtab.monitor.store import EventStore
from trimtab.orchestrator.report_steps import StepsTaken
from trimtab.orchestrator.rundir import RunDir
from trimtab.orchestrator.step_planning import step_planner
from trimtab.planners.profile_fitting import predicted_s, wave_samples

_REPORTED: Final = (
    AttemptStarted,
    CheckpointSaved,
    CoefficientsRefined,
    EvaluationFinished,
    JobFinished,
    RankStarted,
    StepFinished,
    StepPlanned,
    StepSummarized,
)

E = TypeVar("E", bound=Event)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRecord:
    """What a run directory says about its run."""

    handle: JobHandle
    request: Request
    plan: JobPlan
    """The forecast before the start."""
    events: tuple[AnyEvent, ...]
    """In the order they were stored."""
    submitted_s: float | None
    """When the job was submitted, Unix time; None, where only a later attempt's submission is
    known: its first event counts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LossSummary:
    """Losses in nats, means over tokens; None where there is none."""

    first: float | None
    last: float | None
    held_out_first: float | None
    held_out_last: float | None
    held_out_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TimeSummary:
    """Step times over the measured steps: those finished, less the warm-up."""

    num_steps: int
    """How many steps the figures rest on."""
    num_warmup_steps: int
    """How many were left out."""
    median_step_s: float
    p90_step_s: float
    tokens_per_s: float
    """All tokens of the measured steps over their time."""
    parts: tuple[TimePart, ...]
    """Mean over ranks and steps, in the order of `STEP_PARTS`."""
    mfu: float | None
    mfu_note: str
    """The formula, precision and peak behind `mfu`, or why it is blank."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupErrors:
    """Groups of a degree and kind, predicted by the coefficients in force at their step."""

    degree: int
    attention: AttentionKind
    num_groups: int
    ratio: float
    """Median of predicted / measured."""
    error_fraction: float
    """Median of |predicted - measured| / measured."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanSummary:
    """What the step plans were, and how their forecasts held."""

    num_plans: int
    mixed_fraction: float
    """Share of the steps with groups of more than one degree."""
    waves_per_step: float
    num_fallbacks: int
    """Steps whose plan came too late or failed, so that the fast one was used."""
    median_solve_s: float
    forecast_step_s: float
    """What the job's plan foretold for a step."""
    forecast_ratio: float | None
    """That over the measured median; 1 is exact. None before the first step."""
    step_error_fraction: float | None
    """Median over steps of |planned - measured| / measured."""
    groups: tuple[GroupErrors, ...]
    """How the groups of each degree were predicted, ascending by degree."""
    num_refinements: int
    """How often measured groups refined the coefficients."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunReport:
    """One run in figures."""

    handle: str
    run_dir: str
    name: str
    grouping: Grouping
    layout: str
    num_ranks: int
    state: str
    """`succeeded`, `failed` or `cancelled`; `unfinished` where the end is not recorded."""
    reason: str
    num_steps: int
    """Different steps finished."""
    num_steps_asked: int
    num_attempts: int
    loss: LossSummary
    times: TimeSummary | None
    """None before the first step."""
    plans: PlanSummary | None
    """None before the first plan."""
    goodput_fraction: float | None
    """Time in steps that count, over the time since the job was submitted."""
    checkpoints: tuple[int, ...]
    """Steps with a checkpoint, in the order they were saved."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Run `first` against run `second`, over the steps both have."""

    first: RunReport
    second: RunReport
    num_common_steps: int
    same_batches: bool
    """Every common step trained on sequences of the same lengths, in the same order."""
    speedup_ratio: float | None
    """Median over measured steps of the second's step time over the first's; above 1: the
    first is faster. None where no measured step is common."""
    faster_steps: int
    """Measured common steps in which the first was faster."""
    measured_steps: int
    total_ratio: float | None
    """The second's time over the first's, summed over the measured common steps."""
    max_loss_difference: float | None


def read_record(run: RunDir) -> RunRecord:
    """Read what a report needs of a run directory, also while the run goes on.

    Raises:
        InputError: The run is a script's, of which there is nothing to report.
        RunDirError: It is damaged, of another version, or its run has not come up yet.
    """
    state, request = run.state(), run.request()
    _ = request.training  # raises for a script, of which there is no report
    with EventStore.open(run.events) as store:
        events = tuple(store.all(kinds=_REPORTED))
    return RunRecord(
        handle=run.handle,
        request=request,
        plan=run.plan(),
        events=events,
        submitted_s=state.submitted_s if state.attempt == 1 else None,
    )


def summarize(record: RunRecord) -> RunReport:
    """One run in figures."""
    steps = StepsTaken(record.events)
    job, layout = record.request.training
    end = _end(record.events)
    return RunReport(
        handle=str(record.handle),
        run_dir=record.request.run_dir,
        name=job.name,
        grouping=job.step_planning.grouping,
        layout=str(layout),
        num_ranks=record.request.num_ranks,
        state=end.state.value if end else "unfinished",
        reason=end.reason if end else "",
        num_steps=len(steps.summaries),
        num_steps_asked=job.training.num_steps,
        num_attempts=max(1, len(_of(record.events, AttemptStarted))),
        loss=_loss_summary(steps, record.events),
        times=_time_summary(steps, record) if steps.summaries else None,
        plans=_plan_summary(steps, record) if steps.plans else None,
        goodput_fraction=_goodput_fraction(steps, record),
        checkpoints=tuple(dict.fromkeys(e.step for e in _of(record.events, CheckpointSaved))),
    )


def compare(first: RunRecord, second: RunRecord) -> Comparison:
    """How much faster `first` is than `second`, and whether they are the same training."""
    one, other = StepsTaken(first.events), StepsTaken(second.events)
    common = sorted(one.summaries.keys() & other.summaries.keys())
    measured = [s for s in common if s in one.measured and s in other.measured]
    ratios = [other.summaries[s].step_s / one.summaries[s].step_s for s in measured]
    one_s = sum(one.summaries[s].step_s for s in measured)
    other_s = sum(other.summaries[s].step_s for s in measured)
    gaps = [abs(one.summaries[s].loss - other.summaries[s].loss) for s in common]
    return Comparison(
        first=summarize(first),
        second=summarize(second),
        num_common_steps=len(common),
        same_batches=bool(common) and all(_same_batch(one, other, s) for s in common),
        speedup_ratio=median(ratios) if ratios else None,
        faster_steps=sum(ratio > 1 for ratio in ratios),
        measured_steps=len(measured),
        total_ratio=other_s / one_s if one_s else None,
        max_loss_difference=max(gaps, default=None),
    )


def _end(events: Sequence[AnyEvent]) -> JobFinished | None:
    """How the last attempt ended; None while it has not."""
    for event in reversed(events):
        if isinstance(event, JobFinished):
            return event
        if isinstance(event, AttemptStarted):
            return None
    return None


def _loss_summary(steps: StepsTaken, events: Sequence[AnyEvent]) -> LossSummary:
    losses = [summary.loss for summary in steps.summaries.values()]
    latest = {event.step: event for event in _of(events, EvaluationFinished)}
    held_out = [latest[step] for step in sorted(latest)]
    return LossSummary(
        first=losses[0] if losses else None,
        last=losses[-1] if losses else None,
        held_out_first=held_out[0].loss if held_out else None,
        held_out_last=held_out[-1].loss if held_out else None,
        held_out_tokens=held_out[-1].num_tokens if held_out else 0,
    )


def _time_summary(steps: StepsTaken, record: RunRecord) -> TimeSummary:
    measured = [s for step, s in steps.summaries.items() if step in steps.measured]
    total_s = sum(summary.step_s for summary in measured)
    utilization = _mfu(measured, steps, record)
    return TimeSummary(
        num_steps=len(measured),
        num_warmup_steps=len(steps.summaries) - len(measured),
        median_step_s=median(summary.step_s for summary in measured),
        p90_step_s=_nearest_rank([summary.step_s for summary in measured], fraction=0.9),
        tokens_per_s=sum(summary.num_tokens for summary in measured) / total_s,
        parts=_mean_parts(steps),
        mfu=utilization.value,
        mfu_note=utilization.note,
    )


def _mean_parts(steps: StepsTaken) -> tuple[TimePart, ...]:
    events = [event for (step, _), event in steps.rank_steps.items() if step in steps.measured]
    totals = dict.fromkeys(STEP_PARTS, 0.0)
    for event in events:
        for part in event.parts:
            totals[part.name] += part.seconds
    return tuple(
        TimePart(name=name, seconds=total / len(events))
        for name, total in totals.items()
        if events
    )


class _Mfu(NamedTuple):
    value: float | None
    note: str


def _mfu(measured: Sequence[StepSummarized], steps: StepsTaken, record: RunRecord) -> _Mfu:
    """Model FLOPs over time and the peak of the ranks that ran each step (`MFU_FORMULA`)."""
    attempts = {steps.attempts[step.step]: steps.ranks_of(step.step) for step in measured}
    ranks = [rank for of_attempt in attempts.values() for rank in of_attempt]
    if not ranks:
        return _Mfu(None, "no rank has said which device it runs on")
    unknown = next((rank for rank in ranks if rank.peak_flop_per_s is None), None)
    if unknown is not None:
        return _Mfu(None, f"{unknown.device}: {unknown.peak_note}")
    peaks = {
        attempt: sum(rank.peak_flop_per_s or 0.0 for rank in of_attempt)
        for attempt, of_attempt in attempts.items()
    }
    seconds = sum(summary.step_s for summary in measured)
    # Of a run that went on with fewer ranks, the mean over the time it trained.
    peak = (
        sum(summary.step_s * peaks[steps.attempts[summary.step]] for summary in measured)
        / seconds
    )
    flops = sum(summary.model_flops for summary in measured)
    devices = ", ".join(dict.fromkeys(rank.device for rank in ranks))
    notes = "; ".join(dict.fromkeys(rank.peak_note for rank in ranks))
    precision = record.request.training[0].training.precision
    counts = sorted({len(of_attempt) for of_attempt in attempts.values()})
    return _Mfu(
        mfu(flops, seconds=seconds, peak_flop_per_s=peak),
        f"{MFU_FORMULA}; {precision} peak of {' or '.join(map(str, counts))} ranks ({devices}) "
        f"together {flop_rate_text(peak)}: {notes}",
    )


def _plan_summary(steps: StepsTaken, record: RunRecord) -> PlanSummary:
    try:
        profile = step_planner(*record.request.training).profile
    except InputError:  # planned without costs, with one degree for all
        profile = None
    plans = [event.plan for event in steps.plans.values()]
    times = {step: steps.summaries[step].step_s for step in steps.measured}
    errors = [
        abs(steps.plans[step].plan.step_s - step_s) / step_s
        for step, step_s in times.items()
        if step in steps.plans
    ]
    forecast_s = record.plan.forecast.step_s
    return PlanSummary(
        num_plans=len(plans),
        mixed_fraction=sum(len(plan.degrees) > 1 for plan in plans) / len(plans),
        waves_per_step=sum(len(plan.waves) for plan in plans) / len(plans),
        num_fallbacks=sum(plan.method == "fallback" for plan in plans),
        median_solve_s=median(plan.solve_s for plan in plans),
        forecast_step_s=forecast_s,
        forecast_ratio=forecast_s / median(times.values()) if times else None,
        step_error_fraction=median(errors) if errors else None,
        groups=_group_errors(steps, profile),
        num_refinements=steps.num_refinements,
    )


def _group_errors(steps: StepsTaken, profile: StepProfile | None) -> tuple[GroupErrors, ...]:
    """Predicted against measured times of the groups of all measured steps."""
    waves_s: dict[int, dict[int, tuple[float, ...]]] = {}
    for (step, rank), event in steps.rank_steps.items():
        waves_s.setdefault(step, {})[rank] = event.waves_s
    ratios: dict[tuple[int, AttentionKind], list[float]] = {}
    for step in sorted(steps.measured & steps.plans.keys()):
        in_force = steps.refined.get(step, profile)
        if in_force is None:
            continue
        planned = steps.plans[step]
        for sample in wave_samples(planned.plan, planned.lengths, waves_s.get(step, {})):
            ratio = predicted_s(sample, profile=in_force) / sample.seconds
            ratios.setdefault((sample.degree, sample.attention), []).append(ratio)
    return tuple(
        GroupErrors(
            degree=degree,
            attention=attention,
            num_groups=len(each),
            ratio=median(each),
            error_fraction=median(abs(ratio - 1) for ratio in each),
        )
        for (degree, attention), each in sorted(ratios.items())
    )


def _goodput_fraction(steps: StepsTaken, record: RunRecord) -> float | None:
    if not steps.summaries:
        return None
    times = [event.time_s for event in record.events]
    start_s = min(times) if record.submitted_s is None else record.submitted_s
    wall_s = max(times) - start_s
    productive_s = sum(summary.step_s for summary in steps.summaries.values())
    return productive_s / wall_s if wall_s > 0 else None


def _same_batch(one: StepsTaken, other: StepsTaken, step: int) -> bool:
    if step not in one.plans or step not in other.plans:
        return False
    return one.plans[step].lengths == other.plans[step].lengths


def _nearest_rank(values: Sequence[float], *, fraction: float) -> float:
    """The smallest value that at least `fraction` of `values` do not exceed."""
    ordered = sorted(values)
    return ordered[math.ceil(fraction * len(ordered)) - 1]


def _of(events: Iterable[AnyEvent], kind: type[E]) -> list[E]:
    return [event for event in events if isinstance(event, kind)]
