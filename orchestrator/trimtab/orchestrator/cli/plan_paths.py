"""`trimtab plan-paths`: who serves which stage, and which nodes each micro-batch visits."""

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from trimtab.core.errors import InfeasibleError, InputError, printable
from trimtab.orchestrator.cli.output import JsonOption, console, print_json

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.console import Console

    from trimtab.core.stage_paths import PathInstance, PathPlan, PathSchedule
    from trimtab.planners.paths.path_full_model import FullModelStep
    from trimtab.planners.paths.path_replan import Replan
    from trimtab.planners.paths.path_rules import BrokenRule

_BAR_CELLS = 40
_FULL_MODEL_LIMIT_S = 0.5
_REPLAN_LIMIT_S = 0.1


def plan_paths(
    instance: Annotated[
        Path,
        typer.Argument(
            metavar="INSTANCE.json", help="Nodes, links and stages; or a plan of this command."
        ),
    ],
    fixed_stages: Annotated[
        Path | None,
        typer.Option(
            "--fixed-stages",
            metavar="PARTITIONS.json",
            help='Keep this arrangement: {"partitions": [[node, ...] per stage]}.',
        ),
    ] = None,
    most_in_stage_delay: Annotated[
        str | None,
        typer.Option(
            "--most-in-stage-delay",
            metavar="SECONDS|PARTITIONS.json",
            help="Largest delay between two nodes of one stage, or an arrangement that has it.",
        ),
    ] = None,
    time_limit: Annotated[
        float,
        typer.Option(
            "--time-limit",
            help="CPU seconds to improve the first plan and its bound; 0 takes it.",
        ),
    ] = 5.0,
    allow: Annotated[
        list[str] | None,
        typer.Option(
            "--allow",
            metavar="RULE",
            help="Plan although this published rule is broken: skips, swaps, equal-use, ends.",
        ),
    ] = None,
    without: Annotated[
        int | None,
        typer.Option("--without", metavar="NODE", help="Plan again because this node is lost."),
    ] = None,
    schedule: Annotated[
        Path | None,
        typer.Option(
            "--from", metavar="PLAN.json", help="What ran until then; default: plan it first."
        ),
    ] = None,
    json: JsonOption = False,
) -> None:
    """Plan stage paths: nodes for stages, and a path of nodes for every micro-batch.

    Times are simulated, by an exact event simulator. Solve times are CPU seconds of this
    process after imports and compilation.
    """
    import time

    from trimtab.orchestrator import path_files
    from trimtab.planners.paths.path_rules import RULES
    from trimtab.planners.paths.path_search import warm_up

    if not 0 <= time_limit < math.inf:
        raise InputError(f"--time-limit: expected seconds >= 0, got {time_limit}")
    allowed = tuple(allow or ())
    for rule in allowed:
        if rule not in RULES:
            raise InputError(f"--allow: expected one of {', '.join(RULES)}, got {rule!r}")
    if fixed_stages is not None and most_in_stage_delay is not None:
        raise InputError("expected one of --fixed-stages and --most-in-stage-delay")
    if schedule is not None and without is None:
        raise InputError("--from: says what ran before a node was lost; name it by --without")
    task = path_files.load_instance(instance)
    fixed = path_files.load_partitions(fixed_stages, task) if fixed_stages else None
    most_s, first = math.inf, None
    if most_in_stage_delay is not None:
        most_s, first = path_files.in_stage_limit(most_in_stage_delay, task)
    if without is not None and not 0 <= without < task.num_nodes:
        raise InputError(
            f"--without: expected a node from 0 to {task.num_nodes - 1}, got {without}"
        )
    ran = path_files.load_schedule(schedule, task) if schedule else None
    warm_up()
    if ran is not None and without is not None:
        _show_replan(task, ran, without=without, clock=time.process_time, json=json)
        return
    from trimtab.planners.paths.paths import plan_paths as planned

    with console(stderr=True).status(f"planning for {time_limit:g} s"):
        plan = planned(
            task, clock=time.process_time, time_limit_s=time_limit, fixed=fixed, first=first,
            most_in_stage_s=most_s,
        )  # fmt: skip
    if without is not None:
        _show_replan(task, plan.schedule, without=without, clock=time.process_time, json=json)
        return
    _show_plan(task, plan, allowed=allowed, clock=time.process_time, json=json)


def _show_plan(
    instance: "PathInstance",
    plan: "PathPlan",
    *,
    allowed: tuple[str, ...],
    clock: "Callable[[], float]",
    json: bool,
) -> None:
    from trimtab.orchestrator.path_json import path_plan_document
    from trimtab.planners.paths.path_full_model import full_model_step
    from trimtab.planners.paths.path_rules import broken_rules, refuse_broken

    broken = broken_rules(instance, plan.schedule)
    refuse_broken(broken, allowed=allowed)
    until_s = clock() + _FULL_MODEL_LIMIT_S
    try:
        full_model = full_model_step(
            instance, plan.schedule.partitions, is_over=lambda: clock() > until_s
        )
    except InfeasibleError:
        full_model = None
    if json:
        print_json(path_plan_document(instance, plan, broken=broken, full_model=full_model))
        return
    out = console(markup=False)
    _print_heading(out, instance)
    out.print(
        f"step {plan.step_s:.2f} s (simulated), at most {plan.gap_fraction:.1%} over the best "
        f"possible ({plan.lower_bound_s:.2f} s)"
    )
    out.print(f"bound: {plan.bound_reason}")
    if plan.step_s > plan.iteration_s:
        closing_s = plan.step_s - plan.iteration_s
        out.print(f"of it {closing_s:.2f} s after the last backward, to reduce gradients")
    out.print(
        f"first plan after {plan.first_plan_s * 1e3:.0f} ms: {plan.first_step_s:.2f} s; "
        f"solved in {plan.solve_s:.2f} s"
    )
    _print_guidance(out, plan, broken, full_model)
    _print_schedule(out, instance, plan.schedule)


def _print_guidance(
    out: "Console",
    plan: "PathPlan",
    broken: "tuple[BrokenRule, ...]",
    full_model: "FullModelStep | None",
) -> None:
    from trimtab.planners.paths.path_rules import num_swaps

    for one in broken:
        out.print(f"breaks {one.rule}, as allowed: {one.detail} ({one.source})")
    swaps = num_swaps(plan.schedule)
    if swaps:
        out.print(f"{swaps} swaps of stages: skips and swaps together are unproven in quality")
    if full_model is None:
        out.print("the full model cannot be run on these nodes, as is advised now and then")
    else:
        mean_s = full_model.mean_step_s(plan.step_s)
        out.print(
            f"one step of {full_model.every} is to run the full model: "
            f"{full_model.step_s:.2f} s, so {mean_s:.2f} s on average"
        )


def _show_replan(
    instance: "PathInstance",
    ran: "PathSchedule",
    *,
    without: int,
    clock: "Callable[[], float]",
    json: bool,
) -> None:
    from trimtab.orchestrator.path_json import replan_document
    from trimtab.planners.paths.path_bounds import PathBounds
    from trimtab.planners.paths.path_replan import replan

    started_s = clock()
    found = replan(
        instance, ran, without=without, is_over=lambda: clock() - started_s > _REPLAN_LIMIT_S
    )
    solve_s = clock() - started_s
    bounds = PathBounds(found.instance, fixed=found.schedule.partitions, step_s=found.step_s)
    bound_s = bounds.quick().seconds
    if json:
        print_json(
            replan_document(found, without=without, lower_bound_s=bound_s, solve_s=solve_s)
        )
        return
    out = console(markup=False)
    _print_heading(out, found.instance)
    out.print(f"without node {without}, planned in {solve_s * 1e3:.0f} ms:")
    for rung in found.rungs:
        mark = "+" if rung is found.rungs[-1] else "-"
        out.print(f"  {mark} {rung.name}: {rung.reason}")
    _print_replan(out, found, bound_s)


def _print_replan(out: "Console", found: "Replan", bound_s: float) -> None:
    out.print(
        f"step {found.step_s:.2f} s (simulated), bound {bound_s:.2f} s; "
        f"{found.kept_paths} of {len(found.schedule.paths)} paths stay as they were"
    )
    _print_schedule(out, found.instance, found.schedule)


def _print_heading(out: "Console", instance: "PathInstance") -> None:
    num_nodes = instance.num_nodes - len(instance.without)
    out.print(
        f"{printable(instance.name)}: {num_nodes} nodes, {instance.num_stages} stages, "
        f"{instance.num_micro_batches} micro-batches that skip {instance.skip_fraction:.0%}"
    )


def _print_schedule(out: "Console", instance: "PathInstance", schedule: "PathSchedule") -> None:
    """Busy shares of nodes, stage by stage, and the path of every micro-batch slot."""
    from trimtab.planners.paths.path_times import path_times

    times = path_times(instance, schedule)
    factor = 1 + instance.backward_factor
    busy_s = dict.fromkeys(schedule.stage_of, 0.0)
    for path in schedule.paths:
        for node in path:
            busy_s[node] += instance.num_waves * factor * instance.forward_s[node]
        loss_s = instance.loss_factor * instance.forward_s[path[0]]
        busy_s[path[0]] += instance.num_waves * loss_s
    out.print("")
    for stage, nodes in enumerate(schedule.partitions):
        for node in nodes:
            share = busy_s[node] / times.iteration_s
            cells = round(share * _BAR_CELLS)
            bar = "█" * cells + "·" * (_BAR_CELLS - cells)
            out.print(f"  stage {stage:>2}  node {node:>3}  {bar} {share:4.0%} busy")
    out.print("")
    stage_of = schedule.stage_of
    for a, path in enumerate(schedule.paths):
        nodes_text = " -> ".join(f"{node}" for node in path)
        stages = " ".join(str(stage_of[node]) for node in path)
        out.print(
            f"  path {a:>3}  from {schedule.release_s[a]:5.2f} s  nodes {nodes_text}  "
            f"(stages {stages})"
        )
