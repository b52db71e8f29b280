"""What a step asks of the ranks of a layout, or why the batch does not admit it."""

import itertools
import math
from dataclasses import dataclass

from trimtab.core.errors import InfeasibleError
from trimtab.core.plan import Layout, StageMemory
from trimtab.core.units import counted, memory_text
from trimtab.planners.costs import StepWork, memory_token_cap
from trimtab.planners.exchanges import group_degrees
from trimtab.planners.memory import stage_memories, worst_stages
from trimtab.planners.shapes import Job
from trimtab.planners.steps.bounds import num_waves_at_least


@dataclass(frozen=True, slots=True, kw_only=True)
class Miss:
    """A layout that cannot run."""

    layout: Layout
    reason: str
    short_bytes: float
    """Memory it lacks; infinite where memory is not what rules it out."""
    stage: StageMemory | None = None


def step_work(job: Job, layout: Layout) -> StepWork | Miss:
    """What the batch of a job asks of each of the dp * cp ranks of a layout."""
    return _uniform_work(job, layout) if job.batch.is_uniform else _varied_work(job, layout)


def memory_miss(layout: Layout, worst: StageMemory) -> Miss:
    """Why a layout does not fit, by its fullest stage."""
    short = worst.total_bytes - worst.capacity_bytes
    reason = (
        f"stage {worst.stage} needs {memory_text(worst.total_bytes)} per GPU of "
        f"{memory_text(worst.capacity_bytes)}: short by {memory_text(short)} with "
        f"{layout.recompute} recompute"
    )
    return Miss(layout=layout, reason=reason, short_bytes=float(short), stage=worst)


def _uniform_work(job: Job, layout: Layout) -> StepWork | Miss:
    """Equal lengths: micro-batches of `micro_batch_seqs`, each over cp ranks."""
    batch = job.batch
    step_seqs = layout.dp * layout.micro_batch_seqs
    if batch.num_sequences % step_seqs:
        return Miss(
            layout=layout,
            reason=_divisibility_text(batch.num_sequences, layout),
            short_bytes=math.inf,
        )
    rank_tokens = layout.micro_batch_seqs * batch.longest / layout.cp
    if job.token_cap is not None and rank_tokens > job.token_cap:
        return Miss(
            layout=layout,
            reason=f"a micro-batch is {rank_tokens:.0f} tokens a rank, over the token_cap of "
            f"{job.token_cap}; raise it, or cp",
            short_bytes=math.inf,
        )
    return StepWork(
        num_micro_batches=batch.num_sequences // step_seqs,
        squares=batch.squares / layout.group_ranks,
        degree_tokens=((layout.cp, batch.num_tokens / layout.group_ranks),),
    )


def _varied_work(job: Job, layout: Layout) -> StepWork | Miss:
    """Varied lengths: waves, each sequence in a group of the smallest degree that holds it."""
    batch, ranks = job.batch, layout.group_ranks
    degrees = group_degrees(job.model, layout)
    try:
        memory_cap = memory_token_cap(job.model, layout, job.used, precision=job.precision)
    except InfeasibleError:
        empty = _states_only(job, layout)
        return memory_miss(layout, max(empty, key=lambda stage: stage.total_bytes))
    cap = memory_cap if job.token_cap is None else min(memory_cap, job.token_cap)
    if batch.longest > degrees[-1] * cap:
        return Miss(
            layout=layout,
            reason=f"the longest sequence, {batch.longest} tokens, fits in no group: the "
            f"largest degree, {degrees[-1]}, holds {degrees[-1]} x {cap} tokens",
            short_bytes=math.inf,
        )
    edges = [0, *(degree * cap for degree in degrees)]
    degree_tokens = tuple(
        (degree, batch.tokens_between(above, up_to) / ranks)
        for degree, (above, up_to) in zip(degrees, itertools.pairwise(edges), strict=True)
    )
    waves = num_waves_at_least(batch.lengths, wave_tokens=ranks * cap)
    if layout.pp > 1:
        waves = max(waves, min(batch.num_sequences // ranks, 4 * layout.pp))
    return StepWork(
        num_micro_batches=waves, squares=batch.squares / ranks, degree_tokens=degree_tokens
    )


def _states_only(job: Job, layout: Layout) -> tuple[StageMemory, ...]:
    return stage_memories(
        job.model, layout, precision=job.precision, tokens=0.0, squares=0.0,
        num_micro_batches=1, capacity_bytes=job.used.gpu.memory_bytes,
        stages=worst_stages(job.model, layout), rates=job.stack.memory,
    )  # fmt: skip


def _divisibility_text(num_sequences: int, layout: Layout) -> str:
    """Why the batch does not divide, with the nearest sizes that do.

    >>> _divisibility_text(100, Layout(dp=8))
    'dp 8 x micro_batch_seqs 1 does not divide 100 sequences; the nearest that fit are 96, 104'
    """
    step_seqs = layout.dp * layout.micro_batch_seqs
    below = num_sequences // step_seqs * step_seqs
    sizes = [size for size in (below, below + step_seqs) if size > 0]
    return (
        f"dp {layout.dp} x micro_batch_seqs {layout.micro_batch_seqs} does not divide "
        f"{counted(num_sequences, 'sequence')}; the nearest that fit are "
        f"{', '.join(map(str, sizes))}"
    )
