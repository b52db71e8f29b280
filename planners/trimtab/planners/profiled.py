"""The layout and forecast of a job whose step coefficients were measured."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from trimtab.core.batch import BatchProfile
from trimtab.core.cluster import Precision
from trimtab.core.errors import InfeasibleError, InputError
from trimtab.core.model import ModelSpec
from trimtab.core.plan import (
    Forecast,
    ForecastLayout,
    Layout,
    StageMemory,
    StepPlan,
    TimePart,
)
from trimtab.core.profile import StepProfile
from trimtab.core.units import memory_text
from trimtab.planners.memory import stage_memories
from trimtab.planners.placement import Machine
from trimtab.planners.shapes import Job
from trimtab.planners.steps.rank_blocks import placed_seconds
from trimtab.planners.steps.sequences import plan_step


def data_layouts(job: Job) -> list[Layout]:
    """All ranks as dp, or as the pins say, from the least recompute and ZeRO stage on.

    Raises:
        InputError: The pinned dp and cp do not make up the ranks.
    """
    dp, cp = _data_degrees(job.used.num_ranks, pinned=job.pinned)
    fields: dict[str, Any] = {**job.pinned, **job.settings, "dp": dp, "cp": cp}
    first = Layout(**fields)
    stages = [first.zero] if "zero" in job.pinned else [1, 2, 3]
    return [
        dataclasses.replace(first, recompute=recompute, zero=zero)
        for recompute in job.recomputes
        for zero in stages
    ]


def profiled_layout(
    job: Job, layouts: Sequence[Layout], *, batch: BatchProfile, profile: StepProfile
) -> ForecastLayout:
    """All ranks in sequence groups, as the profile was measured; the step plan is the forecast.

    Ulysses degrees are those of the profile that divide the model's heads; a ring takes any.

    Args:
        job: What the layout is for.
        layouts: The first of them that fits is taken; they differ in recompute and ZeRO alone.
        batch: Lengths of one global batch.
        profile: Measured coefficients.

    Raises:
        InputError: A degree is not what the profile describes.
        InfeasibleError: A sequence is too long, or the states or the tokens do not fit.
    """
    for name in ("tp", "pp", "ep", "vpp"):
        degree = getattr(layouts[0], name)
        if degree != 1:
            raise InputError(
                f"layout.{name}: the profile {profile.name!r} describes ranks of {name} 1, got "
                f"{degree}; leave the profile out to have it computed"
            )
    if layouts[0].offload != "none":
        raise InputError(
            f"layout.offload: the profile {profile.name!r} was measured without; leave the "
            "profile out to have it computed"
        )
    profile = profile.for_heads(job.model.num_heads)
    step = plan_step(
        batch.lengths, profile=profile, num_ranks=job.used.num_ranks, clock=lambda: 0.0
    )
    return grouped_layout(
        job.model,
        job.used,
        layouts=layouts,
        batch=batch,
        step=step,
        profile=profile,
        precision=job.precision,
    )


def grouped_layout(
    model: ModelSpec,
    used: Machine,
    *,
    layouts: Sequence[Layout],
    batch: BatchProfile,
    step: StepPlan,
    profile: StepProfile,
    precision: Precision,
) -> ForecastLayout:
    """The first of `layouts` that fits, its ranks running `batch` as `step` says.

    The memory is that of `profile.token_cap` tokens a rank with fused attention.

    Raises:
        InfeasibleError: The states or the tokens do not fit.
    """
    layout, memory = _fitting(
        model, used, layouts=layouts, precision=precision, token_cap=profile.token_cap
    )
    parts = profile_parts(step, batch.lengths, profile=profile, num_ranks=used.num_ranks)
    forecast = Forecast(
        step_s=sum(part.seconds for part in parts),
        parts=parts,
        num_tokens=batch.num_tokens,
        model_flops=model.training_flops(batch.lengths),
        memory=memory,
        precision=precision,
        peak_flop_per_s=used.gpu.peak_flop_per_s(precision),
        num_ranks=used.num_ranks,
        bubble_fraction=0.0,
        evidence=f"profile {profile.name!r} ({profile.evidence})",
    )
    return ForecastLayout(layout=layout, forecast=forecast)


def profile_parts(
    plan: StepPlan, lengths: tuple[int, ...], *, profile: StepProfile, num_ranks: int
) -> tuple[TimePart, ...]:
    """The step of `plan` as the mean rank spends it; the rest is waiting for the slowest."""
    linear_s = quadratic_s = exchange_s = 0.0
    for wave in plan.waves:
        times_s = placed_seconds(wave, lengths, profile=profile)
        for group, group_s in zip(wave.groups, times_s, strict=True):
            ring = profile.ring if group.attention == "ring" else None
            square_s = profile.quadratic_s if ring is None else ring.quadratic_s
            tokens_s = profile.linear_s * sum(lengths[i] for i in group.sequences)
            squares_s = square_s * sum(lengths[i] ** 2 for i in group.sequences)
            work_s = (group_s - profile.fixed_s) * group.degree
            linear_s += tokens_s
            quadratic_s += squares_s
            exchange_s += max(0.0, work_s - tokens_s - squares_s)
    parts = {
        "compute": linear_s / num_ranks,
        "attention": quadratic_s / num_ranks,
        "cp communication": exchange_s / num_ranks,
        "fixed per wave": len(plan.waves) * profile.fixed_s,
        "gradient sync and optimizer": profile.step_fixed_s,
    }
    parts["waiting"] = max(0.0, plan.step_s - sum(parts.values()))
    return tuple(TimePart(name=name, seconds=seconds) for name, seconds in parts.items())


def _data_degrees(num_ranks: int, *, pinned: Mapping[str, int]) -> tuple[int, int]:
    """Degrees dp and cp; without a pin all ranks are dp."""
    cp = pinned.get("cp", num_ranks // pinned["dp"] if "dp" in pinned else 1)
    dp = pinned.get("dp", num_ranks // cp)
    if dp * cp != num_ranks:
        raise InputError(f"layout: dp {dp} x cp {cp} is not num_ranks = {num_ranks}")
    return dp, cp


def _fitting(
    model: ModelSpec,
    used: Machine,
    *,
    layouts: Sequence[Layout],
    precision: Precision,
    token_cap: int,
) -> tuple[Layout, tuple[StageMemory, ...]]:
    for layout in layouts:
        memory = stage_memories(
            model, layout, precision=precision, tokens=token_cap, squares=0.0,
            num_micro_batches=1, capacity_bytes=used.gpu.memory_bytes,
        )  # fmt: skip
        if memory[0].verdict != "oom":
            return layout, memory
    short = memory_text(memory[0].total_bytes - used.gpu.memory_bytes)
    recompute = "" if layout.recompute == "full" else "layout.recompute full, "
    raise InfeasibleError(
        f"memory: {model.name} with a token_cap of {token_cap} needs "
        f"{memory_text(memory[0].total_bytes)} per GPU at {layout} with zero {layout.zero} and "
        f"{layout.recompute} recompute, the {used.gpu.name} has "
        f"{memory_text(used.gpu.memory_bytes)}: short by {short}; use {recompute}more ranks, a "
        "smaller token_cap, or tp or pp without a profile"
    )
