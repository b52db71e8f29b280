"""Step coefficients measured where the job will run: a short real run, and a fit to its groups.

The probing run trains the job's own model on its own documents for a few steps, each with
another smallest degree or attention kind, so that groups of every degree, of both kinds and of
many sizes are timed. Any finished run can be fitted the same way.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from statistics import median

from trimtab.core.cluster import ClusterSpec, PeakRate
from trimtab.core.errors import InputError
from trimtab.core.events import AnyEvent, StepFinished, StepPlanned
from trimtab.core.job import CheckpointSpec, JobSpec
from trimtab.core.plan import Layout
from trimtab.core.profile import StepProfile
from trimtab.monitor.store import EventStore
from trimtab.orchestrator.rundir import RunDir
from trimtab.orchestrator.step_planning import step_planner
from trimtab.planners.costs import analytic_profile
from trimtab.planners.group_fitting import GroupSample
from trimtab.planners.profile_fitting import (
    fit_profile,
    median_error,
    wave_samples,
)

_ROUNDS = 3
"""How often each smallest degree of each kind has its turn."""
_WARM_UP_STEPS = 2
"""Steps left out of the fit: allocations, first communication on each group."""
_NOMINAL_FLOP_PER_S = 1e11
"""Stands in for an unknown peak while probing: decides which groups are tried, not the fit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """A fitted profile and how well it tells the groups it was fitted to."""

    profile: StepProfile
    num_samples: int
    median_error_fraction: float
    """Median of |predicted - measured| / measured over the groups."""


def probing_job(job: JobSpec) -> JobSpec:
    """`job` cut down to the few steps that `calibrate` measures.

    Raises:
        InputError: The layout has one rank only, or cannot be run.
    """
    layout = job.layout or Layout(dp=job.num_ranks)
    profile = nominal = _nominal_profile(job, layout)
    if job.profile is not None:
        profile = replace(job.profile, ring=job.profile.ring or nominal.ring)
    probe = replace(
        job,
        name=f"calibrate-{job.name}",
        layout=layout,
        profile=profile,
        step_planning=replace(job.step_planning, grouping="probe"),
        checkpoint=CheckpointSpec(start_from=job.checkpoint.start_from),
    )
    num_steps = _WARM_UP_STEPS + _ROUNDS * len(step_planner(probe, layout).probes)
    training = replace(job.training, num_steps=num_steps, evaluate_every_steps=0)
    return replace(probe, training=training)


def fit_run(run: RunDir) -> Calibration:
    """Fit the step coefficients to the groups that a run has timed.

    Raises:
        InputError: The run has too few steps, or too few different groups.
    """
    job, layout = run.request().training
    with EventStore.open(run.events) as store:
        events = list(store.all(kinds=(StepPlanned, StepFinished)))
    samples = tuple(group_samples(events))
    if not samples:
        raise InputError(
            f"{run.handle}: expected more than {_WARM_UP_STEPS} finished steps to fit, got none"
        )
    planner = step_planner(job, layout)
    ring = planner.profile.ring
    profile = fit_profile(
        samples,
        name=f"{job.model.name} on {job.cluster.name}",
        num_gpus=job.num_ranks,
        gpus_per_node=min(job.num_ranks, job.cluster.nodes[0].gpus_per_node),
        token_cap=planner.profile.token_cap,
        alltoall_bytes_per_token=planner.profile.alltoall_bytes_per_token,
        ring_bytes_per_token=ring.bytes_per_token if ring else 0.0,
        step_fixed_s=_step_fixed_s(events),
        source=f"measured over {len(samples)} groups of {run.handle}",
    )
    return Calibration(
        profile=replace(profile, hidden=job.model.hidden, num_layers=job.model.num_layers),
        num_samples=len(samples),
        median_error_fraction=median_error(samples, profile=profile),
    )


def group_samples(events: Iterable[AnyEvent]) -> Iterator[GroupSample]:
    """The measured groups of a run, its warm-up left out.

    A group's time is that of the rank that took least: the others waited for it to arrive.
    """
    waves_s: dict[int, dict[int, tuple[float, ...]]] = {}
    plans: dict[int, StepPlanned] = {}
    for event in events:
        match event:
            case StepPlanned():
                plans[event.step] = event
            case StepFinished():
                waves_s.setdefault(event.step, {})[event.rank] = event.waves_s
    for step, planned in sorted(plans.items())[_WARM_UP_STEPS:]:
        yield from wave_samples(planned.plan, planned.lengths, waves_s.get(step, {}))


def _nominal_profile(job: JobSpec, layout: Layout) -> StepProfile:
    """The analytic profile, with a made-up peak where the cluster file gives none."""
    precision = job.training.precision
    nominal = PeakRate(precision=precision, flop_per_s=_NOMINAL_FLOP_PER_S)
    nodes = tuple(
        node
        if node.gpu.peak_flop_per_s(precision) is not None
        else replace(node, gpu=replace(node.gpu, peaks=(*node.gpu.peaks, nominal)))
        for node in job.cluster.nodes
    )
    cluster: ClusterSpec = replace(job.cluster, nodes=nodes)
    return analytic_profile(job.model, cluster, layout, precision=precision)


def _step_fixed_s(events: Iterable[AnyEvent]) -> float:
    """Median over ranks and steps of what is not in a wave and not waiting."""
    outside = [
        sum(part.seconds for part in event.parts if part.name in ("gradient sync", "optimizer"))
        for event in events
        if isinstance(event, StepFinished) and event.step > _WARM_UP_STEPS
    ]
    return median(outside)
