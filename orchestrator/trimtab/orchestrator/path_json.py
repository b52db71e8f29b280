"""What `plan-paths --json` prints; all times are seconds."""

from typing import Any

from trimtab.core import serde
from trimtab.core.stage_paths import PathInstance, PathPlan, PathSchedule
from trimtab.planners.paths.path_full_model import FullModelStep
from trimtab.planners.paths.path_instance import finite_or_none, instance_document
from trimtab.planners.paths.path_replan import Replan
from trimtab.planners.paths.path_rules import FULL_MODEL_EVERY, BrokenRule, num_swaps
from trimtab.planners.paths.path_timeline import schedule_timeline
from trimtab.planners.paths.path_times import stage_uses

_Document = dict[str, Any]


def path_plan_document(
    instance: PathInstance,
    plan: PathPlan,
    *,
    broken: tuple[BrokenRule, ...],
    full_model: FullModelStep | None,
) -> _Document:
    """A plan, with what simulates it again: its instance."""
    return {
        "schema": serde.SCHEMA_VERSION,
        "type": "PathPlan",
        "name": instance.name,
        **_schedule(instance, plan.schedule),
        "iteration_s": plan.iteration_s,
        "step_s": plan.step_s,
        "lower_bound_s": plan.lower_bound_s,
        "gap": plan.gap_fraction,
        "bound_reason": plan.bound_reason,
        "first_plan_s": plan.first_plan_s,
        "first_step_s": plan.first_step_s,
        "solve_s": plan.solve_s,
        "reason": plan.reason,
        "guidance": _guidance(plan, broken, full_model),
        **_whole(instance, plan.schedule),
    }


def replan_document(
    replan: Replan, *, without: int, lower_bound_s: float, solve_s: float
) -> _Document:
    """A plan without a node, with the rungs that were tried."""
    return {
        "schema": serde.SCHEMA_VERSION,
        "type": "PathPlan",
        "name": replan.instance.name,
        **_schedule(replan.instance, replan.schedule),
        "iteration_s": replan.iteration_s,
        "step_s": replan.step_s,
        "lower_bound_s": lower_bound_s,
        "gap": replan.step_s / lower_bound_s - 1,
        "solve_s": solve_s,
        "reason": replan.reason,
        "lost_node": without,
        "kept_paths": replan.kept_paths,
        "rungs": [{"name": rung.name, "reason": rung.reason} for rung in replan.rungs],
        **_whole(replan.instance, replan.schedule),
    }


def _schedule(instance: PathInstance, schedule: PathSchedule) -> _Document:
    return {
        "partitions": [list(nodes) for nodes in schedule.partitions],
        "paths": [list(path) for path in schedule.paths],
        "release_s": list(schedule.release_s),
        "num_micro_batches": instance.num_micro_batches,
        "skip_ratio": instance.skip_fraction,
        "stage_uses": stage_uses(schedule),
        "in_stage_delay_s": finite_or_none(instance.in_stage_delay_s(schedule.partitions)),
    }


def _guidance(
    plan: PathPlan, broken: tuple[BrokenRule, ...], full_model: FullModelStep | None
) -> _Document:
    document: _Document = {
        "broken": [
            {"rule": one.rule, "detail": one.detail, "source": one.source} for one in broken
        ],
        "num_swaps": num_swaps(plan.schedule),
        "full_model_every": FULL_MODEL_EVERY,
        "full_model_step_s": None,
        "mean_step_s": None,
    }
    if full_model is not None:
        document["full_model_step_s"] = full_model.step_s
        document["mean_step_s"] = full_model.mean_step_s(plan.step_s)
    return document


def _whole(instance: PathInstance, schedule: PathSchedule) -> _Document:
    return {
        "instance": instance_document(instance),
        "timeline": serde.to_document(schedule_timeline(instance, schedule)),
    }
