"""The Python API: read a job, plan it, plan one step, submit it.

    from trimtab.orchestrator import load_job, plan, submit

    job = load_job("configs/demo.yaml", ["training.num_steps=20"])
    print(plan(job).layout)
    handle = submit(job)

Every function is re-exported by `trimtab.orchestrator`. Planning needs no torch.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from trimtab.core.batch import BatchProfile
from trimtab.core.errors import InputError, shown
from trimtab.core.job import (
    DataSpec,
    JobHandle,
    JobSpec,
    Request,
    SchedulerName,
    ScriptSpec,
)
from trimtab.core.pipeline import Pipeline
from trimtab.core.plan import JobPlan, Layout, StepPlan
from trimtab.core.profile import StepProfile
from trimtab.core.rates import RateBook
from trimtab.core.units import counted
from trimtab.orchestrator.config import (
    load_cluster,
    load_job,
    load_model,
    load_profile,
)
from trimtab.orchestrator.file_text import read_text
from trimtab.orchestrator.rate_books import load_book as load_rates
from trimtab.orchestrator.rate_books import stack_of, stacks_of
from trimtab.orchestrator.step_planning import step_planner
from trimtab.planners import layouts
from trimtab.planners.pipelines import pipelined
from trimtab.planners.steps import sequences

__all__ = [
    "PlanningBatch",
    "best_uniform_step",
    "load_cluster",
    "load_job",
    "load_lengths",
    "load_model",
    "load_profile",
    "load_rates",
    "plan",
    "plan_run",
    "plan_step",
    "planning_batch",
    "prepare",
    "resume",
    "submit",
]

_MOST_DIGITS = 15
_MOST_SEQUENCES = 1_000_000
"""Of a planned batch, which is held as a list: planning then takes about a second."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanningBatch:
    """The batch a job is planned for, and where its lengths come from."""

    profile: BatchProfile
    note: str


def plan(
    job: JobSpec,
    *,
    lengths: Sequence[int] | None = None,
    fixed: Mapping[str, int | str] | None = None,
    rates: RateBook | None = None,
) -> JobPlan:
    """Choose the layout of a job and forecast its step; acts on nothing.

    Args:
        job: What `load_job` returned. Its `layout`, if any, is forecast as it stands.
        lengths: Document lengths in tokens to plan for; None: `data.max_seq_tokens` each.
        fixed: Fields to keep (`{"tp": 8}`), the rest being the planner's choice; the job's
            layout is then set aside.
        rates: What devices and software reach, of `load_rates`; None: what is shipped.

    Raises:
        InputError: The lengths are empty, or hold something else than positive numbers; or a
            degree cannot be kept.
        InfeasibleError: No layout fits; the message says what is short by how much.
    """
    return layouts.plan_job(
        job.model,
        job.cluster,
        num_ranks=job.num_ranks,
        batch=planning_batch(job, lengths).profile,
        precision=job.training.precision,
        profile=job.profile,
        token_cap=job.step_planning.token_cap,
        fixed=job.layout if fixed is None else fixed,
        stack=stack_of(job.cluster, rates=rates),
        stacks=stacks_of(job.cluster, rates=rates),
    )


def plan_run(job: JobSpec, layout: Layout, *, lengths: Sequence[int] | None = None) -> JobPlan:
    """Forecast what `submit` runs: `layout` as it stands, steps as its ranks plan them.

    Args:
        job: What `load_job` returned; its own `layout` is not looked at.
        layout: The layout that runs.
        lengths: Lengths of one batch in tokens; None: `data.max_seq_tokens` each.

    Raises:
        InputError: There is nothing to plan steps with: neither profile nor datasheet peak.
        InfeasibleError: The layout, or a sequence, does not fit; says what is short.
    """
    batch = planning_batch(job, lengths).profile
    planner = step_planner(job, layout)
    return layouts.plan_run(
        job.model,
        job.cluster,
        layout=layout,
        batch=batch,
        step=planner.plan(batch.lengths, step=1),
        profile=planner.profile,
        precision=job.training.precision,
    )


def plan_step(
    lengths: Sequence[int],
    *,
    profile: StepProfile,
    num_ranks: int,
    degrees: Sequence[int] | None = None,
    time_limit_s: float = 1.0,
    pipeline: Pipeline | None = None,
) -> StepPlan:
    """Plan one step: which ranks share the attention of which sequences, wave by wave.

    Args:
        lengths: Tokens of every sequence; used as given, none padded or dropped.
        profile: What a group costs and holds, e.g. of `load_profile`.
        num_ranks: How many ranks the groups are formed over; those of one stage.
        degrees: Group degrees to choose from; None: all of the profile.
        time_limit_s: When to stop improving the plan and its bound; 0 takes the first plan.
        pipeline: Stages that every wave passes, as a micro-batch; None: one stage.

    Raises:
        InputError: `lengths` is empty, or something in it is not a whole number >= 1; or the
            stages do not suit the profile.
        InfeasibleError: A sequence is longer than any group can hold.
    """
    if pipeline is not None and pipeline.pp > 1:
        return pipelined.pipelined_step(
            lengths,
            profile=profile,
            pipeline=pipeline,
            num_ranks=num_ranks,
            clock=time.perf_counter,
            degrees=degrees,
            time_limit_s=time_limit_s,
        )
    return sequences.plan_step(
        lengths,
        profile=profile,
        num_ranks=num_ranks,
        clock=time.perf_counter,
        degrees=degrees,
        time_limit_s=time_limit_s,
    )


def best_uniform_step(
    lengths: Sequence[int],
    *,
    profile: StepProfile,
    num_ranks: int,
    pipeline: Pipeline | None = None,
) -> StepPlan | None:
    """The shortest step with one degree for all groups; None where no degree suits."""
    if pipeline is not None and pipeline.pp > 1:
        return pipelined.best_uniform_pipelined_step(
            lengths,
            profile=profile,
            pipeline=pipeline,
            num_ranks=num_ranks,
            clock=time.perf_counter,
        )
    longest = max(lengths)
    plans = [
        sequences.uniform_step(
            lengths,
            profile=profile,
            num_ranks=num_ranks,
            degree=degree,
            clock=time.perf_counter,
        )
        for degree in profile.degrees
        if degree <= num_ranks and longest <= degree * profile.token_cap
    ]
    return min(plans, key=lambda step: step.step_s, default=None)


def prepare(job: JobSpec | ScriptSpec, *, scheduler: SchedulerName = "local") -> Request:
    """What `submit` would start: a dry run; writes and starts nothing, asks nobody.

    Raises:
        InputError: The worker cannot run such a job.
        InfeasibleError: No layout fits.
    """
    from trimtab.orchestrator import submission

    return submission.prepare_job(job, scheduler=scheduler).request


def submit(job: JobSpec | ScriptSpec, *, scheduler: SchedulerName = "local") -> JobHandle:
    """Submit a job, or a script, and return once it is up here or queued there.

    Raises:
        InputError: The worker cannot run such a job, or the cluster refuses it.
        InfeasibleError: No layout fits.
        JobFailedError: The controller did not come up.
    """
    from trimtab.orchestrator import submission

    return submission.submit_job(job, scheduler=scheduler).handle


def resume(handle: JobHandle | str, overrides: Sequence[str] = ()) -> JobHandle:
    """Continue a finished, failed or cancelled job from its last checkpoint.

    Args:
        handle: Its handle or id.
        overrides: `a.b=c` settings that may change in a run that goes on, such as
            `training.num_steps=200`.

    Raises:
        InputError: The job is still running or complete, or an override is not allowed.
        RunDirError: The job is missing, broken or of another version.
    """
    from trimtab.orchestrator import submission
    from trimtab.orchestrator.runs_folder import find_run

    return submission.resume_job(find_run(str(handle)), overrides).handle


def load_lengths(
    path: str | Path, *, start: int = 0, end: int | None = None
) -> tuple[int, ...]:
    """Read sequence lengths, one whole number a line.

    Args:
        path: The file.
        start: First line to read, 0-based.
        end: Line to stop before; None: read to the end of the file.

    Raises:
        InputError: The file is missing or empty, a line is not a whole number >= 1, or there
            are no lines from `start` on. The message counts lines from 1, as editors do.
    """
    path = Path(path)
    lines = read_text(path).rstrip().splitlines()
    if not lines:
        raise InputError(f"{path}: expected one length a line, got an empty file")
    chosen = lines[start:end]
    if not chosen or (end is not None and end > len(lines)):
        wanted = f"{start}:{'' if end is None else end}"
        raise InputError(f"{path}: it has {len(lines)} lines, got the range {wanted}")
    return tuple(
        _length(line, where=f"{path}, line {number}")
        for number, line in enumerate(chosen, start=start + 1)
    )


def planning_batch(job: JobSpec, lengths: Sequence[int] | None = None) -> PlanningBatch:
    """The batch a job is planned for: `training.global_batch_seqs` sequences.

    Documents longer than `data.max_seq_tokens` are split, truncated or dropped as the job says;
    too few documents are taken again from the first.

    Raises:
        InputError: `lengths` is empty, no document is left after dropping, or the batch has
            over 1,000,000 sequences.
    """
    num_sequences = job.training.global_batch_seqs
    if num_sequences > _MOST_SEQUENCES:
        raise InputError(
            f"training.global_batch_seqs: at most {_MOST_SEQUENCES:,} sequences can be "
            f"planned, got {num_sequences:,}"
        )
    longest = job.data.max_seq_tokens
    if lengths is None:
        return PlanningBatch(
            profile=BatchProfile(lengths=(longest,) * num_sequences),
            note=f"assumed: {counted(num_sequences, 'sequence')} of data.max_seq_tokens = "
            f"{longest} tokens each; give --lengths FILE to plan for real ones",
        )
    usable = as_sequences(lengths[:num_sequences], data=job.data)
    if not usable:
        raise InputError(
            f"lengths: expected at least one document of at most {longest} tokens "
            f"(data.long_documents is {job.data.long_documents}), got none"
        )
    again = -(-num_sequences // len(usable))
    first = counted(min(len(usable), num_sequences), "sequence")
    return PlanningBatch(
        profile=BatchProfile(lengths=(usable * again)[:num_sequences]),
        note=f"given: the first {first} of the lengths"
        + (", repeated" if again > 1 else "")
        + f"; documents over {longest} tokens: {job.data.long_documents}",
    )


def as_sequences(lengths: Sequence[int], *, data: DataSpec) -> tuple[int, ...]:
    """Documents as the job takes them: too long ones split, truncated or dropped."""
    longest = data.max_seq_tokens
    if data.long_documents == "drop":
        return tuple(length for length in lengths if length <= longest)
    if data.long_documents == "truncate":
        return tuple(min(length, longest) for length in lengths)
    pieces: list[int] = []
    for length in lengths:
        whole, rest = divmod(length, longest)
        pieces += [longest] * whole + ([rest] if rest else [])
    return tuple(pieces)


def _length(line: str, *, where: str) -> int:
    text = line.strip()
    if not text.isascii() or not text.isdigit() or len(text) > _MOST_DIGITS or int(text) < 1:
        most = f" of at most {_MOST_DIGITS} digits" if len(text) > _MOST_DIGITS else ""
        raise InputError(f"{where}: expected a whole number >= 1{most}, got {shown(text)}")
    return int(text)
