"""Forecasts of measured rows: what `trimtab validate` compares with what was measured."""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass

from trimtab.core.plan import Layout, Recompute, StageMemory
from trimtab.core.rates import MemoryRates, RateBook, StackRates
from trimtab.orchestrator.measured import MeasuredRow
from trimtab.planners.costs import known_peak, step_s
from trimtab.planners.counts import StepCounts, step_counts
from trimtab.planners.memory import stage_memories
from trimtab.planners.search import quantities

_BF16_GRADIENT_BYTES = 6
"""Of a parameter: DeepSpeed keeps bf16 gradients, and adds them up in 32 bits besides.

Source: DeepSpeed 0.18, runtime/bf16_optimizer.py, `fp32_groups_gradients`.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class RowForecast:
    """What is forecast of one row."""

    row: MeasuredRow
    stack: StackRates
    step_s: float
    low_s: float
    high_s: float
    flop_per_s: float
    """Model FLOPs of one GPU (`core.model.MFU_FORMULA`)."""
    memory_bytes: int
    """Of the fullest rank."""
    oom: bool
    outside: str | None


def row_counts(row: MeasuredRow) -> StepCounts:
    """What the row's step asks of a rank.

    Adapters (LoRA) leave the weights as they are: backward computes no weight gradients, and
    none are exchanged.

    Raises:
        InputError: The device has no peak at the row's precision.
    """
    tokens = row.num_sequences * row.seq_tokens / row.num_micro_batches
    tokens /= row.layout.group_ranks
    counts = step_counts(
        row.model,
        row.layout,
        row.used,
        precision=row.precision,
        peak_flop_per_s=known_peak(row.used, precision=row.precision),
        num_micro_batches=row.num_micro_batches,
        tokens=tokens,
        squares=tokens / row.seq_tokens * row.model.attended_squares(row.seq_tokens),
    )
    if row.task != "lora":
        return counts
    return dataclasses.replace(
        counts, passes=counts.passes - 1, gradients_s=0.0, optimizer_s=0.0
    )


def forecast_row(row: MeasuredRow, counts: StepCounts, book: RateBook) -> RowForecast:
    """The forecast of a row by the most particular rates that the book has for it."""
    stack = book.find(row.used.gpu.name, engine=row.engine, source=row.source)
    seconds = float(step_s(counts, stack.rates))
    low_s, high_s = stack.interval(seconds)
    memory = row_memory(row, stack.memory)
    fullest = memory if row.precision_stated else row_memory(row, _widest(stack.memory))
    model_flops = row.model.training_flops([row.seq_tokens]) * row.num_sequences
    return RowForecast(
        row=row,
        stack=stack,
        step_s=seconds,
        low_s=low_s,
        high_s=high_s,
        flop_per_s=model_flops / seconds / row.used.num_ranks,
        memory_bytes=memory.total_bytes,
        oom=fullest.verdict == "oom",
        outside=stack.outside(quantities(row.model, row.layout, longest=row.seq_tokens)),
    )


def _widest(rates: MemoryRates) -> MemoryRates:
    """Where a row leaves open which 16 bits it trains in, it may run out with either."""
    gradient_bytes = max(rates.gradient_bytes, _BF16_GRADIENT_BYTES)
    return dataclasses.replace(rates, gradient_bytes=gradient_bytes)


def row_memory(row: MeasuredRow, rates: MemoryRates) -> StageMemory:
    """Memory of the fullest stage; of what the row leaves open, the first that fits."""
    fullest = [
        max(_stages(row, layout, rates), key=lambda stage: stage.total_bytes)
        for layout in _possible_layouts(row)
    ]
    return next((stage for stage in fullest if stage.verdict != "oom"), fullest[-1])


def _possible_layouts(row: MeasuredRow) -> Iterator[Layout]:
    recomputes: tuple[Recompute, ...] = (row.layout.recompute,)
    if not row.recompute_stated:
        recomputes = ("none", "selective", "full")
    for zero in (row.layout.zero,) if row.zero_stated else (row.layout.zero, 1):
        for recompute in recomputes:
            yield dataclasses.replace(row.layout, recompute=recompute, zero=zero)


def _stages(row: MeasuredRow, layout: Layout, rates: MemoryRates) -> tuple[StageMemory, ...]:
    tokens = layout.micro_batch_seqs * row.seq_tokens / layout.cp
    stages = stage_memories(
        row.model,
        layout,
        precision=row.precision,
        tokens=tokens,
        squares=tokens * row.seq_tokens,
        num_micro_batches=max(1, int(row.num_micro_batches)),
        capacity_bytes=row.used.gpu.memory_bytes,
        rates=rates,
    )
    if row.task != "lora":
        return stages
    return tuple(
        dataclasses.replace(stage, gradients_bytes=0, optimizer_bytes=0) for stage in stages
    )
