"""The layout of a job: the fastest of those that fit, the runners-up and the rejected."""

import dataclasses
from collections.abc import Mapping, Sequence

from trimtab.core import checks
from trimtab.core.batch import BatchProfile
from trimtab.core.cluster import ClusterSpec, Precision
from trimtab.core.errors import InputError, unknown_name_message
from trimtab.core.model import ModelSpec
from trimtab.core.plan import (
    OFFLOADS,
    PIPELINE_SCHEDULES,
    RECOMPUTES,
    ForecastLayout,
    JobPlan,
    Layout,
    RejectedLayout,
    StepPlan,
)
from trimtab.core.profile import StepProfile
from trimtab.core.rates import DEFAULT_STACK, StackRates
from trimtab.core.units import duration_text
from trimtab.planners.costs import known_peak
from trimtab.planners.placement import machine, placement
from trimtab.planners.profiled import data_layouts, grouped_layout, profiled_layout
from trimtab.planners.search import Found, costed, costed_or_raise, search_layouts
from trimtab.planners.shapes import BatchSums, Job, check_layout

PINNABLE = ("tp", "pp", "dp", "cp", "ep", "vpp", "micro_batch_seqs", "zero")
"""Degrees of a layout that `fixed` may pin."""

SETTINGS = {"recompute": RECOMPUTES, "schedule": PIPELINE_SCHEDULES, "offload": OFFLOADS}
"""Settings that it may pin, and their values."""

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
    fixed: Layout | Mapping[str, int | str] | None = None,
    stack: StackRates = DEFAULT_STACK,
    stacks: Mapping[str, StackRates] | None = None,
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
        fixed: A whole layout, forecast as it stands; or fields of it to keep, by name (see
            `PINNABLE` and `SETTINGS`), the rest being chosen.
        stack: What device and software reach of the datasheet; without a profile.
        stacks: The same of every device by its name: where the cluster has several islands or
            kinds of GPUs, layers and ranks are then placed on them, and up to `num_ranks` used.

    Raises:
        InputError: A pinned degree, `num_ranks` or the device does not admit any layout.
        InfeasibleError: No layout fits in memory; says what is short, and by how much.
    """
    checks.whole_number("num_ranks", num_ranks)
    if stacks and is_mixed(cluster) and profile is None:
        return _plan_islands(
            model, cluster, num_ranks=num_ranks, batch=batch, precision=precision,
            token_cap=token_cap, fixed=fixed, stacks=stacks,
        )  # fmt: skip
    pins = {} if fixed is None or isinstance(fixed, Layout) else fixed
    job = Job(
        model=model,
        used=machine(cluster, num_ranks, precision=precision),
        batch=BatchSums(batch, model),
        model_flops=model.training_flops(batch.lengths),
        precision=precision,
        token_cap=token_cap,
        pinned=_pinned_degrees(pins),
        settings=_pinned_settings(pins),
        stack=stack,
    )
    exact = fixed if isinstance(fixed, Layout) else None
    if exact is not None:
        check_layout(job, exact)
    found = (
        _found(job, exact)
        if profile is None
        else _profiled(job, exact, batch=batch, profile=profile)
    )
    best, *others = _ranked(found)
    return _job_plan(
        cluster,
        model,
        best=best,
        alternatives=others,
        rejected=found.rejected,
        reason=_given(best) if exact is not None else _reason(best, others, found=found),
    )


def is_mixed(cluster: ClusterSpec) -> bool:
    """Whether a layout is placed by islands: there are several, or nodes of several kinds."""
    kinds = {dataclasses.replace(node, name="any", count=1) for node in cluster.nodes}
    return len(kinds) > 1


def _plan_islands(
    model: ModelSpec,
    cluster: ClusterSpec,
    *,
    num_ranks: int,
    batch: BatchProfile,
    precision: Precision,
    token_cap: int | None,
    fixed: Layout | Mapping[str, int | str] | None,
    stacks: Mapping[str, StackRates],
) -> JobPlan:
    from trimtab.planners.islands.island_forecast import job_plan
    from trimtab.planners.islands.island_layouts import island_job
    from trimtab.planners.islands.island_plan import place_layout, plan_islands

    exact = fixed if isinstance(fixed, Layout) else None
    pins = {} if fixed is None or isinstance(fixed, Layout) else fixed
    islands = island_job(
        model, cluster, num_ranks=num_ranks, batch=batch, precision=precision,
        stacks=stacks, pinned=_pinned_degrees(pins), settings=_pinned_settings(pins),
        token_cap=token_cap,
    )  # fmt: skip
    found = plan_islands(islands) if exact is None else place_layout(islands, exact)
    return job_plan(islands, found)


def plan_run(
    model: ModelSpec,
    cluster: ClusterSpec,
    *,
    layout: Layout,
    batch: BatchProfile,
    step: StepPlan,
    profile: StepProfile,
    precision: Precision,
) -> JobPlan:
    """The forecast of a run in `layout` whose ranks plan `batch` as `step`.

    Args:
        model: The model.
        cluster: The machine.
        layout: Kept as it stands.
        batch: Lengths of one global batch.
        step: The plan of that batch.
        profile: What the plan was made with.
        precision: Of the matrix products.

    Raises:
        InfeasibleError: The layout does not fit in memory; says what is short, by how much.
    """
    used = machine(cluster, layout.num_ranks, precision=precision)
    best = grouped_layout(
        model,
        used,
        layouts=[layout],
        batch=batch,
        step=step,
        profile=profile,
        precision=precision,
    )
    return _job_plan(cluster, model, best=best, reason=_given(best))


def _found(job: Job, exact: Layout | None) -> Found:
    """The layouts that datasheets say fit, with the memory of every stage of the shown ones."""
    known_peak(job.used, precision=job.precision)  # before any reason that would mislead
    if exact is not None:
        return Found(fitting=(costed_or_raise(job, exact),), rejected=())
    found = search_layouts(job)
    shown = [costed(job, candidate.layout, all_stages=True) for candidate in _ranked(found)]
    fitting = tuple(candidate for candidate in shown if isinstance(candidate, ForecastLayout))
    return dataclasses.replace(found, fitting=fitting)


def _profiled(
    job: Job, exact: Layout | None, *, batch: BatchProfile, profile: StepProfile
) -> Found:
    if job.token_cap is not None:
        profile = dataclasses.replace(profile, token_cap=job.token_cap)
    layouts = data_layouts(job) if exact is None else [exact]
    best = profiled_layout(job, layouts, batch=batch, profile=profile)
    return Found(fitting=(best,), rejected=())


def _job_plan(
    cluster: ClusterSpec,
    model: ModelSpec,
    *,
    best: ForecastLayout,
    reason: str,
    alternatives: Sequence[ForecastLayout] = (),
    rejected: Sequence[RejectedLayout] = (),
) -> JobPlan:
    return JobPlan(
        layout=best.layout,
        placement=placement(cluster, best.layout, num_layers=model.num_layers),
        forecast=best.forecast,
        alternatives=tuple(alternatives),
        rejected=tuple(rejected[:_NUM_REJECTED]),
        reason=reason,
    )


def _ranked(found: Found) -> list[ForecastLayout]:
    """The best layout and its alternatives, which differ in more than how they are run."""
    best: dict[tuple[int, ...], ForecastLayout] = {}
    for candidate in sorted(found.fitting, key=_preference):
        layout = candidate.layout
        degrees = (layout.tp, layout.pp, layout.dp, layout.cp, layout.ep)
        best.setdefault(degrees, candidate)
    return list(best.values())[: 1 + _NUM_ALTERNATIVES]


def _pinned_degrees(pins: Mapping[str, int | str]) -> dict[str, int]:
    degrees = {}
    for name, value in pins.items():
        if name in SETTINGS:
            continue
        if name not in PINNABLE:
            known = (*PINNABLE, *SETTINGS)
            raise InputError(f"layout: {unknown_name_message('field', name, known)}")
        checks.whole_number(f"layout.{name}", value, at_least=0 if name == "zero" else 1)
        degrees[name] = int(value)
    return degrees


def _pinned_settings(pins: Mapping[str, int | str]) -> dict[str, str]:
    settings = {name: str(value) for name, value in pins.items() if name in SETTINGS}
    for name, value in settings.items():
        checks.one_of(f"layout.{name}", value, SETTINGS[name])
    return settings


def _preference(candidate: ForecastLayout) -> tuple[bool, float, str]:
    """Layouts that fit well before tight ones, then the faster one."""
    forecast = candidate.forecast
    return forecast.verdict != "fits", forecast.step_s, str(candidate.layout)


def _given(best: ForecastLayout) -> str:
    text = f"the layout given; its forecast step is {duration_text(best.forecast.step_s)}"
    return text + ("; memory is tight" if best.forecast.verdict == "tight" else "")


def _reason(best: ForecastLayout, others: Sequence[ForecastLayout], *, found: Found) -> str:
    text = f"shortest forecast step, {duration_text(best.forecast.step_s)}"
    if others:
        ratio = others[0].forecast.step_s / best.forecast.step_s - 1
        text += f"; the next, {others[0].layout}, takes {ratio:.1%} more"
    if best.forecast.verdict == "tight":
        text += "; memory is tight"
    return text + (f"; {len(found.rejected)} rejected" if found.rejected else "")
