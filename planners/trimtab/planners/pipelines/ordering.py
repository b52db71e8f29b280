"""The order in which unequal micro-batches enter a pipeline, and the timeline they then have.

1F1B with vpp = 1 holds back forward passes that would not fit in memory
(`pipeline_kernels.one_forward_one_backward_s`); with vpp > 1 the schedule is Megatron's
interleaved one, followed operation by operation (`timeline.timeline`).
"""

import functools
from collections.abc import Sequence
from typing import Literal

from trimtab.core.pipeline import MicroBatchTimes
from trimtab.planners.compiled import floats, ints, zero_floats, zero_ints
from trimtab.planners.pipelines import pipeline_kernels as kernels
from trimtab.planners.pipelines.stages import StageCosts
from trimtab.planners.timeline import Operation, PipelineWork, timeline

_SEED = 23_758
_NUMBERS = 5
"""Of an operation, as `pipeline_kernels.interleaved_s` reads them."""


def flow_of(
    times: Sequence[MicroBatchTimes], *, limits: Sequence[float], vpp: int
) -> kernels.Flow:
    """What the kernels read of micro-batches; see `empty_flow`."""
    return empty_flow(len(times), limits=limits, vpp=vpp)._replace(
        forward=floats(seconds for each in times for seconds in each.forward_s),
        backward=floats(seconds for each in times for seconds in each.backward_s),
        send=floats(each.send_s for each in times),
        tokens=floats(each.tokens for each in times),
    )


def scratch_of(flow: kernels.Flow, num: int) -> kernels.Scratch:
    """What the kernels write while they follow `num` micro-batches."""
    pp = len(flow.limits)
    ends = max(pp * num, len(flow.operations) // _NUMBERS)
    return kernels.Scratch(
        free=zero_floats(pp),
        held=zero_floats(pp),
        done=zero_ints(pp),
        wanted=zero_ints(pp),
        forward_end=zero_floats(pp * num),
        backward_end=zero_floats(ends),
    )


def empty_flow(num: int, *, limits: Sequence[float], vpp: int) -> kernels.Flow:
    """A flow of `num` micro-batches whose times are still to be set.

    Args:
        num: Micro-batches.
        limits: Tokens that a rank of each stage holds, shape (pp,); with vpp = 1 alone.
        vpp: Chunks of a stage.
    """
    pp = len(limits)
    operations = _operations(pp, vpp, num) if vpp > 1 else ()
    return kernels.Flow(
        forward=zero_floats(num * pp),
        backward=zero_floats(num * pp),
        send=zero_floats(num),
        tokens=zero_floats(num),
        limits=floats(limits),
        vpp=vpp,
        operations=ints(operations),
    )


def plain_orders(wave_times_s: Sequence[float]) -> list[list[int]]:
    """As given, shortest first, longest first, and the long ones in the middle.

    Short ones fill and drain the pipeline.
    """
    num = len(wave_times_s)
    ascending = sorted(range(num), key=lambda m: (wave_times_s[m], m))
    hill = ascending[::2] + ascending[1::2][::-1]
    return [list(range(num)), hill, ascending, ascending[::-1]]


def first_order(times: Sequence[MicroBatchTimes], costs: StageCosts) -> tuple[list[int], float]:
    """The best of `plain_orders`, with the time of its step."""
    flow = flow_of(times, limits=costs.limits, vpp=costs.stages.vpp)
    scratch = scratch_of(flow, len(times))
    orders = plain_orders([sum(each.forward_s) for each in times])
    steps = [float(kernels.step_s(flow, ints(order), len(times), scratch)) for order in orders]
    best = min(range(len(orders)), key=steps.__getitem__)
    return orders[best], steps[best]


def better_order(
    times: Sequence[MicroBatchTimes], costs: StageCosts, *, order: Sequence[int], trials: int
) -> tuple[list[int], float]:
    """`order` after `trials` moves and swaps, none of which made the step longer."""
    num = len(times)
    flow = flow_of(times, limits=costs.limits, vpp=costs.stages.vpp)
    current = ints(order)
    step_s = kernels.improve_order(
        flow, current, num, trials, ints([_SEED]), zero_ints(num), scratch_of(flow, num)
    )
    return [int(m) for m in current], float(step_s)


def operations_of(
    times: Sequence[MicroBatchTimes], *, limits: Sequence[float], vpp: int
) -> list[Operation]:
    """Every forward and backward pass, the micro-batches entering as given; by start.

    Args: as `empty_flow`.
    """
    num, pp = len(times), len(limits)
    flow = flow_of(times, limits=limits, vpp=vpp)
    scratch = scratch_of(flow, num)
    kernels.step_s(flow, ints(range(num)), num, scratch)
    found: list[Operation] = []
    if vpp > 1:
        for at, (kind, rank, micro, stage) in enumerate(unit_timeline(pp, vpp, num)):
            each = times[micro]
            seconds = each.forward_s if kind == "F" else each.backward_s
            end_s = float(scratch.backward_end[at])
            start_s = max(0.0, end_s - seconds[rank] / vpp)
            found.append(Operation(rank, kind, micro, stage, start_s, end_s))
    else:
        for stage in range(pp):
            for micro, each in enumerate(times):
                end_s = float(scratch.forward_end[stage * num + micro])
                start_s = max(0.0, end_s - each.forward_s[stage])
                found.append(Operation(stage, "F", micro, stage, start_s, end_s))
                end_s = float(scratch.backward_end[stage * num + micro])
                start_s = end_s - each.backward_s[stage]
                found.append(Operation(stage, "B", micro, stage, start_s, end_s))
    return sorted(found, key=lambda operation: (operation.start_s, operation.rank))


def peak_tokens(
    operations: Sequence[Operation], tokens: Sequence[float], *, pp: int, vpp: int
) -> tuple[float, ...]:
    """Most tokens a rank of each stage holds between forward and backward, by stage."""
    held, peaks = [0.0] * pp, [0.0] * pp
    for operation in operations:
        share = tokens[operation.micro_batch] / vpp
        held[operation.rank] += share if operation.kind == "F" else -share
        peaks[operation.rank] = max(peaks[operation.rank], held[operation.rank])
    return tuple(peaks)


@functools.lru_cache(maxsize=64)
def unit_timeline(
    pp: int, vpp: int, num: int
) -> tuple[tuple[Literal["F", "B"], int, int, int], ...]:
    """Kind, rank, micro-batch and stage of every operation of 1F1B, no input after its use."""
    work = PipelineWork(forward_s=(1.0,) * pp, backward_s=(1.0,) * pp, weight_s=(1.0,) * pp)
    return tuple(
        ("F" if step.kind == "F" else "B", step.rank, step.micro_batch, step.stage)
        for step in timeline("1f1b", work, num_micro_batches=num, vpp=vpp).operations
    )


@functools.lru_cache(maxsize=64)
def _operations(pp: int, vpp: int, num: int) -> tuple[int, ...]:
    numbers: list[int] = []
    places: dict[tuple[str, int, int], int] = {}
    before = [-1] * pp
    last = pp * vpp - 1
    for at, (kind, rank, micro, stage) in enumerate(unit_timeline(pp, vpp, num)):
        if kind == "F":
            source = places.get(("F", micro, stage - 1), -1)
        elif stage == last:
            source = -2 - places["F", micro, stage]
        else:
            source = places["B", micro, stage + 1]
        numbers += [micro, rank, int(kind == "B"), before[rank], source]
        places[kind, micro, stage] = before[rank] = at
    return tuple(numbers)
