"""The layout of a job: the fastest of those that fit, the runners-up and the rejected."""

import dataclasses
from collections.abc import Mapping, Sequence

from trimtab.core import checks
from trimtab.core.batch import BatchProfile
from trimtab.core.cluster import ClusterSpec, Precision
from trimtab.core.errors import InputError, unknown_name_message
from trimtab.core.model import ModelSpec
from trimtab.core.plan import ForecastLayout, JobPlan
from trimtab.core.profile import StepProfile
from trimtab.core.units import duration_text
from trimtab.planners.placement import machine, placement
from trimtab.planners.profiled import profiled_layout
from trimtab.planners.search import Found, costed, search_layouts
from trimtab.planners.shapes import BatchSums, Job

PINNABLE = ("tp", "pp", "dp", "cp", "ep", "vpp", "micro_batch_seqs", "zero")
"""Fields of a layout that `fixed` may pin."""

_NUM_ALTERNATIVES = 5
_NUM_REJECTED = 50


def plan_job(
    model: ModelSpec,
    cluster: ClusterSpec,
    *,
    num_ranks: int,
    batch: BatchProfile,
    precision: Precision,
    profile: StepProfile | None = None,
    token_cap: int | None = None,
    fixed: Mapping[str, int] | None = None,
) -> JobPlan:
    """Choose the layout with the shortest forecast step among those whose memory fits.

    A batch of equal lengths is split into equal micro-batches: dp times `micro_batch_seqs` must
    divide it. A batch of varied lengths is packed into waves, so that any dp goes; without a
    profile its forecast is the time of an evenly packed step, with one it is the step plan's.

    Args:
        model: The model.
        cluster: The machine; its first `num_ranks` GPUs are used.
        num_ranks: GPUs (or CPU processes) to use.
        batch: Lengths of one global batch.
        precision: Of the matrix products.
        profile: Measured step coefficients of ranks with tp 1 and pp 1; None: analytic ones.
        token_cap: Most tokens a rank holds in a wave; None: the profile's, or from memory.
        fixed: Fields of the layout to keep, by name (see `PINNABLE`).

    Raises:
        InputError: A pinned degree, `num_ranks` or the device does not admit any layout.
        InfeasibleError: No layout fits in memory; says what is short, and by how much.
    """
    pinned = _checked_pins(fixed or {})
    checks.whole_number("num_ranks", num_ranks)
    used = machine(cluster, num_ranks, precision=precision)
    if profile is None:
        job = Job(
            model=model,
            used=used,
            batch=BatchSums(batch),
            model_flops=model.training_flops(batch.lengths),
            precision=precision,
            token_cap=token_cap,
            pinned=pinned,
        )
        found = search_layouts(job)
        ranked = [_with_all_stages(job, layout) for layout in _ranked(found)]
    else:
        if token_cap is not None:
            profile = dataclasses.replace(profile, token_cap=token_cap)
        best = profiled_layout(
            model, used, batch=batch, precision=precision, profile=profile, pinned=pinned
        )
        found, ranked = Found(fitting=(best,), rejected=()), [best]
    return JobPlan(
        layout=ranked[0].layout,
        placement=placement(cluster, ranked[0].layout, num_layers=model.num_layers),
        forecast=ranked[0].forecast,
        alternatives=tuple(ranked[1:]),
        rejected=found.rejected[:_NUM_REJECTED],
        reason=_reason(ranked, num_rejected=len(found.rejected)),
    )


def _ranked(found: Found) -> list[ForecastLayout]:
    """The best layout and its alternatives, which differ in more than how they are run."""
    best: dict[tuple[int, ...], ForecastLayout] = {}
    for candidate in sorted(found.fitting, key=_preference):
        layout = candidate.layout
        degrees = (layout.tp, layout.pp, layout.dp, layout.cp, layout.ep)
        best.setdefault(degrees, candidate)
    return list(best.values())[: 1 + _NUM_ALTERNATIVES]


def _with_all_stages(job: Job, candidate: ForecastLayout) -> ForecastLayout:
    """The same forecast with the memory of every stage."""
    full = costed(job, candidate.layout, all_stages=True)
    assert isinstance(full, ForecastLayout)
    return full


def _checked_pins(fixed: Mapping[str, int]) -> dict[str, int]:
    for name, value in fixed.items():
        if name not in PINNABLE:
            raise InputError(f"layout: {unknown_name_message('degree', name, PINNABLE)}")
        checks.whole_number(f"layout.{name}", value, at_least=0 if name == "zero" else 1)
    return dict(fixed)


def _preference(candidate: ForecastLayout) -> tuple[bool, float, str]:
    """Layouts that fit well before tight ones, then the faster one."""
    forecast = candidate.forecast
    return forecast.verdict != "fits", forecast.step_s, str(candidate.layout)


def _reason(ranked: Sequence[ForecastLayout], *, num_rejected: int) -> str:
    best = ranked[0].forecast
    text = f"shortest forecast step, {duration_text(best.step_s)}"
    if len(ranked) > 1:
        ratio = ranked[1].forecast.step_s / best.step_s - 1
        text += f"; the next, {ranked[1].layout}, takes {ratio:.1%} more"
    if best.verdict == "tight":
        text += "; memory is tight"
    return text + (f"; {num_rejected} rejected" if num_rejected else "")
