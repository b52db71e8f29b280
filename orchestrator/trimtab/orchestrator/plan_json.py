"""What `plan --json` and `plan-step --json` print; `schemas` describes both.

`plan` speaks Trimtab's own units: seconds, bytes, FLOPs. `plan-step` speaks its profile's:
milliseconds, except `solve_s`, which is wall time.
"""

from collections.abc import Sequence
from typing import Any

from trimtab.core import serde
from trimtab.core.certificate import BoundCertificate
from trimtab.core.job import JobSpec
from trimtab.core.model import MFU_FORMULA
from trimtab.core.pipeline import PipelinePlan
from trimtab.core.plan import Forecast, JobPlan, Layout, StepPlan, Wave
from trimtab.core.profile import StepProfile
from trimtab.core.units import MS
from trimtab.orchestrator.joint_planning import JointPlan
from trimtab.planners.staged.staged_timeline import staged_timeline
from trimtab.planners.steps.rank_blocks import placed_seconds

_Document = dict[str, Any]


def plan_document(job: JobSpec, job_plan: JobPlan, *, batch_note: str) -> _Document:
    """A job's plan as `plan --json` prints it."""
    return {
        "schema": serde.SCHEMA_VERSION,
        "job": job.name,
        "model": {"name": job.model.name, "num_parameters": job.model.num_parameters},
        "cluster": {"name": job.cluster.name, "num_gpus": job.cluster.num_gpus},
        "num_ranks": job.num_ranks,
        "batch": {"num_sequences": job.training.global_batch_seqs, "note": batch_note},
        "layout": layout_document(job_plan.layout),
        "placement": _fields(job_plan.placement),
        "forecast": forecast_document(job_plan.forecast),
        "alternatives": [
            {
                "layout": layout_document(alternative.layout),
                "forecast": forecast_document(alternative.forecast),
            }
            for alternative in job_plan.alternatives
        ],
        "rejected": [
            {"layout": layout_document(rejected.layout), "reason": rejected.reason}
            for rejected in job_plan.rejected
        ],
        "reason": job_plan.reason,
        "islands": None if job_plan.islands is None else _islands_document(job_plan),
        "communicators": [_fields(settings) for settings in job_plan.communicators],
    }


def _islands_document(job_plan: JobPlan) -> _Document:
    islands = job_plan.islands
    assert islands is not None
    document = _fields(islands)
    for baseline, entry in zip(islands.baselines, document["baselines"], strict=True):
        entry["layout"] = layout_document(baseline.layout)
    return document | {"gap": islands.gap_fraction(job_plan.forecast.step_s)}


def layout_document(layout: Layout) -> _Document:
    """The degrees and settings of a layout."""
    return _fields(layout)


def forecast_document(forecast: Forecast) -> _Document:
    """A forecast with the figures that follow from it."""
    document = _fields(forecast)
    for stage, entry in zip(forecast.memory, document["memory"], strict=True):
        entry |= {"total_bytes": stage.total_bytes, "verdict": stage.verdict}
    return document | {
        "tokens_per_s": forecast.tokens_per_s,
        "tokens_per_s_per_gpu": forecast.tokens_per_s / forecast.num_ranks,
        "mfu": forecast.mfu,
        "hfu": forecast.hfu,
        "mfu_note": mfu_note(forecast),
        "verdict": forecast.verdict,
    }


def mfu_note(forecast: Forecast) -> str:
    """The formula behind the MFU, or why there is none."""
    if forecast.peak_flop_per_s is None:
        return f"no MFU: the peak of the device at {forecast.precision} is unknown"
    return MFU_FORMULA


def step_plan_document(
    step_plan: StepPlan,
    *,
    lengths: Sequence[int],
    profile: StepProfile,
    num_ranks: int,
    first_line: int = 0,
    uniform: StepPlan | None = None,
) -> _Document:
    """One step's plan as `plan-step --json` prints it, times in milliseconds.

    Args:
        step_plan: Its sequences are indices into `lengths`.
        lengths: Tokens of every sequence.
        profile: What the groups were costed with.
        num_ranks: The ranks that groups were formed over.
        first_line: Line number, 0-based, of `lengths[0]` in the user's file.
        uniform: The best plan with one degree for the whole step, to compare with.
    """
    return {
        "schema": serde.SCHEMA_VERSION,
        "waves": [
            _wave_document(wave, lengths=lengths, profile=profile, first_line=first_line)
            for wave in step_plan.waves
        ],
        "step_ms": step_plan.step_s / MS,
        "step_fixed_ms": profile.step_fixed_s / MS,
        "lower_bound_ms": step_plan.lower_bound_s / MS,
        "gap": step_plan.gap_fraction,
        "solve_s": step_plan.solve_s,
        "first_plan_s": _or(step_plan.first_plan_s, step_plan.solve_s),
        "first_step_ms": _or(step_plan.first_step_s, step_plan.step_s) / MS,
        "method": step_plan.method,
        "reason": step_plan.reason,
        "uniform": None if uniform is None else _uniform_document(uniform),
        "num_gpus": num_ranks,
        "num_sequences": len(lengths),
        "num_tokens": sum(lengths),
        "profile": profile.name,
        "token_cap": profile.token_cap,
        "certificate": certificate_document(step_plan.certificate),
        "pipeline": pipeline_document(step_plan.pipeline, step_s=step_plan.step_s),
    }


def pipeline_document(pipeline: PipelinePlan | None, *, step_s: float) -> _Document | None:
    """How the waves pass the stages; None: there is one stage."""
    if pipeline is None:
        return None
    stages = pipeline.stages
    return {
        "schedule": "1f1b",
        "pp": stages.pp,
        "vpp": stages.vpp,
        "stage_layers": list(stages.stage_layers),
        "micro_batches": [
            {
                "forward_ms": [seconds / MS for seconds in each.forward_s],
                "backward_ms": [seconds / MS for seconds in each.backward_s],
                "send_ms": each.send_s / MS,
                "tokens": each.tokens,
            }
            for each in pipeline.micro_batches
        ],
        "busy_ms": [seconds / MS for seconds in pipeline.busy_s],
        "bubble": max(0.0, 1 - sum(pipeline.busy_s) / stages.pp / step_s),
        "token_limits": list(pipeline.token_limits),
        "peak_tokens": list(pipeline.peak_tokens),
        "wave_token_cap": pipeline.wave_cap,
        "least_waves": pipeline.least_waves,
    }


def joint_plan_document(joint: JointPlan, *, lengths: Sequence[int]) -> _Document:
    """A step over uneven stages as `plan-step --cluster --job --json` prints it.

    `layout`, `prices` and `lengths` are all that `staged_bounds.priced_bound_s` needs to prove
    the bound again; both are in seconds, as the argument is written.

    Args:
        joint: The plan; its sequences are indices into `lengths`.
        lengths: Tokens of every sequence.
    """
    plan, staged = joint.plan, joint.staged
    return {
        "schema": serde.SCHEMA_VERSION,
        "step_ms": plan.step_s / MS,
        "lower_bound_ms": plan.lower_bound_s / MS,
        "gap": plan.gap_fraction,
        "first_plan_s": plan.first_plan_s,
        "first_step_ms": plan.first_step_s / MS,
        "solve_s": plan.solve_s,
        "layout_s": joint.layout_s,
        "apart_ms": None if joint.apart_s is None else joint.apart_s / MS,
        "method": plan.method,
        "reason": plan.reason,
        "num_ranks": staged.num_ranks,
        "num_sequences": len(lengths),
        "num_tokens": sum(lengths),
        "lengths": list(lengths),
        "layout": serde.to_document(staged),
        "prices": serde.to_document(plan.prices),
        "micro_batches": [
            {
                "degree": one.degree,
                "sequences": list(one.sequences),
                "tokens": sum(lengths[index] for index in one.sequences),
                "visits": [
                    {
                        "stage": staged.replicas[visit.replica].stage,
                        "replica": visit.replica,
                        "ranks": [visit.first_rank, visit.first_rank + one.degree - 1],
                        "forward_start_ms": visit.forward_start_s / MS,
                        "backward_start_ms": visit.backward_start_s / MS,
                    }
                    for visit in one.visits
                ],
            }
            for one in plan.micro_batches
        ],
        "timeline": serde.to_document(
            staged_timeline(plan.micro_batches, lengths, staged=staged)
        ),
    }


def certificate_document(certificate: BoundCertificate | None) -> _Document | None:
    """Why no step is shorter than the bound, as a stranger may check it; None: the area bound.

    In seconds, as the argument is written (`trimtab.planners.steps.bounds.certified_bound_s`).
    """
    return None if certificate is None else serde.to_document(certificate)


def _or(value: float | None, default: float) -> float:
    return default if value is None else value


def _wave_document(
    wave: Wave, *, lengths: Sequence[int], profile: StepProfile, first_line: int
) -> _Document:
    groups: list[_Document] = []
    times_s = placed_seconds(wave, lengths, profile=profile)
    for group, group_s in zip(wave.groups, times_s, strict=True):
        groups.append(
            {
                "degree": group.degree,
                "attention": group.attention,
                "ranks": list(group.ranks),
                "sequences": [first_line + sequence for sequence in group.sequences],
                "tokens": sum(lengths[sequence] for sequence in group.sequences),
                "time_ms": group_s / MS,
            }
        )
    return {"time_ms": max(group["time_ms"] for group in groups), "groups": groups}


def _uniform_document(uniform: StepPlan) -> _Document:
    (degree,) = uniform.degrees
    return {"degree": degree, "step_ms": uniform.step_s / MS}


def _fields(value: Any) -> _Document:
    document = serde.to_document(value)
    del document["schema"], document["type"]
    return document
