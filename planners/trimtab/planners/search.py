"""What each layout of a job costs, and why the others cannot run."""

import dataclasses
import itertools
import math
from dataclasses import dataclass

from trimtab.core.errors import InfeasibleError, InputError
from trimtab.core.model import ModelSpec
from trimtab.core.plan import (
    Forecast,
    ForecastLayout,
    Layout,
    RejectedLayout,
    TimePart,
)
from trimtab.core.units import memory_text
from trimtab.planners.costs import (
    StepWork,
    group_degrees,
    pipeline_work,
    price,
    work_counts,
)
from trimtab.planners.memory import stage_memories, worst_stages
from trimtab.planners.placement import layers_of
from trimtab.planners.shapes import (
    RECOMPUTES_TRIED,
    Job,
    chunk_counts,
    interleaves,
    micro_batches,
    shapes,
    stage_splits,
)
from trimtab.planners.timeline import check_schedule, timeline
from trimtab.planners.workloads import Miss, memory_miss, step_work

_SHARDINGS = (1, 2, 3)
"""ZeRO stages tried. ZeRO-0 moves as much as ZeRO-1 and holds more."""
_SIMULATED_PER_STAGE = 3
_MOST_RANKS = 2**20
"""How far to look for the number of GPUs that would be enough."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """The layouts that fit, with the memory of their worst stages, and those that do not."""

    fitting: tuple[ForecastLayout, ...]
    rejected: tuple[RejectedLayout, ...]
    """One for each choice of degrees, the nearest miss first."""


def search_layouts(job: Job) -> Found:
    """Try every layout; recompute and micro-batch only as far as they can still help.

    Raises:
        InputError: The pins, the ranks or the batch admit no layout.
        InfeasibleError: None fits in memory.
    """
    fitting: list[ForecastLayout] = []
    misses: list[Miss] = []
    for shape in shapes(job):
        found, miss = _best_of_shape(job, shape)
        fitting += found
        if not found and miss is not None:
            misses.append(miss)
    misses.sort(key=lambda miss: (miss.short_bytes, str(miss.layout)))
    if not fitting:
        raise _no_layout(job, misses)
    rejected = {
        str(miss.layout): RejectedLayout(layout=miss.layout, reason=miss.reason)
        for miss in reversed(misses)
    }
    return Found(fitting=tuple(fitting), rejected=tuple(reversed(rejected.values())))


def costed_or_raise(job: Job, layout: Layout) -> ForecastLayout:
    """The forecast of exactly `layout`, with the memory of every stage.

    Raises:
        InputError: The batch does not admit it.
        InfeasibleError: It does not fit in memory.
    """
    candidate = costed(job, layout, all_stages=True)
    if isinstance(candidate, Miss):
        raise _no_layout(job, [candidate])
    return candidate


def costed(job: Job, layout: Layout, *, all_stages: bool = False) -> ForecastLayout | Miss:
    """The forecast of a layout, or why it cannot run.

    Args:
        job: What the layout is for.
        layout: The layout.
        all_stages: Whether to report the memory of every stage, and to follow the pipeline
            operation by operation; else its bubble is the closed form's.
    """
    work = step_work(job, layout)
    if isinstance(work, Miss):
        return work
    try:
        check_schedule(
            layout.schedule,
            pp=layout.pp,
            vpp=layout.vpp,
            num_micro_batches=work.num_micro_batches,
        )
    except InputError as error:
        reason = str(error).removeprefix("layout.")
        return Miss(layout=layout, reason=reason, short_bytes=math.inf)
    memory = stage_memories(
        job.model,
        layout,
        precision=job.precision,
        tokens=work.tokens / work.num_micro_batches,
        squares=work.squares / work.num_micro_batches if job.batch.is_uniform else 0.0,
        num_micro_batches=work.num_micro_batches,
        capacity_bytes=job.used.gpu.memory_bytes,
        stages=None if all_stages else worst_stages(job.model, layout),
        rates=job.stack.memory,
    )
    worst = max(memory, key=lambda stage: stage.total_bytes)
    if worst.verdict == "oom":
        return memory_miss(layout, worst)
    parts = _parts(job, layout, work=work)
    if all_stages and layout.pp > 1:
        parts = _with_exact_bubble(job, layout, work=work, parts=parts)
    step_s = sum(part.seconds for part in parts)
    bubble_s = sum(part.seconds for part in parts if part.name == "pipeline bubble")
    low_s, high_s = job.stack.interval(step_s)
    forecast = Forecast(
        step_s=step_s,
        low_s=low_s,
        high_s=high_s,
        parts=parts,
        num_tokens=job.batch.num_tokens,
        model_flops=job.model_flops,
        recomputed_flops=_recomputed_flops(job, layout),
        memory=memory,
        precision=job.precision,
        peak_flop_per_s=job.used.gpu.peak_flop_per_s(job.precision),
        num_ranks=job.used.num_ranks,
        bubble_fraction=bubble_s / step_s,
        evidence=job.stack.name,
        outside=job.stack.outside(quantities(job.model, layout, longest=job.batch.longest)),
    )
    return ForecastLayout(layout=layout, forecast=forecast)


def _recomputed_flops(job: Job, layout: Layout) -> float:
    """What a second forward pass through the layers adds."""
    if layout.recompute != "full":
        return 0.0
    output = 6 * job.model.vocab * job.model.hidden * job.batch.num_tokens
    return (job.model_flops - output) / 3


def quantities(model: ModelSpec, layout: Layout, *, longest: int) -> dict[str, float]:
    """What a job is compared by with those that its constants were fitted to."""
    return {
        "parameters": float(model.num_parameters),
        "ranks": float(layout.num_ranks),
        "sequence tokens": float(longest),
        "tp": float(layout.tp),
        "pp": float(layout.pp),
        "cp": float(layout.cp),
        "ep": float(layout.ep),
    }


def _parts(job: Job, layout: Layout, *, work: StepWork) -> tuple[TimePart, ...]:
    """The step's parts, with what a single long sequence takes beyond an even share."""
    parts = _priced(job, layout, work=work)
    if job.batch.is_uniform:
        return parts
    degree = max(group_degrees(job.model, layout))
    longest = StepWork(
        num_micro_batches=1,
        squares=job.batch.longest_squares / degree,
        degree_tokens=((degree, job.batch.longest / degree),),
    )
    alone_s = sum(part.seconds for part in _priced(job, layout, work=longest))
    waiting_s = max(0.0, alone_s - sum(part.seconds for part in parts))
    return (*parts, TimePart(name="waiting for the longest sequence", seconds=waiting_s))


def _with_exact_bubble(
    job: Job, layout: Layout, *, work: StepWork, parts: tuple[TimePart, ...]
) -> tuple[TimePart, ...]:
    """The bubble by the pipeline's timeline; a few micro-batches a stage show all of it."""
    counts = work_counts(job.model, layout, job.used, precision=job.precision, work=work)
    pipeline = pipeline_work(counts, job.stack.rates, layers_of(job.model, layout))
    simulated = min(work.num_micro_batches, _SIMULATED_PER_STAGE * layout.pp)
    busy_s = max(pipeline.stage_s)
    found = timeline(layout.schedule, pipeline, num_micro_batches=simulated, vpp=layout.vpp)
    bubble_s = max(0.0, found.step_s - simulated * busy_s)
    return tuple(
        dataclasses.replace(part, seconds=bubble_s) if part.name == "pipeline bubble" else part
        for part in parts
    )


def _priced(job: Job, layout: Layout, *, work: StepWork) -> tuple[TimePart, ...]:
    counts = work_counts(job.model, layout, job.used, precision=job.precision, work=work)
    parts = price(counts, job.stack.rates)
    return tuple(TimePart(name=name, seconds=float(part)) for name, part in parts.items())


def _best_of_shape(job: Job, shape: Layout) -> tuple[list[ForecastLayout], Miss | None]:
    """The layouts of these degrees that fit, over all that is not a degree.

    Of one sharding, what recomputes more is slower: it is tried only where less does not fit.
    Sharding more is slower as well, but can be faster than recomputing.
    """
    found: list[ForecastLayout] = []
    nearest: Miss | None = None
    for layers in stage_splits(job, shape):
        for vpp, micro_batch, zero in itertools.product(
            chunk_counts(job, shape), micro_batches(job), _shardings(job, shape)
        ):
            if layers and vpp > 1:
                continue
            for recompute in job.recomputes:
                layout = dataclasses.replace(
                    shape, vpp=vpp, micro_batch_seqs=micro_batch, zero=zero,
                    recompute=recompute, stage_layers=layers,
                )  # fmt: skip
                if not interleaves(job, layout):
                    break
                candidate = costed(job, layout)
                if isinstance(candidate, ForecastLayout):
                    found.append(candidate)
                    break
                if nearest is None or candidate.short_bytes < nearest.short_bytes:
                    nearest = candidate
    return found, nearest


def _shardings(job: Job, shape: Layout) -> tuple[int, ...]:
    """ZeRO-2 and 3 exchange for every micro-batch, and no engine runs them in a pipeline.

    Source: DeepSpeed 0.18, runtime/pipe/engine.py, which refuses them.
    """
    if "zero" in job.pinned or shape.group_ranks == 1 or shape.pp > 1:
        return (shape.zero,)
    return _SHARDINGS


def _no_layout(job: Job, misses: list[Miss]) -> InputError | InfeasibleError:
    """The error that says best why nothing can run: the nearest miss, and what would do."""
    if not misses:
        pins = ", ".join(f"{name} {value}" for name, value in job.pinned.items())
        return InputError(
            f"layout: no layout of num_ranks = {job.used.num_ranks} has {pins or 'any degrees'}"
        )
    miss = misses[0]
    if miss.stage is None:
        return InputError(f"layout: {miss.reason} (at {miss.layout})")
    stage, gpu = miss.stage, job.used.gpu
    states = stage.weights_bytes + stage.gradients_bytes + stage.optimizer_bytes
    advice = _memory_advice(job, miss.layout)
    return InfeasibleError(
        f"memory: {job.model.name} needs {memory_text(stage.total_bytes)} per GPU at "
        f"{miss.layout} with {miss.layout.recompute} recompute "
        f"({memory_text(states)} for weights, gradients and optimizer), the {gpu.name} has "
        f"{memory_text(stage.capacity_bytes)}: short by {memory_text(miss.short_bytes)}; "
        f"{advice}"
    )


def _memory_advice(job: Job, layout: Layout) -> str:
    for recompute in RECOMPUTES_TRIED:
        saving = dataclasses.replace(layout, recompute=recompute)
        if isinstance(costed(job, saving), ForecastLayout):
            return f"it fits with layout.recompute {recompute}"
    enough = _enough_ranks(job)
    if enough == job.used.num_ranks:
        return "another layout fits on these GPUs: leave it to the planner"
    spared = dataclasses.replace(layout, recompute="full", offload="optimizer")
    if isinstance(costed(job, spared), ForecastLayout):
        return "it fits with layout.recompute full and layout.offload optimizer"
    return "use larger GPUs" if enough is None else f"use at least {enough} GPUs"


def _enough_ranks(job: Job) -> int | None:
    """The fewest GPUs, those given times a power of two, on which some layout fits."""
    num_ranks = job.used.num_ranks
    free = {
        name: job.pinned[name] for name in ("micro_batch_seqs", "zero") if name in job.pinned
    }
    while num_ranks <= _MOST_RANKS:
        used = dataclasses.replace(job.used, num_ranks=num_ranks)
        larger = dataclasses.replace(job, used=used, pinned=free)
        for shape in shapes(larger):
            layout = dataclasses.replace(shape, recompute="full")
            if isinstance(costed(larger, layout), ForecastLayout):
                return num_ranks
        num_ranks *= 2
    return None
